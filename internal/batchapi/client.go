// Package batchapi speaks a provider's Batch API with one caller's credential:
// files up, batches created and looked at, results down. It sends every
// request once; what is worth repeating, its caller decides by the Error.
package batchapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/provider"
)

const (
	// callTimeout ends a request that moves no file. It is openai-python's read
	// timeout for such calls, a tenth of it: they answer in seconds or not at all.
	callTimeout = time.Minute

	// stallTimeout ends an upload or download that stopped moving.
	stallTimeout = 5 * time.Minute

	// maxAnswer bounds what is read of an answer that is no file: batch objects,
	// lists of a hundred of them, errors.
	maxAnswer = 8 << 20
)

// A Client is safe for concurrent use. It holds its credential in memory only.
type Client struct {
	api     openai.Client
	profile provider.Profile
	via     http.RoundTripper
	base    *url.URL
}

// New returns a Client that sends header (who pays) with each request to base,
// a URL that ends before "/files"; its query, such as Azure's api-version,
// goes with each request too.
func New(base *url.URL, header http.Header, via http.RoundTripper, p provider.Profile) *Client {
	root := *base
	root.RawQuery, root.Path = "", strings.TrimSuffix(root.Path, "/")+"/"
	opts := []option.RequestOption{
		option.WithBaseURL(root.String()),
		option.WithHTTPClient(&http.Client{Transport: shortErrors{via}}),
		option.WithMaxRetries(0), // a create sent twice is a batch paid for twice
	}
	for name, values := range header {
		opts = append(opts, option.WithHeaderDel(name))
		for _, value := range values {
			opts = append(opts, option.WithHeaderAdd(name, value))
		}
	}
	for name, values := range base.Query() {
		for _, value := range values {
			opts = append(opts, option.WithQueryAdd(name, value))
		}
	}
	// Not openai.NewClient: that would add the environment's key to calls that
	// brought another credential, or none.
	return &Client{api: openai.Client{Options: opts}, profile: p, via: via, base: &root}
}

// shortErrors cuts the bodies of error answers short: the SDK reads them whole.
type shortErrors struct{ next http.RoundTripper }

func (s shortErrors) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := s.next.RoundTrip(req)
	if err == nil && res.StatusCode >= 400 {
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(res.Body, maxErrorBody), res.Body}
	}
	return res, err
}

// do sends one request and returns its answer, whose body the caller closes.
// Every failure is an *Error, but for the end of ctx.
func (c *Client) do(ctx context.Context, method, path string, body any, opts ...option.RequestOption) (*http.Response, error) {
	var res *http.Response
	opts = append(opts, option.WithResponseInto(&res))
	err := c.api.Execute(ctx, method, path, body, nil, opts...)
	switch {
	case ctx.Err() != nil:
		if res != nil {
			res.Body.Close()
		}
		return nil, context.Cause(ctx)
	case res != nil && res.StatusCode >= 300:
		defer res.Body.Close()
		return nil, newError(method, path, res)
	case err != nil:
		if res != nil {
			res.Body.Close()
		}
		return nil, &Error{Op: method + " /" + path, Err: err}
	}
	return res, nil
}

// object sends one request that answers with a JSON object (or a list).
func (c *Client) object(ctx context.Context, method, path string, body any, opts ...option.RequestOption) (gjson.Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errStalled)
	defer cancel()
	res, err := c.do(ctx, method, path, body, opts...)
	if err != nil {
		return gjson.Result{}, stalled(err, method, path)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return gjson.Result{}, &Error{Op: method + " /" + path, Err: err}
	}
	answer := gjson.ParseBytes(text)
	if !line.Valid(text) || !answer.IsObject() && !answer.IsArray() {
		return gjson.Result{}, &Error{
			Op: method + " /" + path, Status: res.StatusCode, Body: clip(text),
			Err: fmt.Errorf("the answer is no JSON: %.80q", text),
		}
	}
	return answer, nil
}

// Create creates a batch. After an error that is Ambiguous the batch may exist
// all the same: look with Find before creating another.
func (c *Client) Create(ctx context.Context, p CreateParams) (Batch, error) {
	body := map[string]any{"input_file_id": p.InputFileID, "endpoint": p.Endpoint}
	if p.CompletionWindow != "" && !c.profile.OmitWindow {
		body["completion_window"] = p.CompletionWindow
	}
	if len(p.Metadata) > 0 {
		body["metadata"] = p.Metadata
	}
	if p.OutputExpiry > 0 && c.profile.OutputExpiry {
		body["output_expires_after"] = map[string]any{"anchor": "created_at", "seconds": c.expiry(p.OutputExpiry)}
	}
	answer, err := c.object(ctx, http.MethodPost, "batches", body)
	if err != nil {
		return Batch{}, err
	}
	if wrapper := c.profile.CreateWrapper; wrapper != "" && answer.Get(wrapper).IsObject() {
		answer = answer.Get(wrapper)
	}
	return parseBatch(answer)
}

// Retrieve looks at a batch.
func (c *Client) Retrieve(ctx context.Context, id string) (Batch, error) {
	answer, err := c.object(ctx, http.MethodGet, "batches/"+url.PathEscape(id), nil)
	if err != nil {
		return Batch{}, err
	}
	return parseBatch(answer)
}

// Cancel asks for a batch to be cancelled. A batch that can no longer be
// cancelled is an Error.
func (c *Client) Cancel(ctx context.Context, id string) error {
	_, err := c.object(ctx, http.MethodPost, "batches/"+url.PathEscape(id)+"/cancel", nil)
	return err
}

// findPages bounds how far Find looks back.
const findPages = 20

// Find looks for the batch made from an input file, which no other batch has,
// among those created since a moment before the create was sent. Without an
// error, one that it does not find is not there.
func (c *Client) Find(ctx context.Context, inputFileID string, since time.Time) (found Batch, ok bool, err error) {
	whole, err := c.list(ctx, findPages, func(item gjson.Result) bool {
		if item.Get("input_file_id").String() == inputFileID {
			b, err := parseBatch(item)
			found, ok = b, err == nil
		}
		at := moment(item.Get("created_at"))
		return !ok && (at.IsZero() || !at.Before(since))
	})
	if err == nil && !ok && !whole {
		err = &Error{Op: "GET /batches", Err: errLongList}
	}
	return found, ok, err
}

// nextPage is the "after" of the next page of a list.
func (c *Client) nextPage(lastID string, seen int) string {
	if c.profile.ListByOffset {
		return strconv.Itoa(seen)
	}
	return lastID
}

// Content opens an output or error file behind its first skip lines. Body
// fails when nothing arrives for five minutes; the caller closes it.
func (c *Client) Content(ctx context.Context, fileID string, skip int) (*Content, error) {
	var opts []option.RequestOption
	if skip > 0 {
		// Doubleword resumes by "skip"; "offset" is its older name, which
		// others copied. Whoever knows neither sends the whole file.
		n := strconv.Itoa(skip)
		opts = append(opts, option.WithQuery("skip", n), option.WithQuery("offset", n))
	}
	path := "files/" + url.PathEscape(fileID) + "/content"
	ctx, watch := watchStall(ctx)
	opts = append(opts, option.WithHeader("Accept", "*/*"))
	var res *http.Response
	var err error
	if c.profile.ResultURLs && strings.HasPrefix(fileID, "https://") {
		path = "result file"
		res, err = c.fetch(ctx, fileID) //nolint:bodyclose // Content.Body is closed by the caller
	} else {
		opts = append(opts, option.WithHTTPClient(c.unredirected()))
		res, err = c.do(ctx, http.MethodGet, path, nil, opts...) //nolint:bodyclose // likewise
		if address := c.redirect(err); address != "" {
			res, err = c.fetch(ctx, address) //nolint:bodyclose // likewise
		}
	}
	if err != nil {
		watch.stop()
		return nil, stalled(err, http.MethodGet, path)
	}
	content := &Content{Body: &watchedBody{ReadCloser: res.Body, watch: watch}, LastLine: -1}
	content.Incomplete = strings.EqualFold(res.Header.Get("X-Incomplete"), "true")
	if n, err := strconv.Atoi(res.Header.Get("X-Last-Line")); err == nil && n >= 0 {
		content.LastLine = n
	}
	content.Partial = content.LastLine >= 0 || res.Header.Get("X-Incomplete") != ""
	return content, nil
}

// unredirected is a client that leaves redirects to redirect.
func (c *Client) unredirected() *http.Client {
	return &http.Client{
		Transport:     shortErrors{c.via},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// redirect is where the provider has put a file: a signed URL at some storage's
// host, which must be encrypted unless the provider itself is not.
func (c *Client) redirect(err error) string {
	var e *Error
	if !errors.As(err, &e) || e.Status < 300 || e.Status >= 400 {
		return ""
	}
	to, err := c.base.Parse(e.Header.Get("Location"))
	if err != nil || to.Scheme != "https" && to.Scheme != c.base.Scheme {
		return ""
	}
	return to.String()
}

// fetch gets a result file by its URL, without the credential: the URL carries
// one of its own, and its host is another.
func (c *Client) fetch(ctx context.Context, address string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, &Error{Op: "GET result file", Err: err}
	}
	res, err := (&http.Client{Transport: shortErrors{c.via}}).Do(req)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil: // its text would hold the URL, and so the credential in it
		return nil, &Error{Op: "GET result file", Err: errors.Unwrap(err)}
	case res.StatusCode >= 300:
		defer res.Body.Close()
		return nil, newError(http.MethodGet, "result file", res)
	}
	return res, nil
}

// Delete deletes a file.
func (c *Client) Delete(ctx context.Context, fileID string) error {
	_, err := c.object(ctx, http.MethodDelete, "files/"+url.PathEscape(fileID), nil)
	return err
}

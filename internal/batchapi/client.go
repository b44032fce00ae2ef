// Package batchapi implements backend.Backend for the APIs with files and
// batches: the input is uploaded as a file, a batch is created of the file, and
// the results are downloaded as files.
package batchapi

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/provider"
)

const (
	// callTimeout ends a request without a file. The timeout is a tenth of
	// openai-python's: providers answer small requests within seconds or never.
	callTimeout = time.Minute

	// stallTimeout ends an upload or download that stopped moving.
	stallTimeout = 5 * time.Minute

	// maxAnswer bounds the bytes that are read of a response without a file: batch
	// objects, lists of a hundred batch objects, errors.
	maxAnswer = 8 << 20
)

// A Client is a backend.Backend. It is safe for concurrent use.
type Client struct {
	api     openai.Client
	profile provider.Profile
	via     http.RoundTripper
	base    *url.URL
	log     *slog.Logger
}

var _ backend.Backend = (*Client)(nil)

// New returns a Client of base, a URL that ends before "/files". The query of
// base, for example Azure's api-version, is part of each request. via sets the
// credential of each request, unless the context comes from credential.Omit. A
// nil log discards.
func New(base *url.URL, via http.RoundTripper, p provider.Profile, log *slog.Logger) *Client {
	root := backend.WithPath(base, strings.TrimSuffix(base.EscapedPath(), "/")+"/")
	root.RawQuery = ""
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Client{profile: p, via: shortErrors{via}, base: root, log: log}
	opts := []option.RequestOption{
		option.WithBaseURL(root.String()),
		option.WithHTTPClient(&http.Client{Transport: c.via, CheckRedirect: sameServer}),
		option.WithMaxRetries(0), // a repeated create would be a second batch
		option.WithMiddleware(identify),
	}
	for name, values := range base.Query() {
		for _, value := range values {
			opts = append(opts, option.WithQueryAdd(name, value))
		}
	}
	// openai.NewClient would add the key of the environment to requests that carry
	// another credential, or none.
	c.api = openai.Client{Options: opts}
	return c
}

// identify sets the library's User-Agent, and removes the SDK's description of
// the SDK.
func identify(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
	for name := range req.Header {
		if strings.HasPrefix(name, "X-Stainless-") {
			req.Header.Del(name)
		}
	}
	req.Header.Set("User-Agent", backend.UserAgent)
	return next(req)
}

// shortErrors truncates the bodies of error responses. The SDK would read each
// body whole.
type shortErrors struct{ next http.RoundTripper }

func (s shortErrors) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := s.next.RoundTrip(req)
	if err == nil && res.StatusCode >= 300 {
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(res.Body, maxErrorBody), res.Body}
	}
	return res, err
}

// do sends a request and returns the response. The caller closes the body.
// The error is the cause of ctx or an *Error.
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
		return nil, c.newError(method, path, res)
	case err != nil:
		if res != nil {
			res.Body.Close()
		}
		return nil, backend.NoAnswer(method+" /"+path, err)
	}
	return res, nil
}

// An answer is the JSON object or list of a response.
type answer struct {
	gjson.Result
	date time.Time // when the provider answered, by the provider's clock; zero: not known
}

// object sends a request and returns the JSON object or list of the response.
func (c *Client) object(ctx context.Context, method, path string, body any, opts ...option.RequestOption) (answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errStalled)
	defer cancel()
	op := method + " /" + path
	res, err := c.do(ctx, method, path, body, opts...)
	if err != nil {
		return answer{}, stalled(err, op)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNoContent { // to a DELETE
		return answer{}, nil
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return answer{}, backend.NoAnswer(op, err)
	}
	value := gjson.ParseBytes(text)
	if !line.Valid(text) || !value.IsObject() && !value.IsArray() {
		err := fmt.Errorf("the response is not JSON: %.80q", text)
		return answer{}, senseless(op, res.StatusCode, text, err)
	}
	date, _ := http.ParseTime(res.Header.Get("Date"))
	return answer{value, date}, nil
}

func batchPath(id string) string { return "batches/" + url.PathEscape(id) }

func filePath(id string) string { return "files/" + url.PathEscape(id) }

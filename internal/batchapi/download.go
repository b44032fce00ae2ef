package batchapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/credential"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/retry"
)

// Results opens an output or error file. The transfer fails when nothing
// arrives for five minutes. A position behind the beginning is only a wish: a
// server that cannot resume there sends the whole file.
func (c *Client) Results(ctx context.Context, _ backend.Handle, source string, from backend.Position) (*backend.Stream, error) {
	watched, watch := watchStall(ctx)
	d := download{Client: c, source: source, from: resumable(from), op: "GET /" + filePath(source) + "/content"}
	if d.isURL() {
		d.op = "GET result file" // a signed URL is a secret
	}
	res, err := d.open(watched) //nolint:bodyclose // the caller closes the Stream
	if err != nil {
		watch.stop()
		return nil, stalled(err, d.op)
	}
	res.Body = &watchedBody{movingBody{res.Body, watch}, watched}
	return d.stream(ctx, res), nil
}

// resumable is the position at which the server can resume: from, or the
// beginning.
func resumable(from backend.Position) backend.Position {
	if from.Partial && from.Line > 0 || from.Ranges && end(from) > 0 {
		return from
	}
	return backend.Position{}
}

// A download is the transfer of one result file.
type download struct {
	*Client
	source string
	from   backend.Position // where the response begins
	op     string
}

// open sends the request, and sends a request from the beginning if the server
// does not resume at the position.
func (d *download) open(ctx context.Context) (*http.Response, error) {
	res, err := d.get(ctx)
	if d.byRange() && (rangeRefused(err) || err == nil && d.wrongRange(res)) {
		if err == nil {
			res.Body.Close()
		}
		d.from = backend.Position{}
		return d.get(ctx)
	}
	return res, err
}

// byRange reports that the request asks for a range of bytes. Doubleword, which
// skips lines, ignores ranges.
func (d *download) byRange() bool { return !d.from.Partial && end(d.from) > 0 }

// end is the number of bytes that were read, those of an unfinished line included.
func end(p backend.Position) int64 { return p.Byte + int64(len(p.Rest)) }

// rangeRefused reports a refusal that the range may have caused: no bytes follow
// the position (416), or the server does not understand ranges.
func rangeRefused(err error) bool {
	if err == nil {
		return false
	}
	class, _ := backend.Classify(err)
	return class == retry.Permanent
}

// wrongRange reports a partial response that does not begin at the position, or
// belongs to a different content.
func (d *download) wrongRange(res *http.Response) bool {
	if res.StatusCode != http.StatusPartialContent {
		return false
	}
	begins := fmt.Sprintf("bytes %d-", end(d.from))
	tag := strongETag(res.Header)
	return !strings.HasPrefix(strings.ToLower(res.Header.Get("Content-Range")), begins) ||
		encoded(res) || d.from.ETag != "" && tag != "" && tag != d.from.ETag
}

// get sends the request. If the provider names a result file by URL, or redirects
// to a URL, get fetches the file without the credential.
func (d *download) get(ctx context.Context) (*http.Response, error) {
	if d.isURL() {
		return d.fetch(ctx, d.source)
	}
	opts := []option.RequestOption{
		option.WithHTTPClient(&http.Client{Transport: d.via, CheckRedirect: neverFollow}),
		option.WithHeader("Accept", "*/*"),
	}
	for name, value := range d.rangeHeader() {
		opts = append(opts, option.WithHeader(name, value))
	}
	if d.from.Partial && d.from.Line > 0 {
		// Doubleword resumes by "skip". "offset" is the older name, which other
		// servers copied.
		n := strconv.Itoa(d.from.Line)
		opts = append(opts, option.WithQuery("skip", n), option.WithQuery("offset", n))
	}
	res, err := d.do(ctx, http.MethodGet, filePath(d.source)+"/content", nil, opts...)
	if to := d.redirect(err); to != nil {
		return d.fetch(ctx, to.String())
	}
	return res, err
}

func neverFollow(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (d *download) isURL() bool {
	return d.profile.ResultURLs && strings.HasPrefix(d.source, "https://")
}

// rangeHeader is the part of the header that asks for the rest of a file after a
// broken transfer.
func (d *download) rangeHeader() map[string]string {
	if !d.byRange() {
		return nil
	}
	h := map[string]string{"Range": fmt.Sprintf("bytes=%d-", end(d.from))}
	if d.from.ETag != "" {
		h["If-Range"] = d.from.ETag
	}
	return h
}

// redirect is the address to which the provider redirects a download, for example
// a signed URL of a storage service. The address must be encrypted, unless the
// provider is not.
func (d *download) redirect(err error) *url.URL {
	var failed *backend.Error
	if !errors.As(err, &failed) {
		return nil
	}
	to := failed.Location(d.base)
	if to == nil || to.Scheme != "https" && to.Scheme != d.base.Scheme {
		return nil
	}
	return to
}

// fetch gets a result file by URL. The URL carries a credential, and the server of
// the URL must not see the account's credential.
func (d *download) fetch(ctx context.Context, address string) (*http.Response, error) {
	const op = "GET result file"
	req, err := http.NewRequestWithContext(credential.Omit(ctx), http.MethodGet, address, nil)
	if err != nil {
		return nil, backend.NoAnswer(op, errors.New("the address of the file is not a URL"))
	}
	req.Header.Set("User-Agent", backend.UserAgent)
	for name, value := range d.rangeHeader() {
		req.Header.Set(name, value)
	}
	res, err := (&http.Client{Transport: d.via}).Do(req)
	switch {
	case ctx.Err() != nil:
		if err == nil {
			res.Body.Close()
		}
		return nil, context.Cause(ctx)
	case err != nil: // the text of err holds the URL, and so its credential
		return nil, backend.NoAnswer(op, errors.Unwrap(err))
	case res.StatusCode >= 300:
		defer res.Body.Close()
		return nil, d.newError(http.MethodGet, "result file", res)
	}
	return res, nil
}

// stream makes the Stream of a response.
func (d *download) stream(ctx context.Context, res *http.Response) *backend.Stream {
	last := -1
	if n, err := strconv.Atoi(res.Header.Get("X-Last-Line")); err == nil && n >= 0 {
		last = n
	}
	partial := last >= 0 || res.Header.Get("X-Incomplete") != ""
	resumed := partial
	if d.byRange() {
		resumed = res.StatusCode == http.StatusPartialContent
	}
	switch {
	case !resumed:
		d.from = backend.Position{} // the server sends the whole file
	case !d.byRange():
		d.from.Rest = "" // the server sends the whole line again
	}
	from := d.from
	unread := io.MultiReader(strings.NewReader(from.Rest), res.Body)
	from.Rest = ""
	from.Partial = partial
	from.Ranges = !encoded(res) && (res.StatusCode == http.StatusPartialContent || takesRanges(res.Header))
	from.ETag = strongETag(res.Header)
	return &backend.Stream{
		Lines: &lines{
			ctx: ctx, op: d.op, body: res.Body, reader: line.NewReader(unread, maxResultLine), from: from, last: last,
		},
		From: d.from, Partial: partial,
		Incomplete: strings.EqualFold(res.Header.Get("X-Incomplete"), "true"),
	}
}

// encoded reports a content encoding: a range would count encoded bytes.
func encoded(res *http.Response) bool {
	return res.Uncompressed || res.Header.Get("Content-Encoding") != ""
}

// takesRanges reports that the server may know ranges. Servers that do not say so
// often do; a server that does not sends the whole file.
func takesRanges(h http.Header) bool {
	return !strings.EqualFold(strings.TrimSpace(h.Get("Accept-Ranges")), "none")
}

// strongETag is the entity tag if equal tags mean equal bytes.
func strongETag(h http.Header) string {
	if tag := h.Get("ETag"); !strings.HasPrefix(tag, "W/") {
		return tag
	}
	return ""
}

// maxResultLine bounds one line of a result file.
const maxResultLine = 256 << 20

// errNotResults is the cause of the error for a file without a single result, for
// example an HTML page.
var errNotResults = errors.New("the response holds no results")

// lines are the lines of a download.
type lines struct {
	ctx    context.Context // the caller's
	op     string
	body   io.ReadCloser
	reader *line.Reader
	from   backend.Position
	last   int  // X-Last-Line: where the next read resumes; -1: not said
	whole  bool // read to its end

	results, malformed int
}

// Next returns the next result, see backend.Lines.
func (l *lines) Next() (line.Result, error) {
	text, err := l.reader.Next()
	switch {
	case err == nil:
		return l.parse(text)
	case errors.Is(err, line.ErrTooLong):
		l.results++ // too long for this process, but not a page in place of the file
		return line.Result{}, err
	case !errors.Is(err, io.EOF):
		return line.Result{}, l.broken(err)
	case l.results == 0 && l.malformed > 0:
		return line.Result{}, backend.NoAnswer(l.op, errNotResults)
	}
	l.whole = true
	return line.Result{}, io.EOF
}

func (l *lines) parse(text []byte) (line.Result, error) {
	result, err := line.Parse(text)
	switch {
	case err == nil:
		l.results++
	case bytes.Contains(text, []byte(`"custom_id"`)):
		l.results++ // a result that is damaged for good, and no page in place of the file
	default:
		l.malformed++
	}
	return result, err
}

// broken is the error of a transfer that broke off.
func (l *lines) broken(err error) error {
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	return backend.NoAnswer(l.op, err)
}

// Position is the place behind the last whole line. The lines of a file without a
// single result do not count, since the file is an error page. The server's
// X-Last-Line counts only at the end of the file.
func (l *lines) Position() backend.Position {
	at := l.from
	if l.results == 0 && l.malformed > 0 {
		return at
	}
	at.Line += l.reader.Lines()
	at.Byte += l.reader.Offset()
	if l.reader.Lines() == 0 { // a line may be longer than the server ever sends at once
		at.Rest = string(l.reader.Rest())
	}
	if l.whole && l.last >= l.from.Line {
		at.Line = l.last
	}
	return at
}

// Close ends the transfer.
func (l *lines) Close() error { return l.body.Close() }

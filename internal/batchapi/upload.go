package batchapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/openai/openai-go/v3/option"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/retry"
)

const (
	// submitTimeout is how long an upload or a create is repeated. The callers wait
	// for hours anyway, and a rate limit passes within minutes.
	submitTimeout = 30 * time.Minute

	// processTimeout is how long the provider may take to process an input file.
	processTimeout = 10 * time.Minute
)

// submitPolicy is for the requests that a new batch depends on and that may be
// sent twice.
var submitPolicy = retry.Policy{
	Classify: backend.Classify,
	Budget:   map[retry.Class]time.Duration{retry.Transient: submitTimeout, retry.RateLimited: submitTimeout},
}

// Prepare uploads the input file. A repeated upload costs a stray file at most.
// Where the provider processes files before a batch may use them, Prepare waits.
func (c *Client) Prepare(ctx context.Context, f line.File, p backend.Params) (backend.Handle, error) {
	attempts := submitPolicy.Start()
	for {
		made, err := c.upload(ctx, p, f)
		if err == nil {
			return made.handle(), c.awaitProcessed(ctx, made)
		}
		wait, again := attempts.Next(err)
		if !again {
			return backend.Handle{}, err
		}
		c.log.Warn("upload failed, trying again", "error", err, "in", wait)
		if err := retry.Sleep(ctx, wait); err != nil {
			return backend.Handle{}, err
		}
	}
}

// A file is the provider's description of a file.
type file struct {
	id     string
	status string // in lower case; many providers write none, or always the same
	raw    []byte
}

func (f file) handle() backend.Handle { return backend.Handle{FileID: f.id} }

// processing reports that the provider does not let a batch use the file yet.
func (f file) processing() bool {
	switch f.status {
	case "pending", "running", "notrunning", "processing":
		return true
	}
	return false
}

// awaitProcessed waits until the provider has processed a file. Only Azure is
// known to need the wait. A file that takes longer is left to Create, which
// repeats a create that the provider refuses for this reason.
func (c *Client) awaitProcessed(ctx context.Context, f file) error {
	began := time.Now()
	for attempt := 1; f.processing() && time.Since(began) < processTimeout; attempt++ {
		if err := retry.Sleep(ctx, retry.Backoff(attempt)); err != nil {
			return err
		}
		answer, err := c.object(ctx, http.MethodGet, filePath(f.id), nil)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			f.status, f.raw = strings.ToLower(answer.Get("status").String()), []byte(answer.Raw)
		}
	}
	if f.status == "error" {
		return &backend.Error{
			Op: "POST /" + c.profile.UploadPath, Uploading: true, Status: http.StatusBadRequest,
			Body: fileError(f.raw), RetryAfter: -1,
		}
	}
	return nil
}

// fileError is the body of the error for a file that the provider could not
// process.
func fileError(raw []byte) []byte {
	message := "the provider could not process the input file"
	if details := gjson.GetBytes(raw, "status_details").String(); details != "" {
		message = details
	}
	body, _ := json.Marshal(map[string]any{
		"error": map[string]string{"message": message, "type": "invalid_request_error", "code": "invalid_file"},
	})
	return clip(body)
}

// upload uploads an input file once. The file is streamed: the memory that an
// upload takes does not depend on the size of the file. The upload fails when
// nothing moves for five minutes.
func (c *Client) upload(ctx context.Context, p backend.Params, f line.File) (file, error) {
	head, tail, contentType, err := c.form(p)
	if err != nil {
		return file{}, err
	}
	f.Bare = c.profile.LineMembers != nil
	ctx, watch := watchStall(ctx)
	defer watch.stop()
	var gate gate
	defer gate.shut()
	open := func() io.ReadCloser {
		whole := io.MultiReader(bytes.NewReader(head), f.NewReader(), bytes.NewReader(tail))
		return &movingBody{ReadCloser: gate.guard(whole), watch: watch}
	}
	size := int64(len(head)) + f.Size() + int64(len(tail))
	path := c.profile.UploadPath
	res, err := c.do(ctx, http.MethodPost, path, open(), option.WithHeader("Content-Type", contentType), withLength(size, open))
	if err != nil {
		var failed *backend.Error
		if errors.As(err, &failed) {
			failed.Uploading = true
		}
		return file{}, stalled(err, "POST /"+path)
	}
	defer res.Body.Close()
	return readFile(ctx, "POST /"+path, res)
}

// readFile reads the response to an upload.
func readFile(ctx context.Context, op string, res *http.Response) (file, error) {
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if ctx.Err() != nil {
		return file{}, stalled(context.Cause(ctx), op)
	}
	made := file{
		id:     gjson.GetBytes(text, "id").String(),
		status: strings.ToLower(gjson.GetBytes(text, "status").String()),
		raw:    text,
	}
	if err == nil && made.id == "" {
		err = errNoID
	}
	if err != nil {
		return file{}, senseless(op, res.StatusCode, text, err)
	}
	return made, nil
}

// fields are the fields of the form beside the file.
func (c *Client) fields(p backend.Params) [][2]string {
	fields := [][2]string{{"purpose", c.profile.Purpose}}
	if name := c.profile.UploadNameField; name != "" {
		fields = append(fields, [2]string{name, p.Name})
	}
	if name := c.profile.UploadModelField; name != "" && len(p.Models) > 0 {
		fields = append(fields, [2]string{name, p.Models[0]})
	}
	if p.FileExpiry > 0 && c.profile.FileExpiryMax > 0 {
		fields = append(fields,
			[2]string{"expires_after[anchor]", "created_at"},
			[2]string{"expires_after[seconds]", strconv.Itoa(c.expiry(p.FileExpiry))})
	}
	return fields
}

// expiry is d in seconds, within the provider's bounds.
func (c *Client) expiry(d time.Duration) int {
	d = min(max(d, c.profile.FileExpiryMin), c.profile.FileExpiryMax)
	return int(d / time.Second)
}

// form returns the parts of the upload's body before and behind the file. The
// fields come first, since some servers need the purpose before the file.
func (c *Client) form(p backend.Params) (head, tail []byte, contentType string, err error) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for _, field := range c.fields(p) {
		if err := w.WriteField(field[0], field[1]); err != nil {
			return nil, nil, "", err
		}
	}
	part := textproto.MIMEHeader{}
	part.Set("Content-Disposition", multipart.FileContentDisposition("file", p.Name))
	part.Set("Content-Type", "application/jsonl")
	if _, err := w.CreatePart(part); err != nil {
		return nil, nil, "", err
	}
	head = bytes.Clone(body.Bytes())
	body.Reset()
	if err := w.Close(); err != nil {
		return nil, nil, "", err
	}
	return head, body.Bytes(), w.FormDataContentType(), nil
}

// withLength announces the length of a streamed body, since some servers refuse
// a chunked upload. It also lets the body be opened again: by net/http when a
// kept-alive connection was dead before a byte was sent, and by the RoundTripper
// that repeats a request with another credential.
func withLength(size int64, open func() io.ReadCloser) option.RequestOption {
	return option.WithMiddleware(func(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
		req.ContentLength = size
		req.GetBody = func() (io.ReadCloser, error) { return open(), nil }
		return next(req)
	})
}

// A gate ends the reading of an upload when upload returns. net/http may read on
// after a request has failed, when the lines may belong to another batch.
type gate struct {
	mu     sync.Mutex
	closed bool
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

func (g *gate) guard(r io.Reader) io.ReadCloser { return &gatedReader{Reader: r, gate: g} }

type gatedReader struct {
	io.Reader
	gate *gate
}

func (r *gatedReader) Read(p []byte) (int, error) {
	r.gate.mu.Lock()
	defer r.gate.mu.Unlock()
	if r.gate.closed {
		return 0, fs.ErrClosed
	}
	return r.Reader.Read(p)
}

func (r *gatedReader) Close() error { return nil }

package batchapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"sync"
	"time"

	"github.com/openai/openai-go/v3/option"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/line"
)

// An Upload says what goes with an input file.
type Upload struct {
	Name   string        // "batch-….jsonl"
	Model  string        // of the lines, where a file holds one
	Expiry time.Duration // after which the provider deletes the file; 0: its default
}

// Upload uploads an input file and returns its id. The file is streamed: what
// it takes of memory does not depend on its size. It fails when nothing moves
// for five minutes.
func (c *Client) Upload(ctx context.Context, u Upload, file line.File) (string, error) {
	head, tail, contentType, err := c.form(u)
	if err != nil {
		return "", err
	}
	ctx, watch := watchStall(ctx)
	defer watch.stop()
	var gate gate
	defer gate.shut()
	open := func() io.ReadCloser {
		whole := io.MultiReader(bytes.NewReader(head), file.NewReader(), bytes.NewReader(tail))
		return &watchedBody{ReadCloser: gate.guard(whole), watch: watch}
	}
	size := int64(len(head)) + file.Size() + int64(len(tail))
	path := c.profile.UploadPath
	res, err := c.do(ctx, http.MethodPost, path, open(), option.WithHeader("Content-Type", contentType), withLength(size, open))
	if err != nil {
		var failed *Error
		if errors.As(err, &failed) {
			failed.Uploading = true
		}
		return "", stalled(err, http.MethodPost, path)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	id := gjson.GetBytes(text, "id").String()
	if err == nil && id == "" {
		err = errNoID
	}
	if err != nil {
		return "", &Error{Op: "POST /" + path, Status: res.StatusCode, Body: clip(text), Err: err}
	}
	return id, nil
}

// fields are what the form says beside the file.
func (c *Client) fields(u Upload) [][2]string {
	fields := [][2]string{{"purpose", c.profile.Purpose}}
	if name := c.profile.UploadNameField; name != "" {
		fields = append(fields, [2]string{name, u.Name})
	}
	if name := c.profile.UploadModelField; name != "" && u.Model != "" {
		fields = append(fields, [2]string{name, u.Model})
	}
	if u.Expiry > 0 && c.profile.FileExpiryMax > 0 {
		fields = append(fields,
			[2]string{"expires_after[anchor]", "created_at"},
			[2]string{"expires_after[seconds]", strconv.Itoa(c.expiry(u.Expiry))})
	}
	return fields
}

// expiry is d in seconds, as near as the provider takes it.
func (c *Client) expiry(d time.Duration) int {
	d = min(max(d, c.profile.FileExpiryMin), c.profile.FileExpiryMax)
	return int(d / time.Second)
}

// form is what stands before and behind the file in the upload's body. The
// fields come first: some servers need the purpose before the file.
func (c *Client) form(u Upload) (head, tail []byte, contentType string, err error) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for _, field := range c.fields(u) {
		if err := w.WriteField(field[0], field[1]); err != nil {
			return nil, nil, "", err
		}
	}
	part := textproto.MIMEHeader{}
	part.Set("Content-Disposition", multipart.FileContentDisposition("file", u.Name))
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

// withLength announces a streamed body's length, since some servers refuse a
// chunked upload, and lets net/http open it again when a kept-alive connection
// turns out to be dead before a byte was sent.
func withLength(size int64, open func() io.ReadCloser) option.RequestOption {
	return option.WithMiddleware(func(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
		req.ContentLength = size
		req.GetBody = func() (io.ReadCloser, error) { return open(), nil }
		return next(req)
	})
}

// A gate ends the reading of an upload when Upload returns: net/http may read
// on after a request has failed, while the lines are no longer ours to read.
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

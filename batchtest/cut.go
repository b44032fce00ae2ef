package batchtest

import (
	"bytes"
	"io"
	"net/http"
)

// nowhere is a ResponseWriter that drops the answer.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header {
	if n.header == nil {
		n.header = http.Header{}
	}
	return n.header
}
func (n *nowhere) WriteHeader(int)             {}
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }

// torn breaks the connection after a number of bytes of the body.
type torn struct {
	http.ResponseWriter
	left int
}

func (t *torn) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// WriteHeader drops the length, so that the client notices even a tear at the end
// of the body.
func (t *torn) WriteHeader(status int) {
	t.Header().Del("Content-Length")
	t.ResponseWriter.WriteHeader(status)
}

func (t *torn) Write(p []byte) (int, error) {
	if len(p) < t.left {
		t.left -= len(p)
		return t.ResponseWriter.Write(p)
	}
	_, _ = t.ResponseWriter.Write(p[:t.left])
	t.abort()
	return 0, nil
}

// abort breaks the connection after the written bytes have arrived.
func (t *torn) abort() {
	_ = http.NewResponseController(t.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

// tornLine is how many bytes of the last line TruncateInLine sends.
const tornLine = 20

// truncated passes a number of whole lines and then a number of bytes, and
// drops the rest.
type truncated struct {
	http.ResponseWriter
	lines, bytes int
}

func (t *truncated) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// WriteHeader makes net/http end the body by closing the connection.
func (t *truncated) WriteHeader(status int) {
	t.Header().Del("Content-Length")
	t.Header().Set("Transfer-Encoding", "identity")
	t.ResponseWriter.WriteHeader(status)
}

func (t *truncated) Write(p []byte) (int, error) {
	if n, err := t.ResponseWriter.Write(p[:t.take(p)]); err != nil {
		return n, err
	}
	return len(p), nil
}

// take returns how many bytes of p pass, and counts them.
func (t *truncated) take(p []byte) (n int) {
	for t.lines > 0 {
		end := bytes.IndexByte(p[n:], '\n')
		if end < 0 {
			return len(p)
		}
		n += end + 1
		t.lines--
	}
	rest := min(len(p)-n, t.bytes)
	t.bytes -= rest
	return n + rest
}

// prepended writes a text before the body.
type prepended struct {
	http.ResponseWriter
	text string
}

func (p *prepended) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func (p *prepended) WriteHeader(status int) {
	p.Header().Del("Content-Length")
	p.ResponseWriter.WriteHeader(status)
	_, _ = io.WriteString(p.ResponseWriter, p.text)
}

func (p *prepended) Write(b []byte) (int, error) { return p.ResponseWriter.Write(b) }

package accounts

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
)

// A recovering RoundTripper turns a panic in the user's RoundTripper into an error, so
// that a request of a batch which panics is one that failed: it may be sent again, and
// a create is looked for.
type recovering struct {
	next http.RoundTripper
	log  *slog.Logger
}

// RoundTrip implements http.RoundTripper.
func (r recovering) RoundTrip(req *http.Request) (res *http.Response, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("the RoundTripper panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			res, err = nil, fmt.Errorf("the RoundTripper panicked: %v", p)
		}
	}()
	res, err = r.next.RoundTrip(req)
	if res != nil && res.Body != nil {
		res.Body = recoveringBody{res.Body, r.log}
	}
	return res, err
}

// A recoveringBody turns a panic in Read into an error.
type recoveringBody struct {
	io.ReadCloser
	log *slog.Logger
}

// Read implements io.Reader.
func (b recoveringBody) Read(p []byte) (n int, err error) {
	defer func() {
		if p := recover(); p != nil {
			b.log.Error("the body of a response panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			n, err = 0, fmt.Errorf("the body of a response panicked: %v", p)
		}
	}()
	return b.ReadCloser.Read(p)
}

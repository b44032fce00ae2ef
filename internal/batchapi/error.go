package batchapi

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
)

var (
	errStalled = errors.New("the provider stopped answering")
	errNoID    = errors.New("the response has no id")
	errNoList  = errors.New("the response is not a list")
)

// maxErrorBody bounds the body of an error response.
const maxErrorBody = 64 << 10

func clip(b []byte) []byte { return b[:min(len(b), maxErrorBody)] }

// senseless is the error of a successful but unusable response.
func senseless(op string, status int, body []byte, err error) *backend.Error {
	e := backend.NoAnswer(op, err)
	e.Status, e.Body = status, clip(body)
	return e
}

// newError returns the error of a response.
func (c *Client) newError(method, path string, res *http.Response) *backend.Error {
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	e := &backend.Error{
		Op: method + " /" + path, Status: res.StatusCode, Header: res.Header, Body: body,
		RetryAfter: backend.RetryAfter(res.Header, time.Now()),
	}
	e.NameRedirect(c.base)
	return e
}

// sameServer follows a redirect of a GET on the same server. A redirected POST
// would lose its body or be sent twice, and another server must not see the
// credential.
func sameServer(req *http.Request, before []*http.Request) error {
	first := before[0]
	same := req.URL.Scheme == first.URL.Scheme && req.URL.Host == first.URL.Host
	if first.Method != http.MethodGet || !same || len(before) > 10 {
		return http.ErrUseLastResponse
	}
	return nil
}

// stalled turns the end of a timeout of the package into an Error. The end of the
// caller's context stays as it is.
func stalled(err error, op string) error {
	if errors.Is(err, errStalled) {
		return backend.NoAnswer(op, errStalled)
	}
	return err
}

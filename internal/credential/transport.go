package credential

import (
	"bytes"
	"io"
	"net/http"
)

// maxRefusal bounds the body of a 401 response.
const maxRefusal = 64 << 10

// Transport returns a RoundTripper that sends each request through base with the
// accepted credential, or else the newest. A credential that was added since is
// tried first. After a 401 the RoundTripper sends
// the request again with each remaining credential of the Set, newest first, and
// then with a credential from the Set's Fetch. The response is the last 401 if the
// provider accepts no credential. A request with a body is repeated only if the
// request has a GetBody.
//
// Without credentials and without a Fetch, requests are sent unchanged. Requests
// with a context of Omit are sent unchanged, too.
func (s *Set) Transport(base http.RoundTripper) http.RoundTripper {
	return &transport{set: s, base: base}
}

type transport struct {
	set  *Set
	base http.RoundTripper
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if omitted(req.Context()) {
		return t.base.RoundTrip(req)
	}
	a := attempt{transport: t, req: req}
	first, err := a.first()
	if err != nil {
		closeBody(req)
		return nil, err
	}
	if first == nil {
		return t.base.RoundTrip(req)
	}
	return a.run(first)
}

// An attempt is a request and the credentials that were tried.
type attempt struct {
	*transport
	req     *http.Request
	tried   []*kept
	fetched bool
}

// first is the credential to begin with, or nil if the Set has none.
func (a *attempt) first() (*kept, error) {
	if k := a.set.first(replayable(a.req)); k != nil || a.set.fetch == nil {
		return k, nil
	}
	a.fetched = true
	return a.set.fetched(a.req.Context())
}

// run sends the request with each credential in turn, until the provider accepts
// a credential or none is left.
func (a *attempt) run(k *kept) (*http.Response, error) {
	req := a.req.Clone(a.req.Context())
	for {
		a.tried = append(a.tried, k)
		set(req.Header, k.header)
		res, err := a.base.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		a.set.note(k, res.StatusCode)
		if res.StatusCode != http.StatusUnauthorized {
			return res, nil
		}
		if k = a.another(res); k == nil {
			return res, nil
		}
		if req, err = replay(a.req); err != nil {
			return res, nil //nolint:nilerr // the refusal says more than the error
		}
	}
}

// another returns the credential to try after a 401, or nil. The response is read
// and closed first, to free the connection.
func (a *attempt) another(res *http.Response) *kept {
	if !replayable(a.req) {
		return nil
	}
	detach(res)
	if k := a.set.next(a.tried); k != nil {
		return k
	}
	if a.set.fetch == nil || a.fetched {
		return nil
	}
	a.fetched = true
	k, err := a.set.fetched(a.req.Context())
	for _, tried := range a.tried {
		if k == tried {
			return nil
		}
	}
	if err != nil {
		return nil
	}
	return k
}

// replayable reports that a request can be sent again.
func replayable(req *http.Request) bool {
	return req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
}

// replay is a copy of a request with a new body.
func replay(req *http.Request) (*http.Request, error) {
	next := req.Clone(req.Context())
	if req.Body == nil || req.Body == http.NoBody {
		return next, nil
	}
	body, err := req.GetBody()
	next.Body = body
	return next, err
}

// detach reads the body of a response into memory and closes the transfer.
func detach(res *http.Response) {
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxRefusal))
	res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(body))
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

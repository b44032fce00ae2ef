package flexapi

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// errNotSent is wrapped by the error of a request that was never sent: no connection
// could be opened to the provider or to a proxy, or the TLS handshake failed.
var errNotSent = errors.New("the provider could not be reached")

// Transport returns a RoundTripper that sends requests through base, and whose errors
// say which requests were never sent: a Client sends such a request again. base must not
// be wrapped in a RoundTripper that makes requests of its own, for example for a
// credential, with the contexts of the requests.
//
// The types of errors do not tell a TLS handshake, or a proxy that refuses to connect,
// from a connection that broke after the request. The hooks of net/http/httptrace do: a
// request without a connection was not sent. A request that had a connection may have
// been sent, also if no connection to a further host could be opened: base may have
// tried that host after the first host took the request. A RoundTripper that calls no
// hooks is judged by the types of its errors alone.
func Transport(base http.RoundTripper) http.RoundTripper { return unsent{base} }

type unsent struct{ base http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (u unsent) RoundTrip(req *http.Request) (*http.Response, error) {
	var asked, got atomic.Bool
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GetConn: func(string) { asked.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { got.Store(true) },
	})
	res, err := u.base.RoundTrip(req.WithContext(ctx))
	if err != nil && !got.Load() && (asked.Load() || notDialed(err)) {
		err = fmt.Errorf("%w: %w", errNotSent, err)
	}
	return res, err
}

// notDialed reports that no connection could be opened to the provider or to a proxy.
func notDialed(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && (dial.Op == "dial" || dial.Op == "proxyconnect")
}

package proxy

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// minQuerySecret is the length of the shortest value in the query of the base URL
// that counts as a credential.
const minQuerySecret = 16

// addSecrets adds the credentials that the proxy sends upstream to Options.Secrets.
func (p *Proxy) addSecrets() {
	p.opts.Secrets.Add(p.opts.APIKey)
	for _, values := range p.upstream.base.Query() {
		for _, value := range values {
			if len(value) >= minQuerySecret {
				p.opts.Secrets.Add(value)
			}
		}
	}
}

// cleanHeader removes from a response header what is not meant for the client. A
// cookie of the upstream may stand for the credential of a call, as that of a server
// with a login, and a browser would send the cookie to all servers on the proxy's host.
func (p *Proxy) cleanHeader(h http.Header, status int) {
	removeAccessControl(h)
	delete(h, "Set-Cookie")
	for name, values := range h {
		for i, value := range values {
			if clean := p.opts.Secrets.Value(value, isError(status)); clean != value {
				h[name][i] = clean
			}
		}
	}
}

func isError(status int) bool { return status >= 400 }

// cleanBody returns the body of a response without the credentials of the proxy.
// Some providers repeat the key in an error message, whole or in part.
func (p *Proxy) cleanBody(res *http.Response) io.Reader {
	return p.opts.Secrets.Reader(res.Body, isError(res.StatusCode))
}

// cleanResponse removes from a response of the upstream what is not meant for the
// client, and converts an error page.
func (p *Proxy) cleanResponse(res *http.Response) error {
	p.cleanHeader(res.Header, res.StatusCode)
	switch {
	case res.StatusCode == http.StatusSwitchingProtocols:
		return nil // the body is the connection
	case isError(res.StatusCode) && isEncoded(res) && p.upstream.credential != "":
		hideBody(res) // the body cannot be searched
	}
	if err := wrapErrorPage(res); err != nil {
		return err
	}
	res.Body = cleanedBody{p.cleanBody(res), res.Body, func() { p.cleanHeader(res.Trailer, res.StatusCode) }}
	return nil
}

// A cleanedBody is a response body without credentials.
type cleanedBody struct {
	io.Reader
	src    io.Closer
	closed func() // called when the trailers have arrived
}

// Close implements io.Closer. The reverse proxy sends the trailers after Close.
func (b cleanedBody) Close() error {
	err := b.src.Close()
	b.closed()
	return err
}

// isEncoded reports whether the body is compressed, although the proxy did not ask
// for compression.
func isEncoded(res *http.Response) bool {
	encoding := res.Header.Get("Content-Encoding")
	return encoding != "" && !strings.EqualFold(encoding, "identity") && res.Request.Method != http.MethodHead
}

// hideBody replaces the body by an error with the same status.
func hideBody(res *http.Response) {
	_ = res.Body.Close() // nothing more is read
	delete(res.Header, "Content-Encoding")
	replaceBody(res, upstreamError(res, "").body())
}

// replaceBody replaces the body, which was closed, by JSON.
func replaceBody(res *http.Response, body []byte) {
	res.Body = io.NopCloser(bytes.NewReader(body))
	res.ContentLength = int64(len(body))
	res.Header.Set("Content-Type", "application/json")
	res.Header.Set("Content-Length", strconv.Itoa(len(body)))
}

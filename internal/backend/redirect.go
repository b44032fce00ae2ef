package backend

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
)

// Redirected reports that the provider redirects the request to the address in
// the message. The base URL is wrong then; a retry does not help.
func (e *Error) Redirected() bool {
	return e.Err == nil && e.Status >= http.StatusMultipleChoices && e.Status < http.StatusBadRequest
}

// Location is the address that the redirect of a request to base names, or nil.
func (e *Error) Location(base *url.URL) *url.URL {
	if !e.Redirected() || e.Header.Get("Location") == "" {
		return nil
	}
	to, err := base.Parse(e.Header.Get("Location"))
	if err != nil {
		return nil
	}
	return to
}

// NameRedirect makes Message name the address of a redirect, if the error is a redirect
// of a request to base. The message has no user and no query, since both may be secret.
func (e *Error) NameRedirect(base *url.URL) {
	to := e.Location(base)
	if to == nil {
		return
	}
	public := *to
	public.User, public.RawQuery, public.Fragment = nil, "", ""
	message := fmt.Sprintf("the provider redirects this request to %s; the base URL must name that server", &public)
	e.Body, _ = json.Marshal(map[string]any{
		"error": map[string]string{"message": message, "type": "invalid_request_error", "code": "redirected"},
	})
}

// WithPath returns a copy of u with another path, which is escaped.
func WithPath(u *url.URL, escaped string) *url.URL {
	c := *u
	path, err := url.PathUnescape(escaped)
	if err != nil {
		path = escaped // a URL cannot have such a path
	}
	c.Path, c.RawPath = path, escaped
	return &c
}

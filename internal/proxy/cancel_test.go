package proxy_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/proxy"
)

// TestCancelAccess checks who can cancel a batch: nobody for a page of another
// origin, no page key, no wrong key, and no client key for calls of another key.
func TestCancelAccess(t *testing.T) {
	batches := map[string][]string{"mine": {"key 1"}, "shared": {"key 1", "key 2"}, "unnamed": nil}
	keyed := proxy.Options{ClientKeys: []string{"one", "two"}}
	open := proxy.Options{ClientKeys: []string{"one"}, AllowAccountRoutes: true}
	paged := proxy.Options{ClientKeys: []string{"one"}, PageKeys: []string{"page"}}
	header := []string{"Autobatcher-Page", "cancel"}
	form := []string{"Origin", "http://proxy", "Sec-Fetch-Site", "same-origin"}
	with := func(more ...string) []string { return slices.Concat(header, more) }
	for _, test := range []struct {
		name           string
		o              proxy.Options
		method, target string
		header         []string
		status         int
	}{
		{"no keys", proxy.Options{}, "POST", "?id=mine", header, 204},
		{"no keys, same origin", proxy.Options{}, "POST", "?id=mine", with("Origin", "http://proxy", "Sec-Fetch-Site", "same-origin"), 204},
		{"no keys, another origin", proxy.Options{}, "POST", "?id=mine", with("Origin", "http://evil.example"), 403},
		{"no keys, another site", proxy.Options{}, "POST", "?id=mine", with("Sec-Fetch-Site", "cross-site"), 403},
		{"without the header", proxy.Options{}, "POST", "?id=mine", nil, 403},
		{"a form of the page", proxy.Options{}, "POST", "?id=mine", form, 303},
		{"a form of a page of the same site", proxy.Options{}, "POST", "?id=mine", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"a form that the user has opened", proxy.Options{}, "POST", "?id=mine", []string{"Sec-Fetch-Site", "none"}, 403},
		{"a form of the page, without TLS", proxy.Options{}, "POST", "?id=mine", []string{"Origin", "http://proxy"}, 303},
		{"a form of a page of another origin, without TLS", proxy.Options{}, "POST", "?id=mine", []string{"Origin", "http://evil.example"}, 403},
		{"a form of a page without an origin", proxy.Options{}, "POST", "?id=mine", []string{"Origin", "null"}, 403},
		{"a form, unknown batch", proxy.Options{}, "POST", "?id=unknown", form, 404},
		{"a form, own batch", keyed, "POST", "?id=mine&key=one", form, 303},
		{"a form, batch of another key", keyed, "POST", "?id=mine&key=two", form, 403},
		{"a form, no key", keyed, "POST", "?id=mine", form, 401},
		{"GET", proxy.Options{}, "GET", "?id=mine", header, 405},
		{"preflight", proxy.Options{}, "OPTIONS", "?id=mine", header, 405},
		{"unknown batch", proxy.Options{}, "POST", "?id=unknown", header, 404},
		{"no batch", proxy.Options{}, "POST", "", header, 404},
		{"no key", keyed, "POST", "?id=mine", header, 401},
		{"wrong key", keyed, "POST", "?id=mine&key=wrong", header, 401},
		{"own batch", keyed, "POST", "?id=mine&key=one", header, 204},
		{"own batch, bearer", keyed, "POST", "?id=mine", with("Authorization", "Bearer one"), 204},
		{"batch of another key", keyed, "POST", "?id=mine&key=two", header, 403},
		{"shared batch", keyed, "POST", "?id=shared&key=one", header, 403},
		{"batch without names", keyed, "POST", "?id=unnamed&key=one", header, 403},
		{"own batch, another origin", keyed, "POST", "?id=mine&key=one", with("Origin", "http://evil.example"), 403},
		{"open routes", open, "POST", "?id=unnamed&key=one", header, 204},
		{"page key", paged, "POST", "?id=mine&key=page", header, 403},
		{"page key without client keys", proxy.Options{PageKeys: []string{"page"}}, "POST", "?id=mine&key=page", header, 403},
		{"no page key", proxy.Options{PageKeys: []string{"page"}}, "POST", "?id=mine", header, 401},
		{"forwarded keys", proxy.Options{ForwardKey: true}, "POST", "?id=mine", header, 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			var cancelled []string
			o := test.o
			o.Page = page
			o.CancelBatch = func(_ context.Context, id string) error {
				cancelled = append(cancelled, id)
				return nil
			}
			o.BatchCallers = func(id string) ([]string, bool) {
				callers, found := batches[id]
				return callers, found
			}
			res := ask(t, newProxy(t, o), test.method, "/autobatcher/cancel"+test.target, "proxy", test.header...)
			if res.StatusCode != test.status || (len(cancelled) == 1) != (test.status < 400) {
				t.Errorf("%s, cancelled %v: %s", res.Status, cancelled, readAll(t, res))
			}
			want := map[string]string{"?id=mine": "../", "?id=mine&key=one": "../?key=one"}[test.target]
			if got := res.Header.Get("Location"); test.status == 303 && got != want {
				t.Errorf("leads to %q, want %q", got, want)
			}
		})
	}
}

// A cookie that the page was given authenticates a cancellation.
func TestCancelWithCookie(t *testing.T) {
	o := proxy.Options{
		ClientKeys: []string{"one", "two"}, Page: page,
		CancelBatch:  func(context.Context, string) error { return errors.New("the key sk-upstream is not known") },
		BatchCallers: func(string) ([]string, bool) { return []string{"key 2"}, true },
	}
	p := newProxy(t, o)
	for key, want := range map[string]string{"one": "route_closed", "two": "cancel_failed"} {
		cookie := ask(t, p, "GET", "/?key="+key, "proxy").Cookies()[0]
		res := ask(t, p, "POST", "/autobatcher/cancel?id=b", "proxy", "Cookie", cookie.String(), "Autobatcher-Page", "cancel")
		if code, message := apiError(t, res); code != want || strings.Contains(message, "sk-upstream") {
			t.Errorf("%s: %s %s: %s", key, res.Status, code, message)
		}
	}
}

// Without the functions, nothing can be cancelled.
func TestCancelIsOff(t *testing.T) {
	res := ask(t, newProxy(t, proxy.Options{Page: page}), "POST", "/autobatcher/cancel?id=b", "proxy", "Autobatcher-Page", "cancel")
	if res.StatusCode != http.StatusNotFound {
		t.Error(res.Status)
	}
}

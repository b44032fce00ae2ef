// Package account reads from the headers of a request which account pays for
// the request. Only requests of the same account may share a batch, because
// the callers of a batch could otherwise read each other's results.
//
// An account is a credential (an API key, a bearer token) together with the
// headers that select an organization, a project, a tenant or a user.
//
// All functions are safe for concurrent use. A nil http.Header is an empty one.
package account

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Identity returns every header of h that names an account, credentials
// included, as one string. Two requests have the same identity exactly if these
// headers are equal. The names in extra, in any case, name accounts too,
// whatever the rules of this package say about the names. A request without
// any such header has the identity "".
//
// The identity holds credentials: keep the string in memory only, and never log
// the string.
func Identity(h http.Header, extra ...string) string {
	var names []string
	for name, values := range h {
		if len(values) > 0 && namesAccount(name, extra) {
			names = append(names, name)
		}
	}
	if len(names) == 1 && len(h[names[0]]) == 1 {
		return pair(names[0], h[names[0]][0])
	}
	slices.Sort(names)
	var pairs []string
	for _, name := range names {
		for _, value := range h[name] {
			pairs = append(pairs, pair(name, value))
		}
	}
	return strings.Join(pairs, "\n")
}

// Headers returns the headers from which Identity made the identity.
func Headers(identity string) http.Header {
	h := make(http.Header)
	for line := range strings.SplitSeq(identity, "\n") {
		if name, value, ok := strings.Cut(line, ": "); ok {
			h[name] = append(h[name], unescape.Replace(value))
		}
	}
	return h
}

// Split divides h, which is usually a result of Headers, into the headers that
// hold a credential and the other headers. Every header of h is in exactly one
// result. The values are shared with h. The two results are never nil.
//
// A caller whose credential changes (a token that expires, a rotated key) keeps
// the headers in rest, and so stays in the same organization and project.
func Split(h http.Header) (credential, rest http.Header) {
	credential, rest = make(http.Header), make(http.Header)
	for name, values := range h {
		if holdsCredential(name) {
			credential[name] = values
		} else {
			rest[name] = values
		}
	}
	return credential, rest
}

// A newline separates the pairs of an identity. Escaping keeps a newline inside
// a value from forging a second header.
var (
	escape   = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	unescape = strings.NewReplacer(`\\`, `\`, `\n`, "\n")
)

func pair(name, value string) string { return name + ": " + escape.Replace(value) }

// A class says what the name of a header tells about the account.
type class struct{ credential, tenant bool }

// classes remembers the classes of names: the headers of a program have the same names in
// each request. Callers choose the names, and so the number and the length are bounded.
var (
	classes sync.Map // of string to class
	classed atomic.Int32
)

const (
	maxClasses = 1000
	maxName    = 100 // bytes of a name that is remembered
)

// classOf returns the class of a name.
func classOf(name string) class {
	if known, ok := classes.Load(name); ok {
		return known.(class) //nolint:forcetypeassert // only classes are stored
	}
	c := class{credential: holdsCredential(name), tenant: namesTenant(name)}
	if len(name) <= maxName && classed.Load() < maxClasses && classed.Add(1) <= maxClasses {
		classes.Store(strings.Clone(name), c)
	}
	return c
}

// namesAccount reports whether the header name says which account pays. A wrong
// yes only makes batches smaller, while a wrong no lets two tenants share a
// file, so the rules prefer yes. A header that differs in every request must
// not match, because each request would then be a batch of its own.
func namesAccount(name string, extra []string) bool {
	c := classOf(name)
	return c.credential || c.tenant || slices.ContainsFunc(extra, func(e string) bool {
		return strings.EqualFold(e, name)
	})
}

// holdsCredential reports whether the header name is that of a secret.
func holdsCredential(name string) bool {
	switch name {
	case "Authorization", "Api-Key", "X-Api-Key":
		return true
	}
	return matches(name, credentialWords)
}

// namesTenant reports whether the header name selects an organization, a
// project, a user or another part of an account.
func namesTenant(name string) bool { return matches(name, tenantWords) }

var (
	credentialWords = []string{"auth", "key", "token", "secret", "cookie", "credential", "password", "cf-access"}
	tenantWords     = []string{
		"account", "billing", "client-id", "company", "consumer", "customer", "department", "email", "group-id",
		"impersonate", "maas", "member", "namespace", "org", "owner", "partner", "principal", "project", "subscription",
		"team", "tenant", "user", "workspace", "x-goog-",
	}
)

// matches reports whether the lower-case name contains one of the words. The
// name of a header that never identifies an account contains none of them.
func matches(name string, words []string) bool {
	if neutral(name) {
		return false
	}
	name = strings.ToLower(name)
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(name, word) })
}

// neutral reports whether the header name contains an account's word by
// accident. The first case spares the most frequent headers the search.
func neutral(name string) bool {
	switch name {
	case "Content-Type", "Content-Length", "Accept", "Accept-Encoding", "User-Agent":
		return true
	}
	name = strings.ToLower(name)
	return slices.ContainsFunc(neutralPrefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) ||
		strings.Contains(name, "user-agent") || strings.Contains(name, "idempotency")
}

// neutralPrefixes begin the names of headers that SDKs ("X-Stainless-Lang"),
// browsers ("Sec-Fetch-User") and this library set.
var neutralPrefixes = []string{"x-stainless-", "sec-", "autobatcher-", "x-goog-api-client", "x-goog-request-"}

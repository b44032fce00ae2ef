// Package payer tells who pays for a request, and so who may share a batch with
// it: two callers of whom one could be another must never meet in a file.
package payer

import (
	"net/http"
	"slices"
	"strings"
)

// Of is every header that says who pays, as it goes upstream with files and
// batches. It holds credentials.
func Of(h http.Header) string {
	var names []string
	for name := range h {
		if saysWho(name) {
			names = append(names, name)
		}
	}
	if len(names) == 1 && len(h[names[0]]) == 1 {
		return names[0] + ": " + h[names[0]][0]
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		for _, value := range h[name] {
			if b.Len() > 0 {
				b.WriteByte('\n')
			}
			b.WriteString(name + ": " + value)
		}
	}
	return b.String()
}

// Header is the inverse of Of.
func Header(payer string) http.Header {
	h := make(http.Header)
	for pair := range strings.SplitSeq(payer, "\n") {
		if name, value, ok := strings.Cut(pair, ": "); ok {
			h[name] = append(h[name], value)
		}
	}
	return h
}

// saysWho errs on the side of keeping callers apart: gateways have many
// names for a credential, and two tenants in one file would read each other's
// answers.
func saysWho(name string) bool {
	switch name {
	case "Authorization", "Api-Key", "Openai-Organization", "Openai-Project":
		return true
	case "Content-Type", "Content-Length", "Accept", "Accept-Encoding", "User-Agent", "Idempotency-Key":
		return false
	}
	name = strings.ToLower(name)
	if strings.HasPrefix(name, "x-stainless-") {
		return false
	}
	return strings.HasPrefix(name, "x-goog-") || slices.ContainsFunc(words, func(word string) bool {
		return strings.Contains(name, word)
	})
}

var words = []string{"auth", "key", "token", "secret", "cookie", "credential", "tenant", "organization", "project", "account", "cf-access"}

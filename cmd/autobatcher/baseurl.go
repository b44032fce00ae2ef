package main

import (
	"net/url"
	"strings"

	"github.com/autobatcher/autobatcher/internal/endpoint"
	"github.com/autobatcher/autobatcher/provider"
)

// checkBase returns an error with the right URL if u has an endpoint at its end, or
// lacks the path that the provider documents.
func checkBase(u *url.URL, p provider.Profile) error {
	path := strings.TrimRight(u.Path, "/")
	for _, name := range append(endpoint.Routes(&p), "/completions") {
		if base, found := strings.CutSuffix(path, name); found && !strings.HasSuffix(base, "/deployments") {
			return usagef("--base-url is %s, which is the URL of an endpoint; did you mean %s?", u.Redacted(), withPath(u, base, p))
		}
	}
	if path == "" && p.BasePath != "" {
		return usagef("--base-url is %s, which lacks the path of the API; did you mean %s?", u.Redacted(), withPath(u, path, p))
	}
	return nil
}

// withPath returns u with the path, or with the path that the provider documents if
// the path is empty.
func withPath(u *url.URL, path string, p provider.Profile) string {
	fixed := *u
	fixed.Path, fixed.RawPath = path, ""
	if path == "" {
		fixed.Path = p.BasePath
	}
	return fixed.Redacted()
}

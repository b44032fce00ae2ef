package provider

import (
	"net/url"
	"slices"
	"strings"
)

// knownEndpoints are path suffixes of OpenAI-compatible APIs that a shorter
// endpoint could be mistaken for: "/chat/completions" ends in "/completions",
// and is a different call.
var knownEndpoints = []string{
	chat, "/fim/completions", "/agents/completions", "/usage/completions", "/usage/embeddings", "/usage/moderations",
}

// Suffix returns the endpoint of a call, given the path of the call's URL:
// "/chat/completions" for "/v1/chat/completions". The result is an entry of
// Endpoints (or of the default endpoints), or "" if the provider does not
// batch such calls. A Refusal is ignored, so that a call which could be
// batched elsewhere can be refused with a reason.
//
// The path is split after a slash, and the longest endpoint is taken:
// "/completions" is not the suffix of "/v1/chat/completions".
func (p Profile) Suffix(path string) string {
	suffix := longestSuffix(path, p.endpoints())
	if len(longestSuffix(path, knownEndpoints)) > len(suffix) {
		return ""
	}
	return suffix
}

func longestSuffix(path string, suffixes []string) (longest string) {
	for _, s := range suffixes {
		if len(s) > len(longest) && strings.HasSuffix(path, s) {
			longest = s
		}
	}
	return longest
}

// LineURL returns the url of a line for calls to the endpoint suffix:
// "/chat/completions" becomes "/v1/chat/completions" nearly everywhere.
func (p Profile) LineURL(suffix string) string { return p.LinePrefix + suffix }

// Endpoint returns the endpoint of a batch of calls to the endpoint suffix.
func (p Profile) Endpoint(suffix string) string { return p.EndpointPrefix + suffix }

// BatchPath returns the path below which files and batches are found, given the
// path of a call's base URL. The result is the same path without a trailing
// slash, cut off at BasePathCut if the profile has a BasePathCut.
func (p Profile) BatchPath(basePath string) string {
	base, _, _ := p.cutBase(basePath)
	return strings.TrimRight(base, "/")
}

// Deployment returns the name of the deployment that a call goes to, given the
// escaped path of the call's URL or of its base URL. The name stands after
// BasePathCut: "gpt" in "/openai/deployments/gpt/chat/completions". In real time
// the provider obeys the path and ignores the model in the body, so the line of
// the call must name the deployment as its model. Ok is false if the path names
// no deployment, which is the rule at every provider but Azure's dated API.
func (p Profile) Deployment(path string) (name string, ok bool) {
	_, rest, found := p.cutBase(path)
	if !found {
		return "", false
	}
	name, _, _ = strings.Cut(rest, "/")
	name, err := url.PathUnescape(name)
	return name, err == nil && name != ""
}

// cutBase splits a path around the first BasePathCut. Found is false, and base
// the whole path, if the path does not contain BasePathCut.
func (p Profile) cutBase(path string) (base, rest string, found bool) {
	if p.BasePathCut == "" {
		return path, "", false
	}
	// With a final slash, a path that ends in the segment itself matches, too.
	base, rest, found = strings.Cut(path+"/", p.BasePathCut)
	if !found {
		return path, "", false
	}
	return base, rest, true
}

// namesHeader reports whether name can be the name of an HTTP header.
func namesHeader(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r > '~' || slices.Contains([]rune(`()<>@,;:\"/[]?={}`), r)
	})
}

package provider

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// constructors lists every profile in the order of docs/providers.md. Of
// profiles that share a host, the profile with a BasePathCut, or with a path in its
// Hosts, stands first.
var constructors = []func() Profile{
	OpenAI, AzureModels, AzureLegacy, Azure, Doubleword,
	Groq, Together, Nebius, Novita, Cerebras, Perplexity, Parasail, DeepInfra, SiliconFlow, Moonshot, Zhipu, DashScope, Voyage,
	DashScopeBatchChat, ArkBatchChat,
	LLMD, LiteLLM,
	Generic,
	anthropic, ark, bedrock, fireworks, mistral, openRouter, xAI,
}

// ForURL returns the profile whose Hosts match the host of u, else [Generic].
// Azure's APIs share their hosts, and the path of u decides between them.
// Check Refusal: the provider may offer no batches.
func ForURL(u *url.URL) Profile {
	host := hostname(u.Host)
	for _, construct := range constructors {
		p := construct()
		if p.matches(host, u.Path) && strings.Contains(u.Path, p.BasePathCut) {
			return p
		}
	}
	return Generic()
}

// ForHost returns the profile whose Hosts match, else [Generic]. A port, upper
// case and a trailing dot do not matter. Azure hosts get [Azure]; only a path can
// show that a call is for [AzureLegacy], so prefer [ForURL] if a path is known.
func ForHost(host string) Profile { return ForURL(&url.URL{Host: host}) }

// ByName returns the profile with the name, in upper or lower case. The error for
// an unknown name lists all names.
func ByName(name string) (Profile, error) {
	for _, construct := range constructors {
		if p := construct(); strings.EqualFold(p.Name, name) {
			return p, nil
		}
	}
	return Profile{}, fmt.Errorf("unknown provider %q; known are %s", name, strings.Join(Names(), ", "))
}

// Names returns the sorted names of all profiles, including those with a Refusal.
func Names() []string {
	names := make([]string, 0, len(constructors))
	for _, construct := range constructors {
		names = append(names, construct().Name)
	}
	slices.Sort(names)
	return names
}

func (p Profile) matches(host, path string) bool {
	return slices.ContainsFunc(p.Hosts, func(pattern string) bool {
		pattern, start, limited := strings.Cut(pattern, "/")
		if limited && !strings.HasPrefix(path+"/", "/"+start+"/") {
			return false
		}
		before, after, wild := strings.Cut(pattern, "*")
		if wild {
			return len(host) > len(before)+len(after) && strings.HasPrefix(host, before) && strings.HasSuffix(host, after)
		}
		return host == pattern
	})
}

// hostname removes the port, upper case and a trailing dot, which DNS ignores.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

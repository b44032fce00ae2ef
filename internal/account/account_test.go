package account_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/account"
)

// headers is a request with everything that an SDK sends, and one more header.
func headers(name string) http.Header {
	h := http.Header{
		"Authorization": {"Bearer k"}, "Content-Type": {"application/json"}, "Content-Length": {"9"}, "Accept": {"*/*"},
		"Accept-Encoding": {"gzip"}, "User-Agent": {"OpenAI/Go"}, "X-Stainless-Lang": {"go"},
	}
	h.Set(name, "v")
	return h
}

// TestWhichHeadersNameAnAccount decides for each name whether two requests that
// differ in the header may share a batch.
func TestWhichHeadersNameAnAccount(t *testing.T) {
	const credential, tenant, neither = "credential", "tenant", "neither"
	for _, tt := range []struct{ kind, name string }{
		{credential, "Api-Key"},
		{credential, "X-Api-Key"},
		{credential, "X-Goog-Api-Key"},
		{credential, "Ocp-Apim-Subscription-Key"},
		{credential, "Cookie"},
		{credential, "X-Auth-Token"},
		{credential, "X-Amz-Security-Token"},
		{credential, "X-Client-Secret"},
		{credential, "X-Gateway-Credential"},
		{credential, "Helicone-Auth"},
		{credential, "Cf-Access-Jwt-Assertion"},
		{credential, "Proxy-Authorization"},

		{tenant, "OpenAI-Organization"},
		{tenant, "OpenAI-Project"},
		{tenant, "X-Org-Id"},
		{tenant, "X-Scope-OrgID"},
		{tenant, "X-User-Id"},
		{tenant, "X-Workspace-Id"},
		{tenant, "X-MaaS-Username"},
		{tenant, "X-MaaS-Group"},
		{tenant, "X-Team"},
		{tenant, "X-Tenant-Id"},
		{tenant, "X-Customer-Id"},
		{tenant, "X-Consumer-Username"},
		{tenant, "X-Subscription-Id"},
		{tenant, "X-Account"},
		{tenant, "ChatGPT-Account-ID"},
		{tenant, "X-Client-Id"},
		{tenant, "X-Forwarded-Email"},
		{tenant, "X-Goog-User-Project"},
		{tenant, "Helicone-User-Id"},

		{neither, "User-Agent"},
		{neither, "X-Amz-User-Agent"},
		{neither, "X-Stainless-Retry-Count"},
		{neither, "X-Stainless-Helper-Method"},
		{neither, "Idempotency-Key"},
		{neither, "X-Idempotency-Key"},
		{neither, "X-Request-Id"},
		{neither, "X-Client-Request-Id"},
		{neither, "X-Correlation-Id"},
		{neither, "Traceparent"},
		{neither, "Tracestate"},
		{neither, "Baggage"},
		{neither, "Sentry-Trace"},
		{neither, "X-B3-Traceid"},
		{neither, "X-Amzn-Trace-Id"},
		{neither, "X-Cloud-Trace-Context"},
		{neither, "X-Datadog-Parent-Id"},
		{neither, "X-Goog-Api-Client"},
		{neither, "Sec-Fetch-User"},
		{neither, "Sec-Websocket-Key"},
		{neither, "Origin"},
		{neither, "Referer"},
		{neither, "Forwarded"},
		{neither, "X-Forwarded-For"},
		{neither, "X-Real-Ip"},
		{neither, "Via"},
		{neither, "Date"},
		{neither, "Upgrade-Insecure-Requests"},
		{neither, "Cache-Control"},
		{neither, "OpenAI-Beta"},
		{neither, "Autobatcher-Mode"},
		{neither, "Autobatcher-Completion-Window"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := account.Headers(account.Identity(headers(tt.name)))
			inIdentity := h.Get(tt.name) == "v"
			secret, rest := account.Split(h)
			got := neither
			switch {
			case inIdentity && secret.Get(tt.name) == "v":
				got = credential
			case inIdentity && rest.Get(tt.name) == "v":
				got = tenant
			}
			if got != tt.kind {
				t.Errorf("%s is of the kind %q, want %q", tt.name, got, tt.kind)
			}
		})
	}
}

func TestIdentityAndHeadersAreInverse(t *testing.T) {
	want := http.Header{
		"Authorization": {"Bearer k"}, "X-Api-Key": {"a: b", "c"}, "Openai-Project": {"p"},
		"X-Org-Id": {"a\nX-User-Id: b", `back\slash`, `\n`, ""},
	}
	h := want.Clone()
	for _, name := range []string{"Content-Type", "Accept", "User-Agent", "X-Request-Id"} {
		h.Set(name, "x")
	}
	if diff := cmp.Diff(want, account.Headers(account.Identity(h))); diff != "" {
		t.Errorf("headers of the identity (-want +got):\n%s", diff)
	}
	if got := account.Identity(http.Header{"Accept": {"x"}, "Authorization": nil}); got != "" {
		t.Errorf("identity of a request without an account = %q, want none", got)
	}
	if got := account.Headers(""); len(got) != 0 {
		t.Errorf("headers of the empty identity = %v, want none", got)
	}
}

func TestDifferentAccountsHaveDifferentIdentities(t *testing.T) {
	for _, pair := range [][2]http.Header{
		{{"Authorization": {"a"}}, {"Authorization": {"b"}}},
		{{"Authorization": {"a"}}, {"Api-Key": {"a"}}},
		{{"X-Key": {"a", "b"}}, {"X-Key": {"a"}, "Y-Key": {"b"}}},
		{{"X-Key": {"a", "b"}}, {"X-Key": {"b", "a"}}},
		{{"Authorization": {"a"}}, {}},
		{{"Authorization": {"a\nX-Org-Id: b"}}, {"Authorization": {"a"}, "X-Org-Id": {"b"}}},
		{{"Authorization": {"a\nb"}}, {"Authorization": {`a\nb`}}},
		{{"Authorization": {"a"}, "X-Org-Id": {"1"}}, {"Authorization": {"a"}, "X-Org-Id": {"2"}}},
		{{"Authorization": {"a"}, "X-Scope-Orgid": {"1"}}, {"Authorization": {"a"}, "X-Scope-Orgid": {"2"}}},
		{{"Authorization": {"a"}, "X-User-Id": {"1"}}, {"Authorization": {"a"}, "X-User-Id": {"2"}}},
		{{"Authorization": {"a"}, "X-Workspace-Id": {"1"}}, {"Authorization": {"a"}, "X-Workspace-Id": {"2"}}},
		{{"Authorization": {"a"}, "X-Maas-Username": {"1"}}, {"Authorization": {"a"}}},
	} {
		if account.Identity(pair[0]) == account.Identity(pair[1]) {
			t.Errorf("%q and %q have the same identity", pair[0], pair[1])
		}
	}
}

// The class of a name is the same whether the name is remembered or not: only so many
// names are remembered.
func TestManyNames(t *testing.T) {
	for i := range 3000 {
		team, other := fmt.Sprintf("X-Team-%d", i), fmt.Sprintf("X-Request-%d", i)
		h := http.Header{"Authorization": {"a"}, team: {"1"}, other: {"2"}}
		want := http.Header{"Authorization": {"a"}, team: {"1"}}
		for range 2 {
			if diff := cmp.Diff(want, account.Headers(account.Identity(h))); diff != "" {
				t.Fatalf("identity (-want +got):\n%s", diff)
			}
		}
	}
}

func TestIdentityWithExtraNames(t *testing.T) {
	h := http.Header{"Authorization": {"a"}, "X-Cost-Center": {"7"}, "X-Request-Id": {"1"}}
	if got := account.Headers(account.Identity(h)); got.Get("X-Cost-Center") != "" {
		t.Fatalf("identity without extra names = %v", got)
	}
	want := http.Header{"Authorization": {"a"}, "X-Cost-Center": {"7"}}
	if diff := cmp.Diff(want, account.Headers(account.Identity(h, "X-Other", "x-cost-center"))); diff != "" {
		t.Errorf("identity with an extra name (-want +got):\n%s", diff)
	}
}

func TestSplitKeepsEveryHeader(t *testing.T) {
	h := http.Header{
		"Authorization": {"Bearer k"}, "X-Api-Key": {"a", "b"}, "Openai-Organization": {"o"}, "X-Cost-Center": {"7"},
	}
	credential, rest := account.Split(h)
	if diff := cmp.Diff(http.Header{"Authorization": {"Bearer k"}, "X-Api-Key": {"a", "b"}}, credential); diff != "" {
		t.Errorf("credential (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(http.Header{"Openai-Organization": {"o"}, "X-Cost-Center": {"7"}}, rest); diff != "" {
		t.Errorf("rest (-want +got):\n%s", diff)
	}
	if credential, rest = account.Split(nil); credential == nil || rest == nil {
		t.Error("Split of no headers returns a nil header")
	}
}

func BenchmarkIdentity(b *testing.B) {
	h := headers("Openai-Organization")
	for b.Loop() {
		account.Identity(h)
	}
}

package endpoint

import (
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/collector"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/sse"
	"github.com/autobatcher/autobatcher/provider"
)

func parse(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestOf(t *testing.T) {
	small := provider.Generic()
	small.MaxLines, small.MaxBytes, small.MaxLineBytes, small.MaxInputs, small.OneEndpoint = 10, 5000, 1000, 7, true
	for _, tt := range []struct {
		name, url string
		opts      Options
		want      Endpoint // without Profile
		profile   string
	}{
		{
			name: "chat", url: "https://api.openai.com/v1/chat/completions", opts: Options{Calls: 1000}, profile: "openai",
			want: Endpoint{
				Suffix: "/chat/completions", Upstream: "https://api.openai.com/v1", LineURL: "/v1/chat/completions", Group: "/chat/completions",
				Flex: true, MaxBody: 199_999_744, Limits: collector.Limits{Calls: 1000, Bytes: 200_000_000, Inputs: 50_000}, Kind: Kind{Stream: sse.Chat},
			},
		},
		{
			name: "embeddings with a query", url: "https://h.test/v1/embeddings?a=b", opts: Options{Calls: 1000, Bytes: 9}, profile: "generic",
			want: Endpoint{
				Suffix: "/embeddings", Upstream: "https://h.test/v1?a=b", LineURL: "/v1/embeddings", Group: "/embeddings",
				Kind: Kind{Embeddings: true, Inputs: true, NoText: true}, MaxBody: 199_999_744, Limits: collector.Limits{Calls: 1000, Bytes: 9, Inputs: 50_000},
			},
		},
		{
			name: "limits of the profile", url: "http://h.test/x/responses", opts: Options{Calls: 1000, Profile: &small}, profile: "generic",
			want: Endpoint{
				Suffix: "/responses", Upstream: "http://h.test/x", LineURL: "/v1/responses", Group: "/responses",
				MaxBody: 1000, Limits: collector.Limits{Calls: 10, Bytes: 5000, Inputs: 7}, Kind: Kind{Stream: sse.Response, Background: true},
			},
		},
		{
			name: "a deployment", url: "https://r.openai.azure.com/openai/deployments/a%20b/chat/completions?api-version=2024-10-21", opts: Options{Calls: 1}, profile: "azure-legacy",
			want: Endpoint{
				Suffix: "/chat/completions", Upstream: "https://r.openai.azure.com/openai/deployments/a%20b?api-version=2024-10-21", LineURL: "/chat/completions",
				Group: "/chat/completions", Deployment: "a b", MaxBody: 199_999_744, Limits: collector.Limits{Calls: 1, Bytes: 200_000_000, Inputs: 50_000},
				Kind: Kind{Stream: sse.Chat},
			},
		},
		{
			name: "no endpoint", url: "https://api.openai.com/v1/", profile: "openai",
			want: Endpoint{Upstream: "https://api.openai.com/v1", LineURL: "/v1"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := *New(tt.opts).Of(parse(t, tt.url))
			if got.Profile.Name != tt.profile {
				t.Errorf("the profile is %s, want %s", got.Profile.Name, tt.profile)
			}
			got.Profile, got.window, got.lastGroup = nil, "", nil
			if tt.want.Suffix == "" {
				got.MaxBody, got.Limits = 0, collector.Limits{}
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// The path of a base URL may end as an endpoint does: a deployment can have the name.
func TestBase(t *testing.T) {
	for base, want := range map[string]string{
		"https://api.openai.com/v1":   "https://api.openai.com/v1",
		"https://api.openai.com/v1/":  "https://api.openai.com/v1",
		"https://h.test/a%2Fb/v1?a=b": "https://h.test/a%2Fb/v1?a=b",
		"https://h.test/embeddings":   "https://h.test/embeddings",
		"https://h.test":              "https://h.test",
		"https://r.openai.azure.com/openai/deployments/embeddings?api-version=2024-10-21": "https://r.openai.azure.com/openai/deployments/embeddings?api-version=2024-10-21",
	} {
		table := New(Options{})
		upstream, p := table.Base(parse(t, base))
		u := parse(t, base)
		call := table.Of(backend.WithPath(u, strings.TrimSuffix(u.EscapedPath(), "/")+"/chat/completions"))
		if upstream != want || call.Upstream != want || call.Profile.Name != p.Name {
			t.Errorf("%s: %s (%s), and %s (%s) for its calls; want %s", base, upstream, p.Name, call.Upstream, call.Profile.Name, want)
		}
	}
}

func TestAcceptWindow(t *testing.T) {
	u := parse(t, "https://api.openai.com/v1/responses")
	for _, tt := range []struct{ options, call, want string }{
		{"", "", "24h"},
		{"24h", "", "24h"},
		{"1h", "24h", "24h"},
		{"", "1h", ""},
		{"1h", "", ""},
	} {
		got, err := New(Options{Window: tt.options}).Of(u).Accept(0, tt.call)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("options %q, call %q: %q, %v; want %q", tt.options, tt.call, got, err, tt.want)
		}
	}
}

func TestAcceptRefuses(t *testing.T) {
	u := parse(t, "https://api.openai.com/v1/embeddings")
	for _, tt := range []struct {
		name   string
		opts   Options
		inputs int
		window string
		want   string // code of the error
	}{
		{"accepted", Options{}, 50_000, "24h", ""},
		{"too many inputs", Options{}, 50_001, "", "invalid_request"},
		{"a key of 65 characters", Options{Metadata: map[string]string{strings.Repeat("k", 65): "v"}}, 1, "", "invalid_metadata"},
		{"a window", Options{}, 1, "1h", "invalid_completion_window"},
	} {
		_, err := New(tt.opts).Of(u).Accept(tt.inputs, tt.window)
		code := ""
		if refused := (*reply.RequestError)(nil); errors.As(err, &refused) {
			code = refused.Code
		}
		if code != tt.want {
			t.Errorf("%s: %v; want code %q", tt.name, err, tt.want)
		}
	}
}

// Where a batch may hold only one model, calls of different models have different groups.
func TestGroupOf(t *testing.T) {
	u := parse(t, "https://h.test/v1/chat/completions")
	one, several := provider.Generic(), provider.Generic()
	one.OneModel, several.OneModel = true, false
	e := New(Options{Profile: &one}).Of(u)
	for _, model := range []string{"a", "a", "b", "a", ""} {
		if got, want := e.GroupOf(model), e.Group+" "+model; got != want {
			t.Errorf("the group of model %q is %q, want %q", model, got, want)
		}
	}
	if e := New(Options{Profile: &several}).Of(u); e.GroupOf("a") != e.Group {
		t.Errorf("the group of a model is %q, want %q", e.GroupOf("a"), e.Group)
	}
}

// Where lines have only some members of a body, the others belong to the batch.
func TestSplit(t *testing.T) {
	voyage, generic := provider.Voyage(), provider.Generic()
	e := New(Options{Profile: &voyage}).Of(parse(t, "https://h.test/v1/rerank"))
	own, group, err := e.Split([]byte(`{"model":"m","query":"q","top_k":1,"documents":["d"]}`), "m")
	if string(own) != `{"query":"q","documents":["d"]}` || group != `/rerank {"model":"m","top_k":1}` || err != nil {
		t.Errorf("%s, %s, %v", own, group, err)
	}
	if shared := e.Shared(group); string(shared) != `{"model":"m","top_k":1}` {
		t.Errorf("the parameters of %s are %s", group, shared)
	}
	_, _, err = e.Split([]byte(`{"model":"`+strings.Repeat("m", maxShared)+`"}`), "m")
	if refused := (*reply.RequestError)(nil); !errors.As(err, &refused) || refused.Status != 400 {
		t.Errorf("long parameters: %v; want status 400", err)
	}
	e = New(Options{Profile: &generic}).Of(parse(t, "https://h.test/v1/embeddings"))
	own, group, err = e.Split([]byte(`{"model":"m"}`), "m")
	if string(own) != `{"model":"m"}` || group != e.GroupOf("m") || err != nil || e.Shared(group) != nil {
		t.Errorf("%s, %s, %v, %s", own, group, err, e.Shared(group))
	}
}

// Equal URLs share an Endpoint, and callers that name many URLs cost bounded memory.
func TestBound(t *testing.T) {
	table := New(Options{})
	u := parse(t, "https://api.openai.com/v1/responses")
	first := table.Of(u)
	if first != table.Of(parse(t, u.String())) {
		t.Error("an equal URL has another endpoint")
	}
	if other := table.Of(parse(t, "https://api.openai.com/v1/embeddings")); other == first || first != table.Of(u) {
		t.Error("after a call to another URL, the URL has another endpoint")
	}
	table.Of(parse(t, "https://h.test/v1/responses?x="+strings.Repeat("y", maxURL)))
	if len(table.known) != 2 {
		t.Errorf("%d endpoints are held, want 2: a long URL is not remembered", len(table.known))
	}
	for i := range 3 * maxEndpoints {
		if e := table.Of(parse(t, fmt.Sprintf("https://host-%d.test/v1/responses", i))); e.Profile.Name != "generic" {
			t.Errorf("an unknown host is %s", e.Profile.Name)
		}
		if len(table.known) > maxEndpoints {
			t.Fatalf("%d endpoints are held", len(table.known))
		}
	}
}

package provider_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/provider"
)

func TestEveryProfileIsValid(t *testing.T) {
	for _, p := range all(t) {
		if err := p.Validate(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	refused := map[string]bool{}
	for _, p := range all(t) {
		if p.Refusal == "" {
			continue
		}
		refused[p.Name] = true
		if len(p.Hosts) == 0 {
			t.Errorf("%s has a Refusal and no Hosts, so ForURL never returns the profile", p.Name)
		}
		if strings.Contains(p.Refusal, ". ") || !strings.HasSuffix(p.Refusal, ".") {
			t.Errorf("%s: refusal %q is not one sentence", p.Name, p.Refusal)
		}
		if !strings.Contains(p.Refusal, "real time") {
			t.Errorf("%s: refusal %q does not say what to do instead", p.Name, p.Refusal)
		}
		if p.Batches("/chat/completions") {
			t.Errorf("%s refuses and batches", p.Name)
		}
	}
	want := map[string]bool{
		"anthropic": true, "ark": true, "bedrock": true, "fireworks": true, "mistral": true, "openrouter": true, "xai": true,
	}
	if diff := cmp.Diff(want, refused); diff != "" {
		t.Errorf("refused providers (-want +got):\n%s", diff)
	}
}

func TestBatches(t *testing.T) {
	for _, tt := range []struct {
		profile provider.Profile
		want    []string
	}{
		{provider.Generic(), []string{"/chat/completions", "/embeddings", "/responses"}},
		{provider.OpenAI(), []string{"/chat/completions", "/completions", "/embeddings", "/responses", "/images/edits"}},
		{provider.Doubleword(), []string{"/chat/completions", "/completions", "/embeddings", "/responses"}},
		{provider.Azure(), []string{"/chat/completions", "/responses"}},
		{provider.Groq(), []string{"/chat/completions", "/audio/transcriptions", "/audio/translations"}},
		{provider.DeepInfra(), []string{"/chat/completions", "/completions", "/embeddings"}},
		{provider.Perplexity(), []string{"/responses"}},
		{provider.Voyage(), []string{"/embeddings", "/rerank"}},
		{provider.AzureModels(), nil},
		{provider.DashScopeBatchChat(), nil},
		{provider.ArkBatchChat(), nil},
		{provider.ArkBatchChat().Clone(), nil},
		{provider.Profile{Name: "none", Endpoints: []string{}}, nil},
	} {
		var got []string
		for _, suffix := range []string{"/chat/completions", "/completions", "/embeddings", "/responses", "/images/edits", "/audio/transcriptions", "/audio/translations", "/rerank", "/models", ""} {
			if tt.profile.Batches(suffix) {
				got = append(got, suffix)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s batches (-want +got):\n%s", tt.profile.Name, diff)
		}
	}
}

func TestSpelling(t *testing.T) {
	for _, tt := range []struct {
		profile        provider.Profile
		line, endpoint string
	}{
		{provider.Generic(), "/v1/chat/completions", "/v1/chat/completions"},
		{provider.Groq(), "/v1/chat/completions", "/v1/chat/completions"},
		{provider.Azure(), "/v1/chat/completions", "/chat/completions"},
		{provider.AzureLegacy(), "/chat/completions", "/chat/completions"},
		{provider.Zhipu(), "/v4/chat/completions", "/v4/chat/completions"},
	} {
		if got := tt.profile.LineURL("/chat/completions"); got != tt.line {
			t.Errorf("%s: LineURL = %q, want %q", tt.profile.Name, got, tt.line)
		}
		if got := tt.profile.Endpoint("/chat/completions"); got != tt.endpoint {
			t.Errorf("%s: Endpoint = %q, want %q", tt.profile.Name, got, tt.endpoint)
		}
	}
}

func TestBatchPath(t *testing.T) {
	for _, tt := range []struct {
		profile    provider.Profile
		base, want string
	}{
		{provider.OpenAI(), "/v1", "/v1"},
		{provider.OpenAI(), "/v1/", "/v1"},
		{provider.OpenAI(), "", ""},
		{provider.OpenAI(), "/deployments/x", "/deployments/x"},
		{provider.Groq(), "/openai/v1", "/openai/v1"},
		{provider.AzureLegacy(), "/openai/deployments/gpt", "/openai"},
		{provider.AzureLegacy(), "/openai/deployments/gpt/", "/openai"},
		{provider.AzureLegacy(), "/openai/deployments", "/openai"},
		{provider.AzureLegacy(), "/gateway/openai/deployments/gpt", "/gateway/openai"},
		{provider.AzureLegacy(), "/deployments/gpt", ""},
		{provider.AzureLegacy(), "/openai", "/openai"},
	} {
		if got := tt.profile.BatchPath(tt.base); got != tt.want {
			t.Errorf("%s: BatchPath(%q) = %q, want %q", tt.profile.Name, tt.base, got, tt.want)
		}
	}
}

// TestGenericIsSafe pins what may be asked of an unknown host.
func TestGenericIsSafe(t *testing.T) {
	g, reference := provider.Generic(), provider.OpenAI()
	if !g.OneModel || !g.OneEndpoint {
		t.Error("Generic mixes models or endpoints; some providers fail such a file")
	}
	if g.PartialResults || g.OutputExpiry || g.FileExpiryMax != 0 || g.ResultURLs {
		t.Error("Generic uses more than the plain Batch API")
	}
	if g.MaxLines != reference.MaxLines || g.MaxBytes != reference.MaxBytes || g.MaxInputs != reference.MaxInputs {
		t.Error("Generic does not keep OpenAI's limits")
	}
}

// TestConstructorsReturnCopies checks that a changed profile changes no other profile.
func TestConstructorsReturnCopies(t *testing.T) {
	want := provider.Azure()
	p := provider.Azure()
	p.Hosts[0], p.Endpoints[0], p.Windows[0], p.KeepQuery[0] = "x", "/x", "x", "x"
	if diff := cmp.Diff(want, provider.Azure()); diff != "" {
		t.Errorf("a changed copy changed the profile (-want +got):\n%s", diff)
	}
	names := provider.Names()
	names[0] = "x"
	if slices.Contains(provider.Names(), "x") {
		t.Error("a changed list of names changed the names")
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		change func(*provider.Profile)
		want   string // all of these words
	}{
		{func(p *provider.Profile) { p.Name = "" }, "Name empty Generic"},
		{func(p *provider.Profile) { p.Hosts = []string{"API.example.com"} }, "Hosts API.example.com lower case"},
		{func(p *provider.Profile) { p.Hosts = []string{"example.com:443"} }, "Hosts example.com:443 port"},
		{func(p *provider.Profile) { p.Hosts = []string{""} }, "Hosts"},
		{func(p *provider.Profile) { p.AuthHeader = "" }, "AuthHeader"},
		{func(p *provider.Profile) { p.AccountHeaders = []string{"X-Org-Id", ""} }, "AccountHeaders X-Org-Id"},
		{func(p *provider.Profile) { p.AccountHeaders = []string{"X Org"} }, "AccountHeaders X Org"},
		{func(p *provider.Profile) { p.AccountHeaders = []string{"X-Org:"} }, "AccountHeaders X-Org:"},
		{func(p *provider.Profile) { p.UploadPath = "/files" }, "UploadPath /files leading"},
		{func(p *provider.Profile) { p.Purpose = "" }, "Purpose"},
		{func(p *provider.Profile) { p.LinePrefix = "v1" }, "LinePrefix v1 leading"},
		{func(p *provider.Profile) { p.EndpointPrefix = "/v1/" }, "EndpointPrefix /v1/ trailing"},
		{func(p *provider.Profile) { p.Endpoints = []string{"chat"} }, "Endpoints chat leading"},
		{func(p *provider.Profile) { p.BasePathCut = "deployments" }, "BasePathCut deployments slashes"},
		{func(p *provider.Profile) { p.BasePathCut = "/" }, "BasePathCut slashes"},
		{func(p *provider.Profile) { p.MaxLines = -1 }, "MaxLines -1 0"},
		{func(p *provider.Profile) { p.MaxBytes = -1 }, "MaxBytes -1 0"},
		{func(p *provider.Profile) { p.MaxLineBytes = p.MaxBytes + 1 }, "MaxLineBytes 200000001 MaxBytes 200000000"},
		{func(p *provider.Profile) { p.MaxInputs = -1 }, "MaxInputs -1"},
		{func(p *provider.Profile) { p.MaxMetadata = -1 }, "MaxMetadata -1"},
		{func(p *provider.Profile) { p.MaxMetadataKey = -1 }, "MaxMetadataKey -1"},
		{func(p *provider.Profile) { p.MaxMetadataValue = -1 }, "MaxMetadataValue -1"},
		{func(p *provider.Profile) { p.CreationsPerHour = -1 }, "CreationsPerHour -1"},
		{func(p *provider.Profile) { p.MinPoll = -time.Second }, "MinPoll -1s"},
		{func(p *provider.Profile) { p.MinWindow = time.Hour }, "MinWindow 1h MaxWindow"},
		{func(p *provider.Profile) { p.MaxWindow = -time.Hour }, "MaxWindow -1h"},
		{func(p *provider.Profile) { p.FileExpiryMin = time.Hour }, "FileExpiryMin 1h FileExpiryMax"},
		{func(p *provider.Profile) { p.OutputExpiry = true }, "OutputExpiry FileExpiryMax"},
		{func(p *provider.Profile) { p.UploadModelField, p.OneModel = "m", false }, "UploadModelField OneModel"},
		{func(p *provider.Profile) { p.FlexEndpoints = []string{"/responses"} }, "FlexEndpoints FlexTier FlexTimeout FlexRefusals"},
		{func(p *provider.Profile) {
			p.FlexEndpoints, p.FlexTier, p.FlexTimeout = []string{"/responses"}, "flex", time.Hour
		}, "FlexEndpoints FlexRefusals"},
		{func(p *provider.Profile) { p.FlexRefusals = []int{429, 200} }, "FlexRefusals 400 599 200"},
		{func(p *provider.Profile) { p.FlexRefusals = []int{600} }, "FlexRefusals 600"},
		{func(p *provider.Profile) { p.FlexRefusals = []int{504} }, "FlexRefusals 504 paid"},
		{func(p *provider.Profile) { p.FlexRefusals = []int{429, 408} }, "FlexRefusals 408 paid"},
		{func(p *provider.Profile) { p.SinglePrice, p.FlexTimeout = "half price", time.Hour }, "SinglePrice Endpoints empty"},
		{func(p *provider.Profile) { p.SinglePrice, p.Endpoints = "half price", []string{} }, "SinglePrice FlexTimeout"},
		{func(p *provider.Profile) {
			p.LineMembers, p.OneModel = map[string][]string{"/chat/completions": {"messages"}}, false
		}, "LineMembers OneModel"},
		{func(p *provider.Profile) { p.LineMembers = map[string][]string{"/chat/completions": {"messages"}} }, "LineMembers /embeddings"},
		{func(p *provider.Profile) {
			p.LineMembers, p.Endpoints = map[string][]string{"/rerank": {"query", "model"}}, []string{"/rerank"}
		}, "LineMembers /rerank model"},
		{func(p *provider.Profile) { p.DefaultWindow = "" }, "DefaultWindow empty"},
		{func(p *provider.Profile) { p.Windows = []string{"1h", "2h"} }, "DefaultWindow 24h 1h, 2h"},
	} {
		p := provider.Generic()
		tt.change(&p)
		err := p.Validate()
		if err == nil {
			t.Errorf("no error; want one with %q", tt.want)
			continue
		}
		for word := range strings.FieldsSeq(tt.want) {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("error %q; want the word %q", err, word)
			}
		}
	}
}

// TestClone checks by reflection that a clone shares no slice and no map with the original,
// so that a new field of the Profile cannot be forgotten.
func TestClone(t *testing.T) {
	var original provider.Profile
	fields := reflect.ValueOf(&original).Elem()
	for i := range fields.NumField() {
		switch fields.Field(i).Kind() {
		case reflect.Slice:
			fields.Field(i).Set(reflect.MakeSlice(fields.Field(i).Type(), 1, 1))
		case reflect.Map:
			fields.Field(i).Set(reflect.ValueOf(map[string][]string{"/rerank": {"query"}}))
		}
	}
	clone := original.Clone()
	if diff := cmp.Diff(original, clone); diff != "" {
		t.Fatalf("clone (-original +clone):\n%s", diff)
	}
	copied := reflect.ValueOf(clone)
	for i := range fields.NumField() {
		if kind := fields.Field(i).Kind(); (kind == reflect.Slice || kind == reflect.Map) && fields.Field(i).Pointer() == copied.Field(i).Pointer() {
			t.Errorf("the clone shares %s with the original", fields.Type().Field(i).Name)
		}
	}
	if clone.LineMembers["/rerank"][0] = "changed"; original.LineMembers["/rerank"][0] != "query" {
		t.Error("the clone shares the lists of LineMembers with the original")
	}
	if got := provider.Generic().Clone(); got.Endpoints != nil {
		t.Errorf("clone of nil Endpoints = %v, want nil: nil means the default endpoints", got.Endpoints)
	}
}

func TestLLMD(t *testing.T) {
	p := provider.LLMD()
	if !slices.Equal(p.AccountHeaders, []string{"X-MaaS-Username"}) {
		t.Errorf("AccountHeaders = %v", p.AccountHeaders)
	}
	if p.OneEndpoint || p.OneModel {
		t.Error("the gateway mixes models and endpoints, and the profile does not")
	}
	if !p.OutputExpiry || p.FileExpiryMin != time.Hour || p.FileExpiryMax != 30*24*time.Hour {
		t.Errorf("expiry of files: %s to %s, of results %v", p.FileExpiryMin, p.FileExpiryMax, p.OutputExpiry)
	}
}

// TestLiteLLMNeedsNoDatabase pins the form field that works without a database.
func TestLiteLLMNeedsNoDatabase(t *testing.T) {
	if got := provider.LiteLLM().UploadModelField; got != "model" {
		t.Errorf("UploadModelField = %q, want model", got)
	}
}

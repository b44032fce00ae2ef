package provider_test

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/provider"
)

func TestForHost(t *testing.T) {
	for host, want := range map[string]string{
		"api.openai.com":      "openai",
		"API.OpenAI.com":      "openai",
		"api.openai.com:443":  "openai",
		"api.openai.com.":     "openai",
		"api.openai.com.:443": "openai",
		"eu.api.openai.com":   "openai",

		"res.openai.azure.com":                "azure",
		"RES.OPENAI.AZURE.COM:443":            "azure",
		"res.cognitiveservices.azure.com":     "azure",
		"api.doubleword.ai":                   "doubleword",
		"api.groq.com":                        "groq",
		"api.together.xyz":                    "together",
		"api.together.ai":                     "together",
		"api.tokenfactory.nebius.com":         "nebius",
		"api.parasail.io":                     "parasail",
		"api.deepinfra.com":                   "deepinfra",
		"api.siliconflow.cn":                  "siliconflow",
		"api.moonshot.ai":                     "moonshot",
		"open.bigmodel.cn":                    "zhipu",
		"dashscope.aliyuncs.com":              "dashscope",
		"dashscope-intl.aliyuncs.com":         "dashscope",
		"w1.ap-southeast-1.maas.aliyuncs.com": "dashscope",

		"api.anthropic.com": "anthropic",
		"api.fireworks.ai":  "fireworks",
		"api.mistral.ai":    "mistral",
		"openrouter.ai":     "openrouter",
		"api.x.ai":          "xai",

		"res.services.ai.azure.com":               "azure",
		"api.z.ai":                                "zhipu",
		"api.novita.ai":                           "novita",
		"api.cerebras.ai":                         "cerebras",
		"api.perplexity.ai":                       "perplexity",
		"api.voyageai.com":                        "voyage",
		"batch.dashscope.aliyuncs.com":            "dashscope-batch-chat",
		"ark.cn-beijing.volces.com":               "ark",
		"bedrock-runtime.us-east-1.amazonaws.com": "bedrock",
		"bedrock-mantle.eu-west-1.api.aws":        "bedrock",
		"bedrock-runtime.amazonaws.com":           "generic",

		"bedrock-runtime-fips.us-gov-west-1.amazonaws.com":      "bedrock",
		"bedrock-runtime.cn-north-1.amazonaws.com.cn":           "bedrock",
		"bedrock-runtime-fips.cn-north-1.amazonaws.com.cn":      "bedrock",
		"bedrock-runtime.us-east-1.api.aws":                     "bedrock",
		"bedrock-runtime-fips.us-east-1.api.aws":                "bedrock",
		"bedrock-runtime.cn-north-1.amazonaws.com.cn.evil.test": "generic",
		"bedrock-agent-runtime.us-east-1.amazonaws.com":         "generic",
		"lb.us-east-1.elb.amazonaws.com":                        "generic",

		// Hosts that only look like the host of a provider.
		"":                               "generic",
		"localhost:8080":                 "generic",
		"127.0.0.1:8080":                 "generic",
		"[::1]:8080":                     "generic",
		"[::1]":                          "generic",
		"example.com":                    "generic",
		"openai.com":                     "generic",
		"evil-api.openai.com.test":       "generic",
		"notapi.openai.com":              "generic",
		"openai.azure.com":               "generic",
		"cognitiveservices.azure.com":    "generic",
		".openai.azure.com":              "generic",
		"fakeopenai.azure.com":           "generic",
		"api.doubleword.ai.evil.test":    "generic",
		"user@api.doubleword.ai":         "generic",
		"api.doubleword.ai/api.groq.com": "generic",
	} {
		if got := provider.ForHost(host).Name; got != want {
			t.Errorf("ForHost(%q) = %s, want %s", host, got, want)
		}
	}
}

func TestForURL(t *testing.T) {
	for raw, want := range map[string]string{
		"https://api.openai.com/v1/chat/completions":                                                  "openai",
		"https://api.openai.com/deployments/x/chat/completions":                                       "openai",
		"https://res.openai.azure.com/openai/v1/chat/completions":                                     "azure",
		"https://res.openai.azure.com/openai/v1/chat/completions?api-version=preview":                 "azure",
		"https://res.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=2024-10-21": "azure-legacy",
		"https://RES.openai.azure.com:443/openai/deployments/gpt/embeddings":                          "azure-legacy",
		"https://example.com/openai/deployments/gpt/embeddings":                                       "generic",
		"https://res.services.ai.azure.com/openai/v1/responses":                                       "azure",
		"https://res.services.ai.azure.com/models":                                                    "azure-models",
		"https://res.services.ai.azure.com/models/chat/completions?api-version=2024-05-01-preview":    "azure-models",
		"https://res.services.ai.azure.com/models/deployments/x":                                      "azure-models",
		"https://res.services.ai.azure.com/modelsx/chat/completions":                                  "azure",
		"https://res.openai.azure.com/openai/v1/models":                                               "azure",
		"https://res.cognitiveservices.azure.com/openai/v1/chat/completions":                          "azure",
		"https://res.cognitiveservices.azure.com/openai/deployments/gpt/chat/completions":             "azure-legacy",
		"https://ark.cn-beijing.volces.com/api/v3/batch":                                              "ark-batch-chat",
		"https://ark.cn-beijing.volces.com/api/v3/batch/chat/completions":                             "ark-batch-chat",
		"https://ark.ap-southeast.bytepluses.com/api/v3/batch/chat/completions":                       "ark-batch-chat",
		"https://ark.cn-beijing.volces.com/api/v3/batches":                                            "ark",
		"https://ark.cn-beijing.volces.com/api/v3/chat/completions":                                   "ark",
		"/v1/chat/completions": "generic",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := provider.ForURL(u).Name; got != want {
			t.Errorf("ForURL(%q) = %s, want %s", raw, got, want)
		}
	}
}

func TestByName(t *testing.T) {
	for _, name := range provider.Names() {
		for _, spelling := range []string{name, strings.ToUpper(name)} {
			p, err := provider.ByName(spelling)
			if err != nil || p.Name != name {
				t.Errorf("ByName(%q) = %q, %v; want %q", spelling, p.Name, err, name)
			}
		}
	}
}

func TestByNameUnknown(t *testing.T) {
	_, err := provider.ByName("opanai")
	if err == nil {
		t.Fatal("ByName of an unknown provider succeeded")
	}
	for _, word := range append(provider.Names(), `"opanai"`) {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not name %s", err, word)
		}
	}
}

func TestNamesAreSortedAndUnique(t *testing.T) {
	names := provider.Names()
	want := slices.Compact(slices.Sorted(slices.Values(names)))
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("Names() are not sorted and unique (-want +got):\n%s", diff)
	}
}

// TestEveryHostBelongsToOneProfile checks that the order of the profiles decides
// only between Azure's two APIs.
func TestEveryHostBelongsToOneProfile(t *testing.T) {
	owner := map[string]string{}
	for _, p := range all(t) {
		if p.BasePathCut != "" {
			continue // the path decides
		}
		for _, h := range p.Hosts {
			if owner[h] != "" {
				t.Errorf("host %s belongs to both %s and %s", h, owner[h], p.Name)
			}
			owner[h] = p.Name
		}
	}
}

// all returns every profile.
func all(t *testing.T) []provider.Profile {
	t.Helper()
	var profiles []provider.Profile
	for _, name := range provider.Names() {
		p, err := provider.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		profiles = append(profiles, p)
	}
	return profiles
}

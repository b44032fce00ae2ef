package lane

import (
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/turnaround"
	"github.com/autobatcher/autobatcher/provider"
)

func TestByMode(t *testing.T) {
	openai, nebius := provider.OpenAI(), provider.Nebius()
	var slow turnaround.Book
	slow.Add("openai", "24h", []string{"slow"}, 5*time.Hour)
	slow.Add("openai", "24h", []string{"fast"}, time.Minute)
	for _, tt := range []struct {
		name     string
		mode     Mode
		profile  *provider.Profile
		suffix   string
		model    string
		deadline time.Duration
		want     string
	}{
		{"batch", Batch, &openai, "/responses", "m", time.Second, "24h"},
		{"flex", Flex, &openai, "/responses", "m", 0, "flex"},
		{"flex without a tier for the endpoint", Flex, &openai, "/embeddings", "m", 0, "24h"},
		{"flex without a tier at the provider", Flex, &nebius, "/chat/completions", "m", 0, "24h"},
		{"auto without a deadline", Auto, &openai, "/responses", "m", 0, "24h"},
		{"auto in time", Auto, &openai, "/responses", "m", 2 * time.Hour, "24h"},
		{"auto too late", Auto, &openai, "/responses", "m", time.Hour, "flex"},
		{"auto with a slow model", Auto, &openai, "/responses", "slow", 2 * time.Hour, "flex"},
		{"auto with a fast model", Auto, &openai, "/responses", "fast", 2 * time.Minute, "24h"},
	} {
		c := Choice{Mode: tt.mode, Profile: tt.profile, Suffix: tt.suffix, Model: tt.model, Window: "24h", Deadline: tt.deadline, Wait: 10 * time.Second}
		if got := c.ByMode(&slow); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

package lane

import (
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/turnaround"
)

func TestFlex(t *testing.T) {
	var slow turnaround.Book
	slow.Add("openai", "24h", []string{"slow"}, 5*time.Hour)
	slow.Add("openai", "24h", []string{"fast"}, time.Minute)
	for _, tt := range []struct {
		name     string
		mode     Mode
		model    string
		deadline time.Duration
		want     bool
	}{
		{"batch", Batch, "m", time.Second, false},
		{"flex", Flex, "m", 0, true},
		{"auto without a deadline", Auto, "m", 0, false},
		{"auto in time", Auto, "m", 2 * time.Hour, false},
		{"auto too late", Auto, "m", time.Hour, true},
		{"auto with a slow model", Auto, "slow", 2 * time.Hour, true},
		{"auto with a fast model", Auto, "fast", 2 * time.Minute, false},
	} {
		c := Choice{Mode: tt.mode, Kind: turnaround.Kind{Provider: "openai", Model: tt.model, Window: "24h"}, Deadline: tt.deadline, Wait: 10 * time.Second}
		if got := c.Flex(&slow); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

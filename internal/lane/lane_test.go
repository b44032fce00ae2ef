package lane

import (
	"context"
	"testing"
	"testing/synctest"
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

func TestUntilFlex(t *testing.T) {
	var book turnaround.Book
	kind := turnaround.Kind{Provider: "openai", Model: "m", Window: "flex"}
	for _, tt := range []struct {
		name          string
		left, timeout time.Duration
		want          time.Duration
	}{
		{"nothing is known", time.Hour, 15 * time.Minute, 45 * time.Minute},
		{"no time", time.Minute, 15 * time.Minute, 0},
	} {
		if got := UntilFlex(&book, kind, tt.timeout, tt.left); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	book.Add("openai", "flex", []string{"m"}, 2*time.Minute)
	if got := UntilFlex(&book, kind, 15*time.Minute, 10*time.Minute); got != 8*time.Minute {
		t.Errorf("nine of ten calls take two minutes: %v, want 8m", got)
	}
}

func TestName(t *testing.T) {
	for _, tt := range []struct{ window, id, want string }{
		{"24h", "batch_1", "batch batch_1"},
		{"24h", "", "the batch"},
		{"", "batch_1", "batch batch_1"},
		{"flex", "resp_1", "the flex call resp_1"},
		{"flex", "", "the flex call"},
	} {
		if got := Name(tt.window, tt.id); got != tt.want {
			t.Errorf("%q %q: %q, want %q", tt.window, tt.id, got, tt.want)
		}
	}
}

func TestTimeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, tt := range []struct {
			ctx            context.Context
			deadline, want time.Duration
		}{
			{t.Context(), 0, 0}, {t.Context(), time.Hour, time.Hour}, {short, 0, time.Minute}, {short, time.Hour, time.Minute}, {short, time.Second, time.Second},
		} {
			if got := TimeLeft(tt.ctx, tt.deadline); got != tt.want {
				t.Errorf("deadline %v: %v, want %v", tt.deadline, got, tt.want)
			}
		}
		time.Sleep(2 * time.Minute)
		if got := TimeLeft(short, 0); got <= 0 {
			t.Errorf("%v after the deadline; want a moment, since 0 means that there is none", got)
		}
	})
}

package backend_test

import (
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
)

func TestPollInterval(t *testing.T) {
	for _, tt := range []struct {
		age, usual, least, want time.Duration
		soon                    bool
	}{
		{0, 5 * time.Second, 0, 5 * time.Second, false},
		{0, 5 * time.Second, 0, 500 * time.Millisecond, true},
		{2 * time.Second, 5 * time.Second, 0, time.Second, true},
		{10 * time.Second, 5 * time.Second, 0, 5 * time.Second, true},
		{5 * time.Minute, 5 * time.Second, 0, 5 * time.Second, true},
		{30 * time.Minute, 5 * time.Second, 0, 30 * time.Second, false},
		{30 * time.Minute, 5 * time.Second, 0, 30 * time.Second, true},
		{24 * time.Hour, 5 * time.Second, 0, time.Minute, false},
		{24 * time.Hour, 2 * time.Minute, 0, 2 * time.Minute, false},
		{0, 5 * time.Second, time.Minute, time.Minute, true},
		{24 * time.Hour, 5 * time.Second, 2 * time.Minute, 2 * time.Minute, false},
	} {
		if got := backend.PollInterval(tt.age, tt.usual, tt.least, tt.soon); got != tt.want {
			t.Errorf("age %v, usual %v, least %v, soon %v: %v, want %v", tt.age, tt.usual, tt.least, tt.soon, got, tt.want)
		}
	}
}

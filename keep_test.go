package autobatcher

import (
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/reply"
)

// What is kept for callers that have gone is bounded, and the oldest go first.
// Answers of that size take too long to send through a provider.
func TestKeptAnswersAreBounded(t *testing.T) {
	tr, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	calls := make([]*call, 5)
	for i := range calls {
		calls[i] = &call{print: fingerprint{byte(i)}}
		tr.keep(calls[i], &answer{Answer: reply.Answer{Status: 200, Body: make([]byte, 22<<20)}})
	}
	for i, c := range calls {
		kept := len(tr.left[c.print]) == 1 && c.answer != nil
		if want := i >= 3; kept != want {
			t.Errorf("answer %d kept: %v, want %v", i, kept, want)
		}
	}
	if want := int64(44 << 20); tr.keptSize != want {
		t.Errorf("%d bytes are counted, want %d", tr.keptSize, want)
	}
	calls[4].keptAt = time.Now()
	calls[3].keptAt = time.Now().Add(-defaultKeepFor)
	if tr.prune(); calls[3].answer != nil || calls[4].answer == nil || tr.keptSize != 22<<20 {
		t.Errorf("after a day: %v, %v, %d bytes", calls[3].answer != nil, calls[4].answer != nil, tr.keptSize)
	}
}

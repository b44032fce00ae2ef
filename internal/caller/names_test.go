package caller

import (
	"fmt"
	"slices"
	"testing"
)

func TestNamesOf(t *testing.T) {
	type call struct {
		model string
		by    Caller
	}
	of := func(c call) (string, *Caller) { return c.model, &c.by }
	got := NamesOf([]call{
		{"m", Caller{Name: "z", Trace: "2"}}, {"a", Caller{}}, {"m", Caller{Name: "b", Trace: "1"}}, {"m", Caller{Name: "z", Trace: "2"}},
	}, of)
	for _, tt := range []struct{ what, got, want any }{
		{"models", fmt.Sprint(got.Models), "[a m]"},
		{"callers", fmt.Sprint(got.Callers), "[b z]"},
		{"traces", fmt.Sprint(got.Traces), "[2 1]"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s %v, want %v", tt.what, tt.got, tt.want)
		}
	}
	var many []call
	for i := range 2 * maxTraces {
		many = append(many, call{"m", Caller{Trace: fmt.Sprint(i)}})
	}
	if got := NamesOf(many, of).Traces; len(got) != maxTraces || !slices.Contains(got, "127") {
		t.Errorf("%d traces, want the first %d", len(got), maxTraces)
	}
}

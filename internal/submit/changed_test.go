package submit_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/submit"
)

// A file that changes between the two readings ends the job. No line that differs is
// sent, so that the results that are kept are right for the old contents.
func TestTheInputChanges(t *testing.T) {
	a, b := request("a"), request("b")
	for _, tt := range []struct{ name, second string }{
		{"more lines", a + "\n" + b + "\n" + request("c") + "\n"},
		{"a longer last line", a + "\n" + b + " \n"},
		{"fewer lines", a + "\n"},
		{"no lines", ""},
		{"other contents of a line", a + "\n" + strings.Replace(b, `"m"`, `"o"`, 1) + "\n"},
		{"a line that is no request", a + "\nx\n"},
		{"other order", b + "\n" + a + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlace(t, a, b)
			part, answers := p.open(), p.newAnswers()
			err := p.job(part, answers).Run(t.Context(), strings.NewReader(tt.second))
			if !errors.Is(err, submit.ErrChanged) || !strings.HasPrefix(err.Error(), "the input file has changed while it was read") {
				t.Errorf("error %v", err)
			}
			if err := part.Close(); err != nil {
				t.Error(err)
			}
			part = p.open()
			for line, id := range []string{"a", "b"} {
				answers.seen[id] = part.Has(line + 1) // must not be sent again
			}
			if err := p.job(part, answers).Run(t.Context(), strings.NewReader(p.text)); err != nil {
				t.Fatal(err)
			}
			if got, want := p.finish(part), []string{"a 200", "b 200"}; !slices.Equal(got, want) {
				t.Errorf("results %q, want %q", got, want)
			}
		})
	}
}

// A last line that gets its line break meanwhile is no change.
func TestTheInputKeepsItsLines(t *testing.T) {
	p := newPlace(t, request("a"))
	part := p.open()
	if err := p.job(part, p.newAnswers()).Run(t.Context(), strings.NewReader(strings.TrimSuffix(p.text, "\n"))); err != nil {
		t.Fatal(err)
	}
	p.finish(part)
}

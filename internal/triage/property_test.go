package triage_test

import (
	"fmt"
	"math/bits"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/autobatcher/autobatcher/internal/triage"
)

func problems() *rapid.Generator[triage.Problem] {
	return rapid.Custom(func(t *rapid.T) triage.Problem {
		return triage.Problem{
			Code:    rapid.SampledFrom([]string{"", "invalid_json_line", "model_not_found", "token_limit_exceeded", "no_such_code"}).Draw(t, "code"),
			Message: rapid.SampledFrom([]string{"", "bad", "Limit: 1,000"}).Draw(t, "message"),
			Line:    rapid.IntRange(-1, 12).Draw(t, "line"),
		}
	})
}

func inputs() *rapid.Generator[triage.Input] {
	lines := rapid.Custom(func(t *rapid.T) triage.Line {
		return triage.Line{
			Waiting: rapid.Bool().Draw(t, "waiting"),
			Model:   rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "model"),
			Bytes:   rapid.SampledFrom([]int{0, 10, 1000, 1 << 20}).Draw(t, "bytes"),
		}
	})
	return rapid.Custom(func(t *rapid.T) triage.Input {
		return triage.Input{
			Lines: rapid.SliceOfN(lines, 0, 10).Draw(t, "lines"),
			Rejection: triage.Rejection{
				Status:       rapid.SampledFrom([]int{0, 0, 0, 400, 401, 403, 413, 422, 429}).Draw(t, "status"),
				Uploading:    rapid.Bool().Draw(t, "uploading"),
				Problems:     rapid.SliceOfN(problems(), 0, 3).Draw(t, "problems"),
				Completed:    rapid.SampledFrom([]int{0, 0, 1}).Draw(t, "completed"),
				Failed:       rapid.SampledFrom([]int{0, 0, 1}).Draw(t, "failed"),
				HasFiles:     rapid.Bool().Draw(t, "files"),
				Ran:          rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "ran"),
				InputDeleted: rapid.Bool().Draw(t, "deleted"),
			},
			Attempts:   rapid.SampledFrom([]int{0, 1, 3, 5, 49, 50}).Draw(t, "attempts"),
			Guesses:    rapid.IntRange(-1, 3).Draw(t, "guesses"),
			Tokens:     rapid.Int64Range(0, 100).Draw(t, "tokens"),
			TokenLimit: rapid.Int64Range(0, 100).Draw(t, "limit"),
			Alone:      rapid.Bool().Draw(t, "alone"),
		}
	})
}

// checkPlan returns an error unless the plan deals with every waiting place
// exactly once, and with no other place.
func checkPlan(in triage.Input, plan triage.Plan) error {
	if !plan.Sorted {
		if len(plan.Answers)+len(plan.Groups)+plan.Guesses > 0 {
			return fmt.Errorf("a plan without a remedy does something: %+v", plan)
		}
		return nil
	}
	seen := make([]int, len(in.Lines))
	for _, a := range plan.Answers {
		seen[a.Place]++
		if a.Status == 0 || a.Problem.Code == "" {
			return fmt.Errorf("incomplete answer %+v", a)
		}
	}
	for _, g := range plan.Groups {
		if len(g) == 0 || !slices.IsSorted(g) {
			return fmt.Errorf("group %v is empty or out of order", g)
		}
		for _, place := range g {
			seen[place]++
		}
	}
	for place, l := range in.Lines {
		if want := map[bool]int{true: 1}[l.Waiting]; seen[place] != want {
			return fmt.Errorf("place %d, waiting %v: %d times in %+v", place, l.Waiting, seen[place], plan)
		}
	}
	return nil
}

func TestEveryWaitingPlaceOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := inputs().Draw(t, "input")
		if err := checkPlan(in, triage.Decide(in)); err != nil {
			t.Fatal(err)
		}
	})
}

// A validator is a model of a provider that rejects an input with a bad line.
// bad tells the places of the bad lines in the input; the list is not empty.
type validator func(lines []triage.Line, bad []int) triage.Rejection

// validators are the ways in which real providers reject an input.
var validators = map[string]validator{
	"names the first bad line": func(_ []triage.Line, bad []int) triage.Rejection {
		return failed(triage.Problem{Code: "invalid_request", Line: bad[0] + 1})
	},
	"names all bad lines": func(_ []triage.Line, bad []int) triage.Rejection {
		var all []triage.Problem
		for _, place := range bad {
			all = append(all, triage.Problem{Message: "bad", Line: place + 1})
		}
		return failed(all...)
	},
	"counts failed lines and names one": func(lines []triage.Line, bad []int) triage.Rejection {
		return ran(failed(triage.Problem{Message: "bad", Line: bad[0] + 1}), 0, len(lines), true, 0)
	},
	"refuses the upload and names a line": func(_ []triage.Line, bad []int) triage.Rejection {
		return refusedUpload(400, triage.Problem{Message: "bad", Line: bad[0] + 1})
	},
	"refuses the upload and names no line": func([]triage.Line, []int) triage.Rejection {
		return refusedUpload(400, triage.Problem{Message: "bad"})
	},
	"names a code only": func([]triage.Line, []int) triage.Rejection { return failed(someLine) },
	"gives no reason":   func([]triage.Line, []int) triage.Rejection { return failed() },
}

// guessing are the validators that name no line.
var guessing = []string{"refuses the upload and names no line", "names a code only", "gives no reason"}

// A simulation resubmits the lines of an input until no line is left. A line is
// bad if its Bytes are 1.
type simulation struct {
	reject  validator
	guesses int

	uploads             int
	passed, answered    int // good lines that ran, bad lines that were answered
	goodLost, notSorted int // good lines that were answered, lines without a remedy
}

func (s *simulation) run(lines []triage.Line) error {
	for queue := []triage.Input{{Lines: lines}}; len(queue) > 0; queue = queue[1:] {
		s.uploads++
		in := queue[0]
		bad := badPlaces(in.Lines)
		if len(bad) == 0 {
			s.passed += len(in.Lines)
			continue
		}
		in.Rejection, in.Guesses = s.reject(in.Lines, bad), s.guesses
		plan := triage.Decide(in)
		if err := checkPlan(in, plan); err != nil {
			return err
		}
		s.count(in, plan)
		queue = append(queue, children(in, plan)...)
	}
	return nil
}

func (s *simulation) count(in triage.Input, plan triage.Plan) {
	s.guesses -= plan.Guesses
	if !plan.Sorted {
		s.notSorted += len(in.Lines)
	}
	for _, a := range plan.Answers {
		if in.Lines[a.Place].Bytes == 1 {
			s.answered++
		} else {
			s.goodLost++
		}
	}
}

func badPlaces(lines []triage.Line) []int {
	var bad []int
	for i, l := range lines {
		if l.Bytes == 1 {
			bad = append(bad, i)
		}
	}
	return bad
}

// drawLines returns n lines of which at most k are bad, and the number of bad
// lines.
func drawLines(t *rapid.T, n, k int) (lines []triage.Line, bad int) {
	lines = make([]triage.Line, n)
	for i := range lines {
		lines[i] = triage.Line{Waiting: true, Model: "m", Bytes: 100}
	}
	for range k {
		lines[rapid.IntRange(0, n-1).Draw(t, "bad")].Bytes = 1
	}
	return lines, len(badPlaces(lines))
}

// Good lines get through whatever the bad lines are, bad lines are answered, and
// the number of uploads is bounded.
func TestGoodLinesGetThrough(t *testing.T) {
	for name, reject := range validators {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				n, most := rapid.IntRange(1, 300).Draw(t, "lines"), 40
				if slices.Contains(guessing, name) {
					most = triage.MaxGuesses / 10 // each bad line costs at most a guess per level of halves
				}
				lines, bad := drawLines(t, n, rapid.IntRange(0, most).Draw(t, "bad lines"))
				s := simulation{reject: reject, guesses: triage.MaxGuesses}
				if err := s.run(lines); err != nil {
					t.Fatal(err)
				}
				if s.passed != n-bad || s.answered != bad {
					t.Fatalf("%d of %d good lines ran, %d of %d bad lines were answered", s.passed, n-bad, s.answered, bad)
				}
				if limit := 1 + 2*bad*(1+bits.Len(uint(n))); s.uploads > limit {
					t.Fatalf("%d uploads for %d lines with %d bad lines, want at most %d", s.uploads, n, bad, limit)
				}
			})
		})
	}
}

// A provider that rejects every input gets a bounded number of uploads. Without
// a reason, each caller gets an answer; otherwise the rejection is the answer.
func TestUploadsAreBounded(t *testing.T) {
	for _, name := range guessing {
		lines := make([]triage.Line, 50_000)
		for i := range lines {
			lines[i] = triage.Line{Waiting: true, Model: "m", Bytes: 1}
		}
		s := simulation{reject: validators[name], guesses: triage.MaxGuesses}
		if err := s.run(lines); err != nil {
			t.Fatal(err)
		}
		if limit := 1 + 2*triage.MaxGuesses; s.uploads > limit {
			t.Errorf("%s: %d uploads, want at most %d", name, s.uploads, limit)
		}
		if s.answered+s.notSorted != len(lines) {
			t.Errorf("%s: %d lines answered and %d without a remedy, want %d together", name, s.answered, s.notSorted, len(lines))
		}
		if name == "gives no reason" && s.notSorted > 0 {
			t.Errorf("%s: %d lines without an answer", name, s.notSorted)
		}
	}
}

// Inputs above a size limit end in inputs that fit, if each line fits, and the
// number of uploads is bounded if no line fits.
func TestSizeLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.IntRange(1, 1<<20), 1, 200).Draw(t, "sizes")
		in := input(refusedUpload(413, fullPage))
		for _, size := range sizes {
			in.Lines = append(in.Lines, triage.Line{Waiting: true, Model: "m", Bytes: size})
		}
		passed, uploads := 0, 0
		for queue := []triage.Input{in}; len(queue) > 0; queue = queue[1:] {
			uploads++
			if sizeOf(queue[0]) <= 1<<20 {
				passed += len(queue[0].Lines)
				continue
			}
			plan := triage.Decide(queue[0])
			if err := checkPlan(queue[0], plan); err != nil {
				t.Fatal(err)
			}
			queue = append(queue, children(queue[0], plan)...)
		}
		if passed != len(sizes) {
			t.Fatalf("%d of %d lines got through", passed, len(sizes))
		}
		if limit := 1 + 8*(1+sizeOf(in)>>20); uploads > limit {
			t.Fatalf("%d uploads of %d bytes, want at most %d", uploads, sizeOf(in), limit)
		}
	})
}

func TestSizeLimitOfNothing(t *testing.T) {
	in := input(refusedUpload(413, fullPage))
	for range 50_000 {
		in.Lines = append(in.Lines, triage.Line{Waiting: true, Model: "m", Bytes: 4000})
	}
	uploads, guesses := 0, triage.MaxGuesses
	for queue := []triage.Input{in}; len(queue) > 0; queue = queue[1:] {
		uploads++
		queue[0].Guesses = guesses
		plan := triage.Decide(queue[0])
		guesses -= plan.Guesses
		queue = append(queue, children(queue[0], plan)...)
	}
	if limit := 1 + 2*(sizeOf(in)>>17+triage.MaxGuesses); uploads > limit {
		t.Errorf("%d uploads, want at most %d", uploads, limit)
	}
}

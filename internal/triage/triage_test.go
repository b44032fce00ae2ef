package triage_test

import (
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/triage"
)

// input returns an input of lines with these models; a model of "-" stands for a
// line without a caller.
func input(r triage.Rejection, models ...string) triage.Input {
	in := triage.Input{Rejection: r, Guesses: triage.MaxGuesses}
	for _, model := range models {
		in.Lines = append(in.Lines, triage.Line{Waiting: model != "-", Model: model, Bytes: 100})
	}
	return in
}

func failed(problems ...triage.Problem) triage.Rejection { return triage.Rejection{Problems: problems} }

func refusedUpload(status int, p triage.Problem) triage.Rejection {
	return triage.Rejection{Status: status, Uploading: true, Problems: []triage.Problem{p}}
}

func refusedCreate(status int, p triage.Problem) triage.Rejection {
	return triage.Rejection{Status: status, Problems: []triage.Problem{p}}
}

// after returns the input after a number of attempts.
func after(attempts int, in triage.Input) triage.Input {
	in.Attempts = attempts
	return in
}

// tokens returns the input with what the rate limiter knows.
func tokens(tokens, limit int64, alone bool, in triage.Input) triage.Input {
	in.Tokens, in.TokenLimit, in.Alone = tokens, limit, alone
	return in
}

// strict returns the input with lines that every JSON parser accepts.
func strict(in triage.Input, places ...int) triage.Input {
	for _, place := range places {
		in.Lines[place].Strict = true
	}
	return in
}

// noGuesses returns the input without halvings left.
func noGuesses(in triage.Input) triage.Input {
	in.Guesses = 0
	return in
}

// ran returns the rejection of a batch with counts, files and results.
func ran(r triage.Rejection, completed, failed int, hasFiles bool, results int) triage.Rejection {
	r.Completed, r.Failed, r.HasFiles, r.Ran = completed, failed, hasFiles, results
	return r
}

// answer returns the plan's Answer for a place.
func answer(place, status int, code, message string, line int) triage.Answer {
	return triage.Answer{Place: place, Status: status, Problem: triage.Problem{Code: code, Message: message, Line: line}}
}

var (
	thirdLine  = triage.Problem{Code: "invalid_request", Message: "bad", Line: 3}
	someLine   = triage.Problem{Code: "invalid_json_line", Message: "bad"}
	noReason   = "the batch failed and the provider gave no reason"
	manyTokens = triage.Problem{Code: "token_limit_exceeded", Message: "Limit: 90,000 enqueued tokens"}
	deleted    = triage.Rejection{InputDeleted: true, Problems: []triage.Problem{{Message: "no such file"}}}
	badRequest = triage.Problem{Message: "bad file"}
	fullPage   = triage.Problem{Message: "<html>Request Entity Too Large</html>"}
)

func TestDecide(t *testing.T) {
	noRemedy := triage.Plan{}
	groups := func(guesses int, g ...[]int) triage.Plan {
		return triage.Plan{Sorted: true, Groups: g, Guesses: guesses}
	}
	answered := func(a []triage.Answer, g ...[]int) triage.Plan {
		return triage.Plan{Sorted: true, Answers: a, Groups: g}
	}
	third := []triage.Answer{answer(2, 400, "invalid_request", "bad", 3)}
	for _, tt := range []struct {
		name string
		in   triage.Input
		want triage.Plan
	}{
		{
			"a named line costs only its caller",
			input(failed(thirdLine), "m", "m", "m", "m"), answered(third, []int{0, 1, 3}),
		},
		{
			"a line without a caller is neither answered nor resubmitted",
			input(failed(thirdLine), "m", "-", "m", "m"), answered(third, []int{0, 3}),
		},
		{
			"the named line has no caller",
			input(failed(thirdLine), "m", "m", "-", "m"), answered(nil, []int{0, 1, 3}),
		},
		{
			"no line has a caller",
			input(failed(thirdLine), "-", "-", "-"), answered(nil),
		},
		{
			"the only line is named",
			input(failed(triage.Problem{Message: "bad", Line: 1}), "m"), answered([]triage.Answer{answer(0, 400, "invalid_batch_line", "bad", 1)}),
		},
		{
			"a refused upload that names a line",
			input(refusedUpload(400, thirdLine), "m", "m", "m", "m"), answered(third, []int{0, 1, 3}),
		},
		{
			"a refused create that names a line",
			input(refusedCreate(422, thirdLine), "m", "m", "m", "m"), answered(third, []int{0, 1, 3}),
		},
		{
			"after many attempts the rest is halved",
			after(5, input(failed(thirdLine), "m", "m", "m", "m", "m")), answered(third, []int{0, 1}, []int{3, 4}),
		},
		{
			"the named line is the only waiting line, after many attempts",
			after(5, input(failed(thirdLine), "-", "-", "m")), answered(third),
		},
		{
			"after far too many attempts",
			after(50, input(failed(thirdLine), "m", "m", "m")), noRemedy,
		},
		{
			"an unknown model concerns all its lines",
			input(failed(triage.Problem{Code: "model_not_found", Message: "no", Line: 2}), "m", "x", "m", "x"),
			answered([]triage.Answer{answer(1, 400, "model_not_found", "no", 2), answer(3, 400, "model_not_found", "no", 2)}, []int{0, 2}),
		},
		{
			"an unknown model with 403",
			input(refusedUpload(403, triage.Problem{Message: "no", Line: 1}), "x", "m", "x"),
			answered([]triage.Answer{answer(0, 400, "model_not_found", "no", 1), answer(2, 400, "model_not_found", "no", 1)}, []int{1}),
		},
		{
			"a line keeps its own problem beside an unknown model",
			input(failed(triage.Problem{Code: "model_not_found", Message: "no", Line: 1}, triage.Problem{Code: "url_mismatch", Message: "url", Line: 2}), "x", "x"),
			answered([]triage.Answer{answer(0, 400, "model_not_found", "no", 1), answer(1, 400, "url_mismatch", "url", 2)}),
		},
		{
			"an unknown model that is not named: several models are separated",
			input(failed(triage.Problem{Code: "model_not_found"}), "m", "x"), groups(1, []int{0}, []int{1}),
		},
		{
			"an unknown model that is not named: one model has no remedy",
			input(failed(triage.Problem{Code: "model_not_found"}), "x", "-", "x"), noRemedy,
		},

		{
			"a line that is not named: halves",
			input(failed(someLine), "m", "m", "m", "m", "m"), groups(1, []int{0, 1}, []int{2, 3, 4}),
		},
		{
			"a line beyond the input names no line",
			input(failed(triage.Problem{Code: "invalid_json_line", Line: 7}), "m", "m"), groups(1, []int{0}, []int{1}),
		},
		{
			"the syntax of a line that every parser accepts: halves",
			strict(input(failed(triage.Problem{Code: "invalid_json_line", Line: 1}), "m", "m"), 0, 1), groups(1, []int{0}, []int{1}),
		},
		{
			"the syntax of such a line, refused at upload: halves",
			strict(input(triage.Rejection{Status: 400, Uploading: true, Problems: []triage.Problem{{Message: "Invalid JSON on line 1: x", Line: 1}}}, "m", "m"), 0, 1),
			groups(1, []int{0}, []int{1}),
		},
		{
			"the syntax of a line that some parsers refuse: the named line",
			strict(input(failed(triage.Problem{Code: "invalid_json_line", Line: 2}), "m", "m"), 0),
			triage.Plan{Sorted: true, Answers: []triage.Answer{answer(1, 400, "invalid_json_line", "", 2)}, Groups: [][]int{{0}}},
		},
		{
			"one waiting line of several goes alone",
			input(failed(someLine), "-", "m", "-"), groups(1, []int{1}),
		},
		{
			"a line that is not named, found",
			input(failed(someLine), "m"), answered([]triage.Answer{answer(0, 400, "invalid_json_line", "bad", 0)}),
		},
		{
			"no guesses left",
			noGuesses(input(failed(someLine), "m", "m")), noRemedy,
		},
		{
			"a problem of the whole batch",
			input(failed(triage.Problem{Code: "billing_hard_limit_reached", Message: "pay"}), "m", "m"), noRemedy,
		},

		{
			"a refused upload without a line: halves",
			input(refusedUpload(400, badRequest), "m", "m"), groups(1, []int{0}, []int{1}),
		},
		{
			"a refused upload of one line",
			input(refusedUpload(422, badRequest), "m"), answered([]triage.Answer{answer(0, 400, "invalid_batch_line", "bad file", 0)}),
		},
		{
			"a refused create without a line",
			input(refusedCreate(400, badRequest), "m", "m"), noRemedy,
		},
		{
			"a refused key",
			input(refusedUpload(401, badRequest), "m", "m"), noRemedy,
		},

		{
			"too large: halves, for a guess",
			input(refusedUpload(413, fullPage), "m", "m", "m", "m"), groups(1, []int{0, 1}, []int{2, 3}),
		},
		{
			"too large without an explanation",
			input(triage.Rejection{Status: 413, Uploading: true}, "m", "m"), groups(1, []int{0}, []int{1}),
		},
		{
			"too large, one line",
			input(refusedUpload(413, fullPage), "m"), noRemedy,
		},
		{
			"too large, no guesses left",
			noGuesses(input(refusedUpload(413, fullPage), "m", "m")), noRemedy,
		},

		{
			"counted as failed, but a line is named",
			input(ran(failed(thirdLine), 0, 4, false, 0), "m", "m", "m", "m"), answered(third, []int{0, 1, 3}),
		},
		{
			"counted as failed, with empty files, but a line is named",
			input(ran(failed(thirdLine), 0, 4, true, 0), "m", "m", "m", "m"), answered(third, []int{0, 1, 3}),
		},
		{
			"counted as failed, without a reason and without files",
			input(ran(failed(), 0, 2, false, 0), "m", "m"), groups(1, []int{0}, []int{1}),
		},
		{
			"counted as failed, without a reason: the results were not read",
			input(ran(failed(), 0, 2, true, 0), "m", "m"), noRemedy,
		},
		{
			"a line has completed",
			input(ran(failed(thirdLine), 1, 0, true, 0), "m", "m", "m"), noRemedy,
		},
		{
			"results were read",
			input(ran(failed(thirdLine), 0, 3, true, 3), "m", "m", "m"), noRemedy,
		},

		{
			"failed without a reason: halves",
			input(failed(), "m", "m", "m"), groups(1, []int{0}, []int{1, 2}),
		},
		{
			"failed without a reason, files without results",
			input(ran(failed(), 0, 0, true, 0), "m", "m"), groups(1, []int{0}, []int{1}),
		},
		{
			"failed with an empty problem",
			input(failed(triage.Problem{}), "m", "m"), groups(1, []int{0}, []int{1}),
		},
		{
			"a line failed without a reason",
			input(failed(), "m"), answered([]triage.Answer{answer(0, 424, "batch_failed", noReason, 0)}),
		},
		{
			"failed without a reason, no guesses left",
			noGuesses(input(failed(), "m", "-", "m")),
			answered([]triage.Answer{answer(0, 424, "batch_failed", noReason, 0), answer(2, 424, "batch_failed", noReason, 0)}),
		},

		{"the input was deleted", input(deleted, "m", "-", "m"), groups(0, []int{0, 2})},
		{"the input was deleted, after too many attempts", after(50, input(deleted, "m")), noRemedy},
		{"the input was deleted, but a line ran", input(ran(deleted, 0, 0, true, 1), "m"), noRemedy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := triage.Decide(tt.in); !samePlan(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// samePlan compares two plans; an empty list is the same as no list.
func samePlan(a, b triage.Plan) bool {
	for _, p := range []*triage.Plan{&a, &b} {
		if len(p.Groups) == 0 {
			p.Groups = nil
		}
	}
	return reflect.DeepEqual(a, b)
}

func TestDecideTokens(t *testing.T) {
	whole, halves := [][]int{{0, 1, 2, 3}}, [][]int{{0, 1}, {2, 3}}
	refused := func() triage.Input { return input(failed(manyTokens), "m", "m", "m", "m") }
	for _, tt := range []struct {
		name  string
		in    triage.Input
		want  [][]int
		delay time.Duration
	}{
		{"fits beside fewer batches", tokens(50, 100, false, refused()), whole, time.Minute},
		{"no limit is known", tokens(50, 0, false, refused()), whole, time.Minute},
		{"larger than the limit", tokens(150, 100, false, refused()), halves, time.Minute},
		{"alone, at first", tokens(50, 100, true, refused()), whole, time.Minute},
		{"alone, after many attempts", after(3, tokens(50, 100, true, refused())), halves, 8 * time.Minute},
		{"not alone, after many attempts", after(3, tokens(50, 100, false, refused())), whole, 8 * time.Minute},
		{"the delay is bounded", after(49, tokens(50, 100, false, refused())), whole, 15 * time.Minute},
		{"one line is never halved", tokens(150, 100, true, input(failed(manyTokens), "m")), [][]int{{0}}, time.Minute},
		{"no caller waits", tokens(150, 100, true, input(failed(manyTokens), "-", "-")), nil, time.Minute},
		{"a refused create", input(refusedCreate(429, manyTokens), "m"), [][]int{{0}}, time.Minute},
		{"beside another problem", input(failed(thirdLine, manyTokens), "m", "m", "m", "m"), whole, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := triage.Plan{Sorted: true, Groups: tt.want, Delay: tt.delay}
			if got := triage.Decide(tt.in); !samePlan(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
	if got := triage.Decide(after(50, refused())); got.Sorted {
		t.Errorf("after too many attempts: got %+v", got)
	}
}

func TestTokenRefusal(t *testing.T) {
	for _, tt := range []struct {
		code, message string
		limit         int64
		refused       bool
	}{
		{"token_limit_exceeded", "Enqueued token limit reached for m. Limit: 90,000 enqueued tokens. Please try again.", 90_000, true},
		{"token_limit_exceeded", "limit 15,000,000,000", 15_000_000_000, true},
		{"token_limit_exceeded", "Limit: 99999999999999999999", 1<<63 - 1, true},
		{"token_limit_exceeded", "Enqueued token limit reached.", 0, true},
		{"token_limit_exceeded", "limit, as agreed", 0, true},
		{"invalid_request", "Limit: 90,000 enqueued tokens", 0, false},
	} {
		limit, refused := triage.TokenRefusal(failed(thirdLine, triage.Problem{Code: tt.code, Message: tt.message}))
		if limit != tt.limit || refused != tt.refused {
			t.Errorf("%s %q: got %d, %v", tt.code, tt.message, limit, refused)
		}
	}
}

// Thirty lines of 60 kB pass a server with a limit of 1 MB without a guess.
func TestInputAboveSizeLimitIsSplit(t *testing.T) {
	in := input(refusedUpload(http.StatusRequestEntityTooLarge, fullPage))
	for range 30 {
		in.Lines = append(in.Lines, triage.Line{Waiting: true, Model: "m", Bytes: 60_000})
	}
	plan := triage.Decide(in)
	if len(plan.Groups) != 2 || len(plan.Groups[0]) != 15 || plan.Guesses != 0 {
		t.Errorf("got %+v, want two groups of 15 without a guess", plan)
	}
}

// A large line is separated from small lines by size, not by count.
func TestSizeSplitsByBytes(t *testing.T) {
	for large := range 5 {
		in := input(refusedUpload(http.StatusRequestEntityTooLarge, fullPage), "m", "m", "m", "m", "m")
		in.Lines[large].Bytes = 10_000_000
		uploads := 0
		for queue := []triage.Input{in}; len(queue) > 0; queue = queue[1:] {
			uploads++
			if sizeOf(queue[0]) > 1_000_000 {
				queue = append(queue, children(queue[0], triage.Decide(queue[0]))...)
			}
		}
		if uploads > 5 {
			t.Errorf("large line %d: %d uploads, want at most 5", large, uploads)
		}
	}
}

func sizeOf(in triage.Input) int {
	size := 0
	for _, l := range in.Lines {
		size += l.Bytes
	}
	return size
}

// children returns the inputs that the plan resubmits.
func children(in triage.Input, plan triage.Plan) []triage.Input {
	var all []triage.Input
	for _, g := range plan.Groups {
		child := in
		child.Lines, child.Attempts = nil, in.Attempts+1
		for _, place := range g {
			child.Lines = append(child.Lines, in.Lines[place])
		}
		all = append(all, child)
	}
	return all
}

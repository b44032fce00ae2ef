// Package triage sorts the lines of an input after a provider rejected the input
// without running a line: some lines are answered with the provider's reason, and
// the other lines are resubmitted in new batches. Bad input costs
// only the caller of the line. The package is pure: no network, no clock, no
// state.
package triage

import (
	"net/http"
	"time"
)

// A Line is one line of the rejected input.
type Line struct {
	Waiting bool // a caller waits for the line
	Model   string
	Bytes   int // of the line in the input

	// Strict says that every JSON parser accepts the line. A provider that names the
	// line for its syntax has counted lines differently, and another line is bad.
	Strict bool
}

// A Problem is a reason that a provider names for a rejection.
type Problem struct {
	Code, Message string
	Line          int // of the input, from 1; 0: the provider named no line
}

// A Rejection says how a provider rejected an input. Status tells the two kinds
// apart: a refused upload or create has the status of the response, a failed batch
// has 0.
type Rejection struct {
	Status    int  // of the response to the upload or create; 0: the batch failed
	Uploading bool // the upload was refused, not the create
	Problems  []Problem

	// Of a failed batch.
	Completed, Failed int  // lines, as the provider counts the lines
	HasFiles          bool // the provider names a file of results
	Ran               int  // number of results in the files; the caller of Decide reads all files first
	InputDeleted      bool // our process had deleted the input file, and the batch could not run
}

// lineRan reports whether the provider ran a line. Counts alone prove nothing: after
// a failed validation a provider may count all lines as failed, and may name files
// without results. Failed lines and files without any problem, however, mean
// unread results.
func (r *Rejection) lineRan() bool {
	return r.Ran > 0 || r.Completed > 0 || r.Failed > 0 && r.HasFiles && len(r.problems()) == 0
}

// problems returns the problems without the empty problems. A refusal with 403
// and a line is Doubleword's answer to an unknown model.
func (r *Rejection) problems() []Problem {
	var said []Problem
	for _, p := range r.Problems {
		if r.Status == http.StatusForbidden && p.Line > 0 && p.Code == "" {
			p.Code = modelNotFound
		}
		if p != (Problem{}) {
			said = append(said, p)
		}
	}
	return said
}

// An Input is the input of Decide.
type Input struct {
	Lines     []Line // by place in the input
	Rejection Rejection
	Attempts  int // earlier batches of the same lines that were rejected
	Guesses   int // halvings left, shared by all descendants of an input; MaxGuesses at first

	// Of a refusal for too many tokens, after the rate limiter knows the refusal.
	Tokens     int64 // estimate for the input
	TokenLimit int64 // of the rate limiter; 0: no limit
	Alone      bool  // the rate limiter knows no other batch under the same limit
}

// An Answer is the error response for one line.
type Answer struct {
	Place   int     // of the line in the input, from 0
	Status  int     // of the HTTP response: 400 for a bad line, 424 for a failure without a reason
	Problem Problem // in the provider's words; Code is set
}

// A Plan answers or resubmits the lines with waiting callers. If Sorted is true,
// every line with a waiting caller is in exactly one Answer or exactly one group. If
// Sorted is false, triage has no remedy: the caller of Decide answers all lines
// with the rejection, and both lists are empty.
type Plan struct {
	Sorted  bool
	Answers []Answer
	Groups  [][]int       // places in ascending order; each group is resubmitted in a new batch
	Delay   time.Duration // before the new batches are submitted
	Guesses int           // halvings in the plan, to be subtracted from the shared number
}

// The limits on resubmitting lines of a rejected input. The provider executed
// nothing and charged nothing, but each new batch is an upload.
const (
	// MaxGuesses is how often an input and the descendants of the input may be
	// halved in order to find bad lines without the provider's help.
	MaxGuesses = 64

	maxAttempts = 50

	// halveAfter is the number of attempts after which the rest of an input is
	// halved with each named line: the input has many bad lines, and the provider
	// names a single line at a time.
	halveAfter = 5

	// halveTokensAfter is the number of attempts after which an input with too
	// many tokens is halved although no other batch was enqueued: the estimate of
	// the tokens may be too low.
	halveTokensAfter = 3

	// smallInput is the number of bytes up to which halving an input uses a guess
	// after a refusal as too large. Halving a larger input always ends soon.
	smallInput = 256 << 10
)

// Decide returns the plan for a rejected input. The caller asks TokenRefusal
// first, and reports a refusal for too many tokens to the rate limiter.
func Decide(in Input) Plan {
	r := &in.Rejection
	if in.Attempts >= maxAttempts || r.Status == 0 && r.lineRan() {
		return Plan{}
	}
	if _, refused := TokenRefusal(*r); refused {
		return in.waitForTokens()
	}
	if r.InputDeleted {
		return resubmit(in.waiting())
	}
	if named := in.named(); len(named) > 0 {
		return in.answerNamed(named)
	}
	return in.search()
}

// search halves the input in order to find bad lines without a name.
func (in *Input) search() Plan {
	r := &in.Rejection
	problems := r.problems()
	if r.Status == http.StatusRequestEntityTooLarge {
		return in.shrink()
	}
	if r.Status == 0 && len(problems) == 0 {
		return in.halve(unexplained, http.StatusFailedDependency)
	}
	for _, p := range problems {
		if in.concernsLine(p) {
			return in.halve(p, http.StatusBadRequest)
		}
	}
	return Plan{}
}

// unexplained is the problem of a line whose batch failed without a reason. The
// status of the answer is 424, since the server may be at fault and not the line.
var unexplained = Problem{Code: "batch_failed", Message: "the batch failed and the provider gave no reason"}

// waiting returns the places of the lines with waiting callers.
func (in *Input) waiting() []int {
	var places []int
	for i, l := range in.Lines {
		if l.Waiting {
			places = append(places, i)
		}
	}
	return places
}

// halve resubmits the two halves of an input with a bad line. An input of one
// line has found the bad line. Without guesses left, only an unexplained failure
// is answered here: other failures have a reason, and the reason is the answer
// for all lines.
func (in *Input) halve(p Problem, status int) Plan {
	places := in.waiting()
	switch {
	case len(in.Lines) == 1 || in.Guesses <= 0 && status == http.StatusFailedDependency:
		return Plan{Sorted: true, Answers: answers(places, status, p)}
	case in.Guesses <= 0:
		return Plan{}
	}
	plan := resubmit(split(places, len(places)/2)...)
	plan.Guesses = 1
	return plan
}

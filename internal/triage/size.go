package triage

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// shrink halves an input after a refusal as too large: by bytes, to keep the number
// of uploads small. A single line that is too large has no remedy.
// Halving a large input uses no guess, since the provider may accept only a small
// part of the input; halving a small input does, since the provider may refuse
// any input.
func (in *Input) shrink() Plan {
	size := 0
	for _, l := range in.Lines {
		size += l.Bytes
	}
	guesses := 0
	if size <= smallInput {
		guesses = 1
	}
	if len(in.Lines) == 1 || guesses > in.Guesses {
		return Plan{}
	}
	places := in.waiting()
	plan := resubmit(split(places, in.middle(places))...)
	plan.Guesses = guesses
	return plan
}

// middle returns the index that splits places into two parts of similar size in
// bytes. Neither part is empty if the input has two places.
func (in *Input) middle(places []int) int {
	if len(places) < 2 {
		return 0
	}
	total := 0
	for _, place := range places {
		total += in.Lines[place].Bytes + 1 // each line counts, even an empty line
	}
	sum := 0
	for i, place := range places[:len(places)-1] {
		sum += in.Lines[place].Bytes + 1
		if 2*sum >= total {
			return i + 1
		}
	}
	return len(places) - 1
}

const (
	minTokenDelay = time.Minute
	maxTokenDelay = 15 * time.Minute
)

// waitForTokens resubmits an input with too many tokens after a delay, in halves if
// the input cannot fit. The delay doubles with each attempt.
func (in *Input) waitForTokens() Plan {
	places := in.waiting()
	groups := [][]int{places}
	tooLarge := in.TokenLimit > 0 && in.Tokens > in.TokenLimit
	if tooLarge || in.Alone && in.Attempts >= halveTokensAfter {
		groups = split(places, len(places)/2)
	}
	plan := resubmit(groups...)
	plan.Delay = min(minTokenDelay<<min(in.Attempts, 4), maxTokenDelay)
	return plan
}

// namedLimit finds the limit in a message of the provider: "Limit: 90,000
// enqueued tokens".
var namedLimit = regexp.MustCompile(`(?i)limit:?\s*(\d[\d,]*)`)

// TokenRefusal reports whether the input was refused because too many tokens
// are enqueued, and the limit in the provider's message, 0 without a limit. A number
// above the largest int64 is returned as the largest int64.
func TokenRefusal(r Rejection) (limit int64, refused bool) {
	for _, p := range r.Problems {
		if p.Code != "token_limit_exceeded" {
			continue
		}
		if m := namedLimit.FindStringSubmatch(p.Message); m != nil {
			limit, _ = strconv.ParseInt(strings.ReplaceAll(m[1], ",", ""), 10, 64)
		}
		return limit, true
	}
	return 0, false
}

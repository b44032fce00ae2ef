package triage

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
)

// modelNotFound is the code of a line with an unknown model. The problem
// concerns every line with the same model.
const modelNotFound = "model_not_found"

// lineCodes are the codes of OpenAI and Azure for problems of a single line.
var lineCodes = []string{
	"invalid_json_line", "duplicate_custom_id", "url_mismatch", "model_mismatch",
	"mismatched_model", "invalid_request", "invalid_url", "invalid_method",
}

// concernsLine reports whether a problem without a line number may be the problem
// of a single line. A refused upload is a matter of the content of the file; a
// refused create is a matter of the parameters of the batch.
func (in *Input) concernsLine(p Problem) bool {
	r := &in.Rejection
	switch {
	case r.Status == http.StatusBadRequest, r.Status == http.StatusUnprocessableEntity:
		return r.Uploading
	case r.Status != 0:
		return false
	}
	return slices.Contains(lineCodes, p.Code) || p.Code == modelNotFound && in.models() > 1
}

// models returns the number of models of the waiting lines.
func (in *Input) models() int {
	models := make(map[string]bool)
	for _, l := range in.Lines {
		if l.Waiting {
			models[l.Model] = true
		}
	}
	return len(models)
}

// named returns the problems with a line of the input.
func (in *Input) named() []Problem {
	return slices.DeleteFunc(in.Rejection.problems(), func(p Problem) bool {
		return p.Line < 1 || p.Line > len(in.Lines) || p.concernsSyntax() && in.Lines[p.Line-1].Strict
	})
}

// concernsSyntax reports whether the problem is a line that is not JSON.
func (p Problem) concernsSyntax() bool {
	return p.Code == "invalid_json_line" || strings.Contains(p.Message, "Invalid JSON on line")
}

// answerNamed answers the named lines, and resubmits the other lines.
func (in *Input) answerNamed(problems []Problem) Plan {
	bad := in.badPlaces(problems)
	var plan Plan
	var rest []int
	for _, place := range in.waiting() {
		if p, ok := bad[place]; ok {
			plan.Answers = append(plan.Answers, answers([]int{place}, http.StatusBadRequest, p)...)
		} else {
			rest = append(rest, place)
		}
	}
	groups := [][]int{rest}
	if in.Attempts >= halveAfter {
		groups = split(rest, len(rest)/2)
	}
	next := resubmit(groups...)
	next.Answers = plan.Answers
	return next
}

// badPlaces returns the first problem of each place with a problem.
func (in *Input) badPlaces(problems []Problem) map[int]Problem {
	bad := make(map[int]Problem)
	models := make(map[string]Problem)
	for _, p := range problems {
		place := p.Line - 1
		if _, ok := bad[place]; !ok {
			bad[place] = p
		}
		if p.Code == modelNotFound {
			models[in.Lines[place].Model] = p
		}
	}
	for place, l := range in.Lines {
		p, unknown := models[l.Model]
		if _, ok := bad[place]; unknown && !ok {
			bad[place] = p
		}
	}
	return bad
}

// answers returns one Answer for each place.
func answers(places []int, status int, p Problem) []Answer {
	p.Code = cmp.Or(p.Code, "invalid_batch_line")
	var all []Answer
	for _, place := range places {
		all = append(all, Answer{Place: place, Status: status, Problem: p})
	}
	return all
}

// resubmit returns a plan with groups, without the empty groups.
func resubmit(groups ...[]int) Plan {
	groups = slices.DeleteFunc(groups, func(g []int) bool { return len(g) == 0 })
	return Plan{Sorted: true, Groups: groups}
}

// split returns the places before and from index i.
func split(places []int, i int) [][]int { return [][]int{places[:i], places[i:]} }

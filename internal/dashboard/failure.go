package dashboard

import (
	"cmp"
	"slices"
)

// A Failure is a held call that ended without an OK answer.
type Failure struct {
	BatchID  string // "": the call was in no batch
	Status   int    // HTTP status of the answer; 0: the connection ended without an answer
	Code     string // error.code, or error.type, of the answer; "" if the answer has none
	FromLine bool   // the provider answered the call with an error; false: the call has no answer of the provider
	Refused  bool   // autobatcher did not accept the call, which the tiles do not count
}

// A reason says how many calls failed in the same way.
type reason struct {
	Status   int    `json:"status"`
	Code     string `json:"code"`
	FromLine bool   `json:"fromLine"` // an error of the provider, and not of autobatcher or of the batch
	Refused  bool   `json:"refused"`
	Calls    int64  `json:"calls"`
}

// maxReasons bounds the reasons of a batch, and of all batches together: codes come
// from the provider. Further reasons are counted as otherReasons.
const maxReasons = 20

const otherReasons = "other codes"

// addReason counts a failure.
func addReason(reasons []reason, f Failure) []reason {
	r := reason{Status: f.Status, Code: clip(redact(f.Code)), FromLine: f.FromLine, Refused: f.Refused, Calls: 1}
	same := func(have reason) bool {
		return have.Status == r.Status && have.Code == r.Code && have.FromLine == r.FromLine && have.Refused == r.Refused
	}
	i := slices.IndexFunc(reasons, same)
	if i < 0 && len(reasons) >= maxReasons {
		r.Status, r.Code = 0, otherReasons
		i = slices.IndexFunc(reasons, same)
	}
	if i < 0 {
		reasons = append(reasons, r)
	} else {
		reasons[i].Calls++
	}
	slices.SortStableFunc(reasons, func(x, y reason) int { return cmp.Compare(y.Calls, x.Calls) })
	return reasons
}

// fail counts a failure, for its batch and for the page.
func (b *board) fail(f Failure) {
	b.reasons = addReason(b.reasons, f)
	if t := b.find(clip(f.BatchID)); t != nil {
		t.Reasons = addReason(t.Reasons, f)
		b.changed(t)
	}
}

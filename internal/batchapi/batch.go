package batchapi

import (
	"cmp"
	"math"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/backend"
)

// parseBatch reads a batch object. inputFileID is the batch's input file, where
// the object names none.
func parseBatch(o gjson.Result, inputFileID string) (backend.Status, error) {
	s := backend.Status{
		Handle: backend.Handle{
			FileID:  cmp.Or(inputFileOf(o), inputFileID),
			BatchID: o.Get("id").String(),
		},
		Word: canonicalStatus(o.Get("status").String()),
		Counts: backend.Counts{
			Completed: int(o.Get("request_counts.completed").Int()),
			Failed:    int(o.Get("request_counts.failed").Int()),
			Total:     int(o.Get("request_counts.total").Int()),
		},
		Problems:     problems(o),
		OutputFileID: o.Get("output_file_id").String(),
		ErrorFileID:  o.Get("error_file_id").String(),
	}
	s.Phase = phase(s.Word)
	for _, id := range []string{s.OutputFileID, s.ErrorFileID} {
		if id != "" {
			s.Sources = append(s.Sources, id)
		}
	}
	if s.Handle.BatchID == "" {
		return backend.Status{}, backend.NoAnswer("batch", errNoID)
	}
	return s, nil
}

// inputFileOf is the input file that a batch object names, or empty.
func inputFileOf(o gjson.Result) string { return o.Get("input_file_id").String() }

func problems(o gjson.Result) []backend.Problem {
	var all []backend.Problem
	for _, e := range o.Get("errors.data").Array() {
		all = append(all, backend.Problem{
			Code: e.Get("code").String(), Message: e.Get("message").String(), Line: int(e.Get("line").Int()),
		})
	}
	return all
}

// phase is the phase of a status. An unknown status is not an end.
func phase(word string) backend.Phase {
	switch word {
	case "completed", "failed", "expired", "cancelled":
		return backend.Ended
	case "cancelling":
		return backend.Cancelling
	}
	return backend.Running
}

// canonicalStatus turns the spellings of other providers (Azure "Validating",
// Together "CANCELING") into OpenAI's.
func canonicalStatus(s string) string {
	s = strings.ToLower(s)
	switch s {
	case "canceling":
		return "cancelling"
	case "canceled":
		return "cancelled"
	}
	return s
}

// moment reads a time as Unix seconds (OpenAI) or RFC 3339 (Azure, Together). It
// returns the zero time for anything else.
func moment(v gjson.Result) time.Time {
	if v.Type == gjson.String {
		t, _ := time.Parse(time.RFC3339, v.Str)
		return t
	}
	if n := v.Float(); n > 0 && n < math.MaxInt32*10 {
		return time.Unix(int64(n), 0)
	}
	return time.Time{}
}

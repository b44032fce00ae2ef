package batchapi

import (
	"io"
	"math"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// CreateParams is what a batch is created from.
type CreateParams struct {
	InputFileID      string
	Endpoint         string
	CompletionWindow string
	Metadata         map[string]string
	OutputExpiry     time.Duration // after which the results are deleted; 0: the provider's default
}

// A Batch is what the provider says of a batch. Everything but ID may be
// missing.
type Batch struct {
	ID           string
	Status       string // lower case, spelt as OpenAI does
	InputFileID  string
	OutputFileID string
	ErrorFileID  string
	Counts       Counts
	ExpiresAt    time.Time
	Problems     []Problem

	// FileDeleted says that Settle deleted the input file before it found the
	// batch, which may fail for want of it.
	FileDeleted bool
}

// Counts is a batch's request_counts.
type Counts struct {
	Completed int `json:"completed"`
	Failed    int `json:"failed"`
	Total     int `json:"total"`
}

// A Problem is one entry of a batch's errors.
type Problem struct {
	Code, Message string
	Line          int // of the input file, from 1; 0: none named
}

// Terminal reports whether nothing more will happen to the batch. A status
// nobody knows yet is not terminal.
func (b Batch) Terminal() bool {
	switch b.Status {
	case "completed", "failed", "expired", "cancelled":
		return true
	}
	return false
}

// Content is a file on its way down.
type Content struct {
	Body       io.ReadCloser
	Partial    bool // the server speaks of partial results: a next read can be resumed
	Incomplete bool // X-Incomplete: more lines will come
	LastLine   int  // X-Last-Line: where the next read resumes; -1: not said
}

func parseBatch(o gjson.Result) (Batch, error) {
	b := Batch{
		ID:           o.Get("id").String(),
		Status:       canonicalStatus(o.Get("status").String()),
		InputFileID:  o.Get("input_file_id").String(),
		OutputFileID: o.Get("output_file_id").String(),
		ErrorFileID:  o.Get("error_file_id").String(),
		ExpiresAt:    moment(o.Get("expires_at")),
		Counts: Counts{
			Completed: int(o.Get("request_counts.completed").Int()),
			Failed:    int(o.Get("request_counts.failed").Int()),
			Total:     int(o.Get("request_counts.total").Int()),
		},
	}
	for _, e := range o.Get("errors.data").Array() {
		b.Problems = append(b.Problems, Problem{
			Code: e.Get("code").String(), Message: e.Get("message").String(), Line: int(e.Get("line").Int()),
		})
	}
	if b.ID == "" {
		return Batch{}, &Error{Op: "batch", Err: errNoID}
	}
	return b, nil
}

// canonicalStatus folds the spellings of other providers (Azure "Validating",
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

// moment reads a time as Unix seconds (OpenAI) or RFC 3339 (Azure, Together).
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

package batchtest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// An Outcome is the result of a line or of a realtime call. The zero Outcome is
// a success with the answer of [Echo].
type Outcome struct {
	// Status is the HTTP status of the answer; zero means 200.
	Status int
	// Body is the body of the answer. Nil means Echo's answer for a success, and
	// an error in OpenAI's shape for a failure. A body that is not JSON is written
	// as a JSON string, and newlines between the tokens of JSON are left out.
	Body []byte
	// BodyAsString writes the body as a JSON string even if the body is JSON.
	BodyAsString bool
	// BodyVerbatim writes the body without any change, even if the body is not
	// JSON: a raw TAB in a string, "\$", or Python's -Infinity. A newline in the
	// body splits the result line.
	BodyVerbatim bool

	// Code and Message are an error without an HTTP response, such as
	// "request_timeout". A realtime call is answered 500.
	Code, Message string
	// Refused makes the provider's check refuse the line: the batch fails while
	// validating with this error, and executes no line. The Server sets the line
	// number. A realtime call is answered 400. Nil: the line passes the check.
	Refused *BatchError

	// ResponseStatus is the status of a response that ends without an HTTP error:
	// "incomplete" (for lack of max_output_tokens), "failed" or "cancelled". Empty
	// means "completed". Failed and cancelled responses are not billed. Other
	// endpoints ignore ResponseStatus.
	ResponseStatus string
	// Tier is the service tier that a realtime call is answered and paid for at, if
	// the provider does not grant the tier that the call asks for. Empty means the
	// tier that the call asks for.
	Tier Tier
	// FlexRefused refuses the call for lack of capacity if the call asks for the tier
	// flex: the call is not executed. Other calls, and lines of batches, ignore
	// FlexRefused.
	FlexRefused bool

	// Delay is when the line finishes, counted from the end of validating. Zero
	// and negative mean the line's turn within Turnaround. A realtime call is
	// answered after Delay. A background response is in progress for Delay; zero and
	// negative mean Options.ResponseRunning.
	Delay time.Duration
	// Never keeps the line unfinished until the window, a cancel or
	// [Server.Finish] ends the batch. A realtime call ends with the client's
	// timeout, or with the Server. A background response is in progress until the
	// response is cancelled.
	Never bool

	// Displaced puts the finished line at the start of the result file, as at a
	// provider that sorts by a time taken before the line is written. A reader
	// that skips the number of lines read so far misses the displaced line and
	// reads an earlier line twice.
	Displaced bool
	// Duplicates is how many further copies of the result line follow the line.
	// The counts of the batch do not include the copies.
	Duplicates int
	// Missing counts the line as completed but writes the line to no file. A finished
	// background response answers 404.
	Missing bool
	// Garbage is written in place of the line to the output file, or of the body
	// of a realtime call.
	Garbage string
}

// ok reports whether the line counts as completed.
func (o *Outcome) ok() bool {
	return o.Garbage != "" || o.Missing || o.Code == "" && o.Refused == nil && o.Status >= 200 && o.Status <= 299
}

// billed reports whether an execution with the outcome is paid for.
func (o *Outcome) billed() bool {
	return o.ok() && o.ResponseStatus != failed && o.ResponseStatus != cancelled
}

// outcome decides the outcome of a line, and fills in the fields that
// Options.Answer leaves empty.
func (s *Server) outcome(l Line) Outcome {
	var o Outcome
	switch {
	case l.BatchID != "" && unlucky(s.opts.Seed, l.CustomID, s.opts.FailRate):
		o.Status = http.StatusInternalServerError
	case s.opts.Answer != nil:
		o = s.opts.Answer(l)
	}
	o.Status = cmp.Or(o.Status, http.StatusOK)
	switch {
	case o.Body != nil:
		o.tidy()
	case o.Garbage != "" || o.Missing || o.Code != "" || o.Refused != nil:
	case o.ok():
		o.Body = Echo(l).Body
	default:
		o.Body = failureBody(o.Status)
	}
	if o.ResponseStatus != "" && o.isObject() && strings.HasSuffix(l.URL, responses) {
		o.endResponse()
	}
	return o
}

// isObject reports whether the body is the JSON object of a success, which the
// Server may complete.
func (o *Outcome) isObject() bool {
	return o.ok() && o.Garbage == "" && !o.BodyAsString && !o.BodyVerbatim && len(o.Body) > 0 && o.Body[skipSpace(o.Body, 0)] == '{'
}

// endResponse writes ResponseStatus into the body.
func (o *Outcome) endResponse() {
	o.Body = withField(o.Body, "status", o.ResponseStatus)
	switch o.ResponseStatus {
	case incomplete:
		o.Body = withField(o.Body, "incomplete_details", object{"reason": "max_output_tokens"})
	case failed:
		o.Body = withField(o.Body, "error", object{"code": "server_error", "message": "The model failed to generate a response."})
		fallthrough
	case cancelled:
		o.Body = withField(withField(o.Body, "output", []any{}), "usage", nil)
	}
}

// tidy makes the body fit on a line.
func (o *Outcome) tidy() {
	if o.BodyVerbatim {
		return
	}
	if !json.Valid(o.Body) {
		o.BodyAsString = true
		return
	}
	if !o.BodyAsString && bytes.IndexByte(o.Body, '\n') >= 0 {
		var buf bytes.Buffer
		_ = json.Compact(&buf, o.Body)
		o.Body = buf.Bytes()
	}
}

func unlucky(seed int64, id string, rate float64) bool {
	if rate <= 0 {
		return false
	}
	h := digest([]byte(fmt.Sprintf("%d %s", seed, id)))
	return float64(h>>11)/(1<<53) < rate
}

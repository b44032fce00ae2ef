// Package failure makes the answers of calls that get none from the provider: each says
// in OpenAI's error shape what happened, and whether a retry is safe.
package failure

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/results"
	"github.com/autobatcher/autobatcher/internal/triage"
	"github.com/autobatcher/autobatcher/provider"
)

// The codes of the errors. The constants of the same names in package autobatcher are
// their documentation.
const (
	CodeBatchExpired     = "batch_expired"
	CodeBatchCancelled   = "batch_cancelled"
	CodeBatchFailed      = "batch_failed"
	CodeLineMissing      = "batch_line_missing"
	CodeLineFailed       = "batch_line_failed"
	CodeLineUnreadable   = "batch_line_unreadable"
	CodeResultsUnread    = "batch_results_unread"
	CodeBatchLost        = "batch_lost"
	CodeBatchOverdue     = "batch_overdue"
	CodeCreateUnknown    = "batch_create_unknown"
	CodeDeadlineExceeded = "batch_deadline_exceeded"
	CodeRedirected       = "redirected"
	CodeInternalError    = "internal_error"
	CodeInvalidLine      = "invalid_batch_line"
	CodeBatchUnsupported = "batch_unsupported"
	CodeBudgetExhausted  = "budget_exhausted"
	CodePriceUnknown     = "price_unknown"
	CodeBatchRefused     = "batch_refused"
	CodeNotSubmitted     = "batch_not_submitted"
	CodeJournalFailed    = "journal_failed"
	CodeRealtimeFailed   = "realtime_failed"
)

// ErrOverdue says why a batch was given up.
var ErrOverdue = errors.New("it ran a day past its completion window")

// An Answer is what a call gets in place of an answer.
type Answer struct {
	reply.Answer
	Err    error // that RoundTrip returns; nil: the response
	Paid   bool  // the provider may have executed the line: a retry within two minutes gets the same failure
	Reopen bool  // the line may yet answer a retry
}

// New returns a failure in OpenAI's error shape.
func New(status int, code, message string) Answer {
	return Answer{Answer: reply.Failure(status, code, message)}
}

// paid is New for a call whose line may be paid for.
func paid(code, message string) Answer {
	return Answer{Answer: reply.Failure(http.StatusFailedDependency, code, message), Paid: true}
}

// A Batch is what is known of a batch whose calls get no answer.
type Batch struct {
	Window  string // completion window
	URL     string // the endpoint
	Status  *backend.Status
	Results *results.Reader
	Climbed bool  // the call came from a batch to the flex tier
	GoesOn  bool  // a call that the flex tier refuses goes on to real time, unless the limit is reached
	Closed  error // what the errors of a Transport that was closed wrap
}

func (b Batch) name() string { return lane.Name(b.Window, b.Status.Handle.BatchID) }

// Verdict is the answer for a call whose batch ended without a result for the call.
func Verdict(b Batch, _ error) Answer {
	code, what := CodeLineMissing, "completed, but has no result for this request"
	switch b.Status.Word {
	case "completed":
	case "failed":
		code, what = CodeBatchFailed, "failed"
	case "expired":
		code, what = CodeBatchExpired, "expired before it came to this request"
	default:
		code, what = CodeBatchCancelled, "was cancelled before it came to this request"
	}
	return New(http.StatusFailedDependency, code, b.name()+" "+what+backend.Reasons(b.Status.Problems))
}

// Unread is the answer for a call whose result exists and could not be downloaded. With
// a journal, the same call again looks for the result again.
func Unread(b Batch, _ error) Answer {
	a := paid(CodeResultsUnread,
		fmt.Sprintf("the results of %s (%s) could not be downloaded within %v: %v", b.name(), b.Status.Word, b.Results.Timeout(), b.Results.Err()))
	a.Reopen = true
	return a
}

// LostCode is the code of the answer for calls of a batch that could not be followed to
// its end.
func LostCode(err error) string {
	switch {
	case errors.Is(err, ErrOverdue):
		return CodeBatchOverdue
	case errors.Is(err, backend.ErrUnsure):
		return CodeCreateUnknown
	}
	return CodeBatchLost
}

// Lost is the answer for the calls of a batch that could not be followed to its end.
func Lost(b Batch, err error) Answer {
	if errors.Is(err, ErrOverdue) && b.Results.Verdict() > results.Missing {
		return Unread(b, err)
	}
	a := paid(LostCode(err), b.name()+" was given up: "+err.Error())
	var failed *backend.Error
	a.Reopen = errors.As(err, &failed) && failed.Status != http.StatusNotFound && failed.Status != http.StatusGone // the batch runs, for a credential that may be valid again
	return a
}

// Refused tells a caller why its batch could not be created. A refusal of the provider
// is passed on as it is; where the provider could not be reached, nothing was submitted,
// and so a retry is safe. The provider's refusal of the flex tier says nothing about a call
// that came from a batch, which may answer a retry, nor about a call that real time answers
// as soon as the limit of escalations has room.
func Refused(b Batch, err error) Answer {
	notSubmitted := lane.Name(b.Window, "") + " could not be submitted: " + err.Error()
	switch {
	case errors.Is(err, journalsession.ErrFailed):
		return New(http.StatusServiceUnavailable, CodeJournalFailed, "the call was not submitted: "+err.Error())
	case errors.Is(err, backend.ErrUnsure):
		return paid(CodeCreateUnknown, notSubmitted)
	}
	var failed *backend.Error
	switch {
	case errors.As(err, &failed) && failed.Redirected():
		return New(http.StatusFailedDependency, CodeRedirected, failed.Message())
	case failed == nil || failed.Transient() || failed.RateLimited() || (b.Climbed || b.GoesOn) && errors.Is(err, backend.ErrNoTier):
		a := New(http.StatusServiceUnavailable, CodeNotSubmitted, notSubmitted)
		a.Retry = true
		return a
	}
	return Answer{Answer: reply.BatchRejected(failed.Status, failed.Body, failed.Message())}
}

// Closed is the error for the calls of a Transport that was closed.
func Closed(b Batch, _ error) Answer {
	if b.Status.Handle.BatchID == "" {
		return Answer{Err: fmt.Errorf("%w before the request to %s was submitted", b.Closed, b.URL)}
	}
	return Answer{Err: fmt.Errorf("%w before %s completed", b.Closed, b.name())}
}

// Defect is the answer for the calls of a batch that ended by a defect.
func Defect(b Batch, _ error) Answer {
	return New(http.StatusFailedDependency, CodeInternalError, b.name()+" ended by a defect of autobatcher")
}

// Orphaned is the answer for a call of another process, whose body this process does not
// have.
func Orphaned(b Batch) Answer {
	return New(http.StatusFailedDependency, CodeBatchLost, b.name()+" did not answer this request, and the process that could send the request again has ended")
}

// Line is the answer for a line that got no HTTP answer.
func Line(b Batch, r *line.Result) Answer {
	message := b.name() + " could not answer this request"
	if why := cmp.Or(r.Message, r.Code); why != "" {
		message += ": " + why
	}
	return New(http.StatusFailedDependency, cmp.Or(r.Code, CodeLineFailed), message)
}

// LineUnreadable is the answer for a line whose result cannot be read. The line was paid
// for, and another line would be paid for, too.
func LineUnreadable(b Batch) Answer {
	return paid(CodeLineUnreadable, b.name()+" answered this request with a result line that cannot be read")
}

// LineRefused is the answer for a line that the provider refused the input for, in the
// provider's words: 400 for a bad line, 424 for a failure without a reason.
func LineRefused(a triage.Answer) Answer {
	return New(a.Status, cmp.Or(a.Problem.Code, CodeInvalidLine),
		"the provider refused this request's line of the batch: "+backend.Problem{Message: a.Problem.Message, Code: a.Problem.Code}.String())
}

// Late is the answer for a call whose deadline has come. batchID is "" before the call
// was sent, and for a flex call that is held open, whose id comes with its answer.
func Late(deadline time.Duration, window, batchID string) Answer {
	late := fmt.Sprintf("%s did not answer within the call's deadline of %v; ", lane.Name(window, batchID), deadline)
	what := late + "the same call again takes over its line"
	switch {
	case batchID == "" && window == provider.FlexWindow:
		what = late + "if the call was sent, the same call again to this process gets its answer"
	case batchID == "":
		what = fmt.Sprintf("the call's deadline of %v came before the call was sent", deadline)
	}
	a := New(http.StatusFailedDependency, CodeDeadlineExceeded, what)
	a.BatchID = batchID
	return a
}

// LateInRealtime is the answer for a call that was sent in real time and not answered
// within its deadline.
func LateInRealtime(deadline time.Duration) Answer {
	return New(http.StatusFailedDependency, CodeDeadlineExceeded,
		fmt.Sprintf("the call was sent in real time, and not answered within its deadline of %v", deadline))
}

// Realtime is the answer for a call that was sent in real time, and got no answer.
func Realtime(err error) Answer {
	return New(http.StatusBadGateway, CodeRealtimeFailed, "the call was sent in real time, and failed: "+err.Error())
}

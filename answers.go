package autobatcher

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/results"
	"github.com/autobatcher/autobatcher/internal/triage"
)

// The codes of the errors that autobatcher itself answers with, in error.code of the
// body. Errors of the provider keep the provider's codes.
const (
	// Status 424: the call was not answered. SDKs do not retry a 424, since a retry
	// would pay for another line.
	CodeBatchExpired     = "batch_expired"           // the batch expired before it came to the call
	CodeBatchCancelled   = "batch_cancelled"         // the batch was cancelled before it came to the call
	CodeBatchFailed      = "batch_failed"            // the provider failed the batch
	CodeLineMissing      = "batch_line_missing"      // the batch completed without a result for the call
	CodeLineFailed       = "batch_line_failed"       // the line ended without an answer; the provider's own code, if there is one, takes its place
	CodeLineUnreadable   = "batch_line_unreadable"   // paid: the result cannot be read
	CodeResultsUnread    = "batch_results_unread"    // paid: the results could not be downloaded
	CodeBatchLost        = "batch_lost"              // perhaps paid: the provider does not know the batch, or refuses the key
	CodeBatchOverdue     = "batch_overdue"           // perhaps paid: the batch ran a day past its completion window
	CodeCreateUnknown    = "batch_create_unknown"    // perhaps paid: it is not known whether the batch was created
	CodeDeadlineExceeded = "batch_deadline_exceeded" // the call's deadline came first; the same call again takes over the line
	CodeRedirected       = "redirected"              // the provider redirects uploads, creates, or calls at the flex tier
	CodeInternalError    = "internal_error"          // a defect of autobatcher

	// Other statuses.
	CodeInvalidLine      = "invalid_batch_line"  // 400: the provider refused the line
	CodeBatchUnsupported = "batch_unsupported"   // 400: the provider has no Batch API that autobatcher knows
	CodeBudgetExhausted  = "budget_exhausted"    // 402: the call may cost more than what is left of Options.Budget
	CodePriceUnknown     = "price_unknown"       // 402: Options.Budget is set, and the price of the model is not known
	CodeBatchRefused     = "batch_refused"       // the provider's status: the provider refused the batch without an error in OpenAI's shape
	CodeNotSubmitted     = "batch_not_submitted" // 503: nothing was submitted, and a retry is safe
	CodeJournalFailed    = "journal_failed"      // 503: nothing was submitted, since the required journal failed
	CodeRealtimeFailed   = "realtime_failed"     // 502: the call was escalated, and the provider did not answer
)

// verdictAnswer is the answer for a call whose batch ended without a result for
// the call.
func verdictAnswer(b *batch, _ error) *answer {
	code, what := CodeLineMissing, "completed, but has no result for this request"
	switch b.status.Word {
	case "completed":
	case "failed":
		code, what = CodeBatchFailed, "failed"
	case "expired":
		code, what = CodeBatchExpired, "expired before it came to this request"
	default:
		code, what = CodeBatchCancelled, "was cancelled before it came to this request"
	}
	return failure(http.StatusFailedDependency, code, lane.Name(b.key.window, b.id())+" "+what+backend.Reasons(b.status.Problems))
}

// unreadAnswer is the answer for a call whose result exists and could not be
// downloaded. With a journal, the same call again looks for the result again.
func unreadAnswer(b *batch, _ error) *answer {
	a := paidFailure(CodeResultsUnread,
		fmt.Sprintf("the results of %s (%s) could not be downloaded within %v: %v", lane.Name(b.key.window, b.id()), b.status.Word, b.results.Timeout(), b.results.Err()))
	a.Reopen = true
	return a
}

// lostCode is the code of the answer for calls of a batch that could not be
// followed to its end.
func lostCode(err error) string {
	switch {
	case errors.Is(err, errOverdue):
		return CodeBatchOverdue
	case errors.Is(err, backend.ErrUnsure):
		return CodeCreateUnknown
	}
	return CodeBatchLost
}

// lostAnswer is the answer for the calls of a batch that could not be followed to
// its end.
func lostAnswer(b *batch, err error) *answer {
	if errors.Is(err, errOverdue) && b.results.Verdict() > results.Missing {
		return unreadAnswer(b, err)
	}
	a := paidFailure(lostCode(err), lane.Name(b.key.window, b.id())+" was given up: "+err.Error())
	var failed *backend.Error
	a.Reopen = errors.As(err, &failed) && failed.Status != http.StatusNotFound && failed.Status != http.StatusGone // the batch runs, for a credential that may be valid again
	return a
}

// refusedAnswer tells a caller why its batch could not be created. A refusal of
// the provider is passed on as it is; where the provider could not be reached,
// nothing was submitted, and so a retry is safe.
func refusedAnswer(b *batch, err error) *answer {
	notSubmitted := lane.Name(b.key.window, "") + " could not be submitted: " + err.Error()
	switch {
	case errors.Is(err, journalsession.ErrFailed):
		return failure(http.StatusServiceUnavailable, CodeJournalFailed, "the call was not submitted: "+err.Error())
	case errors.Is(err, backend.ErrUnsure):
		return paidFailure(CodeCreateUnknown, notSubmitted)
	}
	var failed *backend.Error
	switch {
	case errors.As(err, &failed) && failed.Redirected():
		return failure(http.StatusFailedDependency, CodeRedirected, failed.Message())
	case failed == nil || failed.Transient() || failed.RateLimited():
		return failure(http.StatusServiceUnavailable, CodeNotSubmitted, notSubmitted)
	}
	return &answer{Answer: reply.BatchRejected(failed.Status, failed.Body, failed.Message())}
}

func closedAnswer(b *batch, _ error) *answer {
	if b.id() == "" {
		return &answer{Err: fmt.Errorf("%w before the request to %s was submitted", ErrClosed, b.url)}
	}
	return &answer{Err: fmt.Errorf("%w before %s completed", ErrClosed, lane.Name(b.key.window, b.id()))}
}

func defectAnswer(b *batch, _ error) *answer {
	return failure(http.StatusFailedDependency, CodeInternalError, lane.Name(b.key.window, b.id())+" ended by a defect of autobatcher")
}

// lineFailure is the answer for a line that got no HTTP answer.
func lineFailure(b *batch, r *line.Result) *answer {
	message := lane.Name(b.key.window, b.id()) + " could not answer this request"
	if why := cmp.Or(r.Message, r.Code); why != "" {
		message += ": " + why
	}
	return failure(http.StatusFailedDependency, cmp.Or(r.Code, CodeLineFailed), message)
}

// lineUnreadable is the answer for a line whose result cannot be read. The line
// was paid for, and another line would be paid for, too.
func lineUnreadable(b *batch) *answer {
	return paidFailure(CodeLineUnreadable,
		lane.Name(b.key.window, b.id())+" answered this request with a result line that cannot be read")
}

// lineRefused is the answer for a line that the provider refused the input for,
// in the provider's words: 400 for a bad line, 424 for a failure without a reason.
func lineRefused(a triage.Answer) *answer {
	return failure(a.Status, cmp.Or(a.Problem.Code, CodeInvalidLine),
		"the provider refused this request's line of the batch: "+backend.Problem{Message: a.Problem.Message, Code: a.Problem.Code}.String())
}

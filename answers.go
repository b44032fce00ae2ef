package autobatcher

import "github.com/autobatcher/autobatcher/internal/failure"

// The codes of the errors that autobatcher itself answers with, in error.code of the
// body. Errors of the provider keep the provider's codes.
const (
	// Status 424: the call was not answered. SDKs do not retry a 424, since a retry
	// would pay for another line.
	CodeBatchExpired     = failure.CodeBatchExpired     // the batch expired before it came to the call
	CodeBatchCancelled   = failure.CodeBatchCancelled   // the batch was cancelled before it came to the call
	CodeBatchFailed      = failure.CodeBatchFailed      // the provider failed the batch
	CodeLineMissing      = failure.CodeLineMissing      // the batch completed without a result for the call
	CodeLineFailed       = failure.CodeLineFailed       // the line ended without an answer; the provider's own code, if there is one, takes its place
	CodeLineUnreadable   = failure.CodeLineUnreadable   // paid: the result cannot be read
	CodeResultsUnread    = failure.CodeResultsUnread    // paid: the results could not be downloaded
	CodeBatchLost        = failure.CodeBatchLost        // perhaps paid: the provider does not know the batch, or refuses the key
	CodeBatchOverdue     = failure.CodeBatchOverdue     // perhaps paid: the batch ran a day past its completion window
	CodeCreateUnknown    = failure.CodeCreateUnknown    // perhaps paid: it is not known whether the batch was created
	CodeDeadlineExceeded = failure.CodeDeadlineExceeded // the call's deadline came first; the same call again takes over the line
	CodeRedirected       = failure.CodeRedirected       // the provider redirects uploads, creates, or calls at the flex tier
	CodeInternalError    = failure.CodeInternalError    // a defect of autobatcher

	// Other statuses.
	CodeInvalidLine      = failure.CodeInvalidLine      // 400: the provider refused the line
	CodeBatchUnsupported = failure.CodeBatchUnsupported // 400: the provider has no Batch API that autobatcher knows
	CodeBudgetExhausted  = failure.CodeBudgetExhausted  // 402: the call may cost more than what is left of Options.Budget
	CodePriceUnknown     = failure.CodePriceUnknown     // 402: Options.Budget is set, and the price of the model is not known
	CodeBatchRefused     = failure.CodeBatchRefused     // the provider's status: the provider refused the batch without an error in OpenAI's shape
	CodeNotSubmitted     = failure.CodeNotSubmitted     // 503: nothing was submitted, and a retry is safe
	CodeJournalFailed    = failure.CodeJournalFailed    // 503: nothing was submitted, since the required journal failed
	CodeRealtimeFailed   = failure.CodeRealtimeFailed   // 502: the call was escalated, and the provider did not answer
)

// about describes a batch for the error responses to its calls.
func about(b *batch) failure.Batch {
	return failure.Batch{Window: b.key.window, URL: b.url, Status: &b.status, Results: b.results, Closed: ErrClosed, GoesOn: b.t.opts.escalates(true), Climbed: b.queue.First != nil && Mode(b.queue.First.Request.mode) == ModeRealtime}
}

// failedAnswer is a failure as the registry hands the failure to a caller.
func failedAnswer(a failure.Answer) *answer {
	return &answer{Answer: a.Answer, Err: a.Err, Paid: a.Paid, Reopen: a.Reopen}
}

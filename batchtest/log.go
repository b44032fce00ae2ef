package batchtest

import (
	"net/http"
	"net/url"
	"slices"
	"time"
)

// maxRequests is how many requests the log keeps. The oldest are removed first.
const maxRequests = 10_000

// A Request is an HTTP request that the Server has answered.
type Request struct {
	Method, Path string
	Query        url.Values
	Header       http.Header
	Status       int // zero if the connection broke before the status was sent
	Time         time.Time
}

// An Upload is a file that the Server accepted.
type Upload struct {
	ID, Filename, Purpose string
	// Content is shared with the Server and must not be changed.
	Content []byte
	// Lines are the valid lines, in the order of the file.
	Lines []Line
	// Form holds the other form fields, and Header the header of the request.
	// Both are shared with the Server and must not be changed.
	Form   url.Values
	Header http.Header
	// APIKey is the credential, without "Bearer ", and Account who owns the file.
	APIKey, Account string
	Time            time.Time
	Deleted         bool
}

// A Batch is the state of a batch at one moment.
type Batch struct {
	ID, InputFileID, Endpoint, Window string
	Metadata                          map[string]string
	// Status has OpenAI's spelling with every Behavior.
	Status                   string
	Total, Completed, Failed int
	CancelRequested          bool
	Errors                   []BatchError
	Lines                    []BatchLine
	// APIKey is the credential that created the batch, without "Bearer ", and
	// Account who owns the batch.
	APIKey, Account string
	Created         time.Time
	// Ended is zero until the batch has ended.
	Ended time.Time
}

// A BatchLine is a line and the planned outcome of the line.
type BatchLine struct {
	Line
	Outcome Outcome
	// Finished says that the line has ended with the outcome.
	Finished bool
}

// An Execution is a line, or a realtime call, after the model has answered.
type Execution struct {
	Line
	Outcome Outcome
	// Tier is the service tier, and so the price, of the execution.
	Tier Tier
	// APIKey is the credential of the create or of the call, without "Bearer ",
	// and Account who pays.
	APIKey, Account string
}

// A Response is the state of a background response at one moment.
type Response struct {
	ID string
	Line
	Outcome Outcome
	// Tier is the service tier of the execution.
	Tier Tier
	// Status is "queued", "in_progress", "completed", "incomplete", "failed" or
	// "cancelled".
	Status string
	// CancelRequested says that a client cancelled the response before its end, and
	// Deleted that a client deleted the response.
	CancelRequested, Deleted bool
	// APIKey is the credential that created the response, without "Bearer ", and
	// Account who owns the response.
	APIKey, Account string
	Created         time.Time
	// Ended is zero until the response has ended.
	Ended time.Time
}

// Uploads returns all accepted files, even deleted files, the oldest first.
func (s *Server) Uploads() []Upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	uploads := make([]Upload, len(s.uploads))
	for i, f := range s.uploads {
		uploads[i] = Upload{
			ID: f.id, Filename: f.name, Purpose: f.purpose, Content: f.data, Lines: slices.Clone(f.lines),
			Form: f.form, Header: f.header, APIKey: f.owner.key, Account: f.owner.account, Time: f.created, Deleted: f.deleted,
		}
	}
	return uploads
}

// Batches returns all batches, the oldest first.
func (s *Server) Batches() []Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	batches := make([]Batch, len(s.order))
	for i, b := range s.order {
		b.advanceLocked(time.Now())
		batches[i] = b.snapshot()
	}
	return batches
}

// Requests returns the newest ten thousand requests, in the order in which the
// answers ended.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Responses returns all background responses, even deleted responses, the oldest
// first.
func (s *Server) Responses() []Response {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Response
	now := time.Now()
	for _, c := range s.calls {
		if p := c.response; p != nil {
			all = append(all, Response{
				ID: p.id, Line: c.line, Outcome: c.outcome, Tier: c.tier, Status: c.status(now),
				CancelRequested: !c.cancelled.IsZero(), Deleted: p.deleted, APIKey: c.owner.key, Account: c.owner.account,
				Created: c.created, Ended: c.ended(now),
			})
		}
	}
	return all
}

// Executed returns every line, realtime call and background response that the model
// has executed, even failed lines: batches in the order of creation, then calls. A
// call that was refused, cancelled before its end, or left by its caller (see
// [Behavior].FlexSurvives) is not executed.
func (s *Server) Executed() []Execution {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Execution
	for _, b := range s.order {
		b.advanceLocked(time.Now())
		for _, i := range b.queue[:b.settled] {
			all = append(all, Execution{b.lineAt(int(i)), b.outcomes[i], TierBatch, b.owner.key, b.owner.account})
		}
	}
	now := time.Now()
	for _, c := range s.calls {
		if c.executed(now) {
			all = append(all, Execution{c.line, c.outcome, c.tier, c.owner.key, c.owner.account})
		}
	}
	return all
}

// Paid counts the executions that are billed, by [Line.Key]. A count above one
// means that the same work was paid for twice, at any tiers. Lines that ended in
// an error cost nothing. Lines that are Missing or Garbage are billed.
func (s *Server) Paid() map[string]int { return paidBy(s, func(e Execution) string { return e.Key() }) }

// PaidPrompts is like Paid, but counts by [Line.Prompt]: give each call of a test a
// prompt of its own, and no count may be above one.
func (s *Server) PaidPrompts() map[string]int {
	return paidBy(s, func(e Execution) string { return e.Prompt() })
}

// PaidTiers is like Paid, but counts by the tier, and so by the price.
func (s *Server) PaidTiers() map[Tier]int { return paidBy(s, func(e Execution) Tier { return e.Tier }) }

func paidBy[K comparable](s *Server, name func(Execution) K) map[K]int {
	paid := map[K]int{}
	for _, e := range s.Executed() {
		if e.Outcome.billed() {
			paid[name(e)]++
		}
	}
	return paid
}

// noteLocked adds to the log of requests. The caller holds mu.
func (s *Server) noteLocked(entry Request) {
	if len(s.requests) == maxRequests {
		s.requests = slices.Delete(s.requests, 0, maxRequests/10)
	}
	s.requests = append(s.requests, entry)
}

// A recorder records the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= 200 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

func (r *recorder) Flush() { _ = http.NewResponseController(r.ResponseWriter).Flush() }

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

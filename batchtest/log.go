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
	// Status has OpenAI's spelling, whatever the Behavior.
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
	// APIKey is the credential of the create or of the call, without "Bearer ",
	// and Account who pays.
	APIKey, Account string
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

// Executed returns every line and realtime call that the model has executed, even
// failed lines: batches in the order of creation, then realtime calls.
func (s *Server) Executed() []Execution {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Execution
	for _, b := range s.order {
		b.advanceLocked(time.Now())
		for _, i := range b.queue[:b.settled] {
			all = append(all, Execution{b.lineAt(int(i)), b.outcomes[i], b.owner.key, b.owner.account})
		}
	}
	for _, c := range s.realtime {
		all = append(all, Execution{c.line, c.outcome, c.owner.key, c.owner.account})
	}
	return all
}

// Paid counts the executions that are billed, by [Line.Key]. A count above one
// means that the same work was paid for twice. Lines that ended in an error
// cost nothing. Lines that are Missing or Garbage are billed.
func (s *Server) Paid() map[string]int { return s.paidBy(Line.Key) }

// PaidPrompts is like Paid, but counts by [Line.Prompt]: give each call of a test a
// prompt of its own, and no count may be above one.
func (s *Server) PaidPrompts() map[string]int { return s.paidBy(Line.Prompt) }

func (s *Server) paidBy(name func(Line) string) map[string]int {
	paid := map[string]int{}
	for _, e := range s.Executed() {
		if e.Outcome.ok() {
			paid[name(e.Line)]++
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

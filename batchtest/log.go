package batchtest

import (
	"net/http"
	"net/url"
	"slices"
	"time"
)

// maxRequests is how many requests the log keeps; the oldest give way.
const maxRequests = 10_000

// A Request is one HTTP request the Server has answered.
type Request struct {
	Method, Path string
	Query        url.Values
	Header       http.Header
	Status       int // zero if the connection broke before there was one
	Time         time.Time
}

// An Upload is one file the Server accepted.
type Upload struct {
	ID, Filename, Purpose string
	// Content is shared with the Server: read it, never change it.
	Content []byte
	// Lines are those that could be read, in the file's order.
	Lines []Line
	// Form holds the other form fields, and Header what the request came with;
	// both are shared with the Server as well.
	Form   url.Values
	Header http.Header
	// APIKey is the credential, without "Bearer ".
	APIKey  string
	Time    time.Time
	Deleted bool
}

// A Batch is a batch at one moment.
type Batch struct {
	ID, InputFileID, Endpoint, Window string
	Metadata                          map[string]string
	// Status is in OpenAI's spelling, whatever the manners.
	Status                   string
	Total, Completed, Failed int
	CancelRequested          bool
	Errors                   []BatchError
	Lines                    []BatchLine
	// APIKey is the credential, without "Bearer ".
	APIKey  string
	Created time.Time
	// Ended is zero until the batch has ended.
	Ended time.Time
}

// A BatchLine is a line and what is to become of it.
type BatchLine struct {
	Line
	Outcome Outcome
	// Finished says that the outcome has come about; until then it is only planned.
	Finished bool
}

// An Execution is a line, or a realtime call, that the model has answered.
type Execution struct {
	Line
	Outcome Outcome
	// APIKey is the credential that pays, without "Bearer ".
	APIKey string
}

// Uploads returns the files accepted so far, the oldest first, deleted ones included.
func (s *Server) Uploads() []Upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	uploads := make([]Upload, len(s.uploads))
	for i, f := range s.uploads {
		uploads[i] = Upload{
			ID: f.id, Filename: f.name, Purpose: f.purpose, Content: f.data, Lines: slices.Clone(f.lines),
			Form: f.form, Header: f.header, APIKey: f.key, Time: f.created, Deleted: f.deleted,
		}
	}
	return uploads
}

// Batches returns the batches created so far, the oldest first.
func (s *Server) Batches() []Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	batches := make([]Batch, len(s.order))
	for i, b := range s.order {
		b.advance(time.Now())
		batches[i] = b.snapshot()
	}
	return batches
}

// Requests returns the requests answered so far, in the order in which their
// answers ended. It keeps the newest ten thousand.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Executed returns every line and realtime call the model has dealt with, failed
// ones included: batches in the order of their creation, then realtime calls.
func (s *Server) Executed() []Execution {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Execution
	for _, b := range s.order {
		b.advance(time.Now())
		for _, i := range b.queue[:b.settled] {
			all = append(all, Execution{b.lineAt(int(i)), b.outcomes[i], b.key})
		}
	}
	for _, c := range s.realtime {
		all = append(all, Execution{c.line, c.outcome, c.key})
	}
	return all
}

// Paid counts what the model has answered and will be billed, by [Line.Key].
// A count above one means that the same work was paid for twice. Lines that
// ended in an error cost nothing; Missing and Garbage ones do.
func (s *Server) Paid() map[string]int {
	paid := map[string]int{}
	for _, e := range s.Executed() {
		if e.Outcome.billed() {
			paid[e.Key()]++
		}
	}
	return paid
}

// note adds to the log of requests. It needs mu.
func (s *Server) note(entry Request) {
	if len(s.requests) == maxRequests {
		s.requests = slices.Delete(s.requests, 0, maxRequests/10)
	}
	s.requests = append(s.requests, entry)
}

// A recorder remembers the status of an answer.
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

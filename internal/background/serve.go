package background

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/autobatcher/autobatcher/internal/reply"
	"github.com/autobatcher/autobatcher/internal/retry"
	"github.com/autobatcher/autobatcher/journal"
)

const (
	// recallWait is how long a question waits for an answer that has to be read from the
	// provider. Then the response says that the call is in progress.
	recallWait = 2 * time.Second

	// recallAttempts is how often an answer is recalled that the journal knows to exist,
	// and recallPause the time in between: another process may be reading the answer.
	recallAttempts = 3
	recallPause    = 500 * time.Millisecond
)

// Serve answers a request that names an id of this package: GET, DELETE, and POST …/cancel.
// For any other request ok is false.
func (s *Server) Serve(req *http.Request) (res *http.Response, ok bool) {
	if req.URL == nil {
		return nil, false
	}
	parts := target.FindStringSubmatch(req.URL.EscapedPath())
	if parts == nil {
		return nil, false
	}
	if req.Body != nil {
		_ = req.Body.Close()
	}
	ask := req.WithContext(req.Context())
	ask.URL = callURL(req.URL, parts[1])
	j := recalled(s.opts.Key(ask, parts[2]), parts[2])
	switch method := req.Method; {
	case method == http.MethodGet && parts[3] == "" && req.URL.Query().Get("stream") == "true":
		return refusal(req, http.StatusBadRequest, "stream_unsupported", "the answer of a call in the background cannot be streamed; ask without stream"), true
	case method == http.MethodGet && parts[3] == "":
		return s.get(ask, j), true
	case method == http.MethodDelete && parts[3] == "":
		return s.delete(ask, j), true
	case method == http.MethodPost && parts[3] != "":
		return s.cancel(ask, j), true
	}
	return refusal(req, http.StatusMethodNotAllowed, "method_not_allowed", "of a call in the background there are GET, DELETE and POST …/cancel"), true
}

// recalled returns a job that takes over a line.
func recalled(key Key, id string) *job {
	j := newJob(key, id)
	j.recalled = true
	return j
}

func refusal(req *http.Request, status int, code, message string) *http.Response {
	a := reply.Failure(status, code, message)
	return a.Response(req)
}

func notFound(req *http.Request, id string) *http.Response {
	return refusal(req, http.StatusNotFound, "response_not_found", fmt.Sprintf(
		"no call in the background with the id %s is known for this credential: the answer was deleted, is older than it is kept for (--keep-for, Options.KeepFor), or was lost with a process that had no journal file", id))
}

// get answers with the state of a call.
func (s *Server) get(req *http.Request, j *job) *http.Response {
	for attempt := 1; ; attempt++ {
		if e := s.endingOf(j.key); e != nil {
			return e.response(req, j)
		}
		known := s.recall(req, recalled(j.key, j.id))
		select {
		case <-known.ended:
		default:
			status := "queued"
			if known.isSent() {
				status = "in_progress"
			}
			return s.unfinished(req, known, status, http.StatusAccepted)
		}
		switch err := known.result.err; {
		case err == nil:
			return known.final(req)
		case !errors.Is(err, ErrNotFound):
			return refusal(req, http.StatusServiceUnavailable, "response_unavailable", "the answer cannot be had now: "+err.Error())
		}
		b, err := s.look(req.Context(), j.key)
		switch {
		case err != nil:
			return refusal(req, http.StatusServiceUnavailable, "journal_failed", "the journal cannot be asked for the response: "+err.Error())
		case b == nil:
			return notFound(req, j.id)
		case b.State != journal.Ended || attempt == recallAttempts || retry.Sleep(req.Context(), recallPause) != nil:
			return s.elsewhere(req, j, b)
		}
	}
}

func (s *Server) endingOf(key Key) *ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache.Prune()
	return s.endings[key]
}

// recall returns the job that runs for an id, or starts j, which takes over the line.
// recall waits a little for a job that takes over a line.
func (s *Server) recall(req *http.Request, j *job) *job {
	s.mu.Lock()
	known := s.jobs[j.key]
	if known == nil {
		s.addLocked(j)
	}
	s.mu.Unlock()
	if known != nil {
		j = known
	} else if inner := s.inner(req, j, nil, nil); !s.opts.Start(func() { s.run(j, inner, s.opts.Recall) }) {
		j.result.err = s.opts.Err
		s.drop(j)
		close(j.ended)
	}
	if j.recalled {
		timer := time.NewTimer(recallWait)
		defer timer.Stop()
		select {
		case <-j.ended:
		case <-timer.C:
		case <-req.Context().Done():
		}
	}
	return j
}

// look returns the batch that has the line of an undelivered answer, as the journal knows
// the batch; nil if there is none.
func (s *Server) look(ctx context.Context, key Key) (*journal.Batch, error) {
	found, err := s.opts.Journal.Find(ctx, key.Account, []journal.Hash{key.Fingerprint})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[len(found)-1].Batch, nil
}

// cancel has a call not made any more, if the call has no answer yet.
func (s *Server) cancel(req *http.Request, wanted *job) *http.Response {
	if e := s.endingOf(wanted.key); e != nil {
		return e.response(req, wanted)
	}
	j := s.recall(req, wanted)
	select {
	case <-j.ended:
		if j.result.err == nil {
			return j.final(req) // as at OpenAI: too late to cancel
		}
		b, err := s.look(req.Context(), j.key)
		if err == nil && b == nil {
			return notFound(req, j.id)
		}
	default:
	}
	if err := s.withdraw(req.Context(), j); err != nil {
		return refusal(req, http.StatusServiceUnavailable, "journal_failed", "the response could not be cancelled: "+err.Error())
	}
	e := &ending{key: j.key, cancelled: j}
	s.end(j, e)
	return e.response(req, j)
}

// delete forgets a call and its answer.
func (s *Server) delete(req *http.Request, wanted *job) *http.Response {
	known := s.forgetEnding(wanted.key)
	j := s.recall(req, wanted)
	select {
	case <-j.ended:
		if j.result.err == nil { // the answer was kept
			known, j = true, recalled(wanted.key, wanted.id)
			j.discard = true
			s.recall(req, j)
		}
	default:
		known = true
	}
	if !known {
		b, err := s.look(req.Context(), j.key)
		if err == nil && b == nil {
			return notFound(req, j.id)
		}
	}
	if err := s.withdraw(req.Context(), j); err != nil {
		return refusal(req, http.StatusServiceUnavailable, "journal_failed", "the response could not be deleted: "+err.Error())
	}
	s.forgetEnding(wanted.key) // of a call that has failed meanwhile
	return deleted(req, j)
}

func (s *Server) forgetEnding(key Key) (known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.endings[key]
	if e != nil {
		s.cache.Remove(e.entry)
		delete(s.endings, key)
	}
	return e != nil
}

// withdraw ends a job, here and in the journal: nobody will ask for the answer.
func (s *Server) withdraw(ctx context.Context, j *job) error {
	j.cancel(ErrWithdrawn)
	return s.opts.Journal.Withdraw(ctx, j.key.Account, []journal.Hash{j.key.Fingerprint})
}

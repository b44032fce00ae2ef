package background

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
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
	parts := match(req.URL)
	if parts == nil {
		return nil, false
	}
	if req.Body != nil {
		_ = req.Body.Close()
	}
	async := callOf(parts[2]).async
	call := *req.URL
	call.RawPath = parts[1]
	call.Path, _ = url.PathUnescape(parts[1])
	ask := withURL(req, knownURL(&call, async))
	id, key := parts[2], s.opts.Key(ask, []byte(parts[2]))
	switch method := req.Method; {
	case method == http.MethodGet && parts[3] == "" && !async && req.URL.Query().Get("stream") == "true":
		return refusal(req, http.StatusBadRequest, "stream_unsupported", "the answer of a call in the background cannot be streamed; ask without stream"), true
	case method == http.MethodGet && parts[3] == "":
		return s.get(ask, key, id), true
	case method == http.MethodDelete && parts[3] == "":
		return s.delete(ask, key, id), true
	case method == http.MethodPost && parts[3] != "":
		return s.cancel(ask, key, id), true
	}
	return refusal(req, http.StatusMethodNotAllowed, "method_not_allowed", "of a call in the background there are GET, DELETE and POST …/cancel"), true
}

// knownURL returns the URL by which a call is known. For a response of OpenAI's API, this is
// the URL of the call without what a question for the response may have in its query, also
// where the call itself has this. The query of any other call is in the Location that the
// caller got.
func knownURL(u *url.URL, async bool) *url.URL {
	if async || u.RawQuery == "" {
		return u
	}
	known := *u
	var kept []string // as the call wrote its query: another order is another URL
	for parameter := range strings.SplitSeq(u.RawQuery, "&") {
		name, _, _ := strings.Cut(parameter, "=")
		if name != "stream" && name != "starting_after" && !strings.HasPrefix(name, "include") {
			kept = append(kept, parameter)
		}
	}
	known.RawQuery = strings.Join(kept, "&")
	return &known
}

func withURL(req *http.Request, u *url.URL) *http.Request {
	req = req.WithContext(req.Context())
	req.URL = u
	return req
}

// callOf returns what an id says of its call.
func callOf(id string) call {
	return call{id: id, async: strings.HasPrefix(id, asyncPrefix), created: time.Now()}
}

// recalled returns a job that takes over a line.
func recalled(key Key, id string) *job {
	j := newJob(names{key: key}, callOf(id))
	j.recalled = true
	return j
}

func refusal(req *http.Request, status int, code, message string) *http.Response {
	a := reply.Failure(status, code, message)
	return a.Response(req)
}

// notFound says why an id may be unknown. The text names the bound of the registry.
func (s *Server) notFound(req *http.Request, id string) *http.Response {
	lost := "was lost with a process that had no journal file"
	if !s.opts.Journal.Enabled() {
		lost = "was lost: without a journal, answers beyond 64 MiB are forgotten, and all answers when their process ends; with a journal (--journal, Options.Journal), answers are read again from the provider"
	}
	return refusal(req, http.StatusNotFound, "response_not_found", fmt.Sprintf(
		"no call in the background with the id %s is known for this credential: the answer was deleted, is older than it is kept for (--keep-for, Options.KeepFor), or %s", id, lost))
}

func journalFailed(req *http.Request, err error) *http.Response {
	return refusal(req, http.StatusServiceUnavailable, "journal_failed", "the journal cannot be asked for the call: "+err.Error())
}

// get answers with the state of a call.
func (s *Server) get(req *http.Request, key Key, id string) *http.Response {
	for attempt := 1; ; attempt++ {
		if e := s.endingOf(key); e != nil {
			return e.response(req, id)
		}
		j, err := s.recall(req, recalled(key, id))
		if err != nil {
			return journalFailed(req, err)
		}
		if !j.hasEnded() {
			return j.unfinished(req, j.status())
		}
		switch err := j.result.err; {
		case err == nil:
			return j.final(req, j.result)
		case errors.Is(err, ErrWithdrawn) && attempt < recallAttempts:
			continue // it was cancelled or deleted meanwhile
		case !errors.Is(err, ErrNotFound):
			return refusal(req, http.StatusServiceUnavailable, "response_unavailable", "the answer cannot be had now: "+err.Error())
		case j.batch == nil:
			return s.notFound(req, id)
		case j.batch.State != journal.Ended, attempt == recallAttempts, retry.Sleep(req.Context(), recallPause) != nil:
			return j.unfinished(req, j.status()) // another process has the call
		}
	}
}

// recall returns the job that runs for an id, or starts j, which takes over the line.
// recall waits a little for a job that takes over a line.
func (s *Server) recall(req *http.Request, j *job) (*job, error) {
	known := s.running(j.key)
	if known == nil {
		var err error
		if j.batch, j.line, err = s.look(req.Context(), j.key); err != nil {
			return nil, err
		}
		j.describe()
		s.mu.Lock()
		if known = s.jobs[j.key]; known == nil {
			s.addLocked(j)
		}
		s.mu.Unlock()
	}
	if known != nil {
		j = known
	} else {
		inner := s.inner(req, j, nil)
		s.start(j, func() { s.run(j, inner, s.opts.Recall) })
	}
	if j.recalled {
		j.await(req.Context())
	}
	return j, nil
}

func (s *Server) running(key Key) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobs[key]
}

// await waits a little for the end of a job.
func (j *job) await(ctx context.Context) {
	timer := time.NewTimer(recallWait)
	defer timer.Stop()
	select {
	case <-j.ended:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// look returns the newest batch with an undelivered line of a call, as the journal knows
// the batch, and the name of the line; nil if there is no such line.
func (s *Server) look(ctx context.Context, key Key) (b *journal.Batch, line string, err error) {
	found, err := s.opts.Journal.Find(ctx, key.Account, []journal.Hash{key.Fingerprint})
	if err != nil || len(found) == 0 {
		return nil, "", err
	}
	newest := &found[len(found)-1]
	return &newest.Batch, newest.Lines[len(newest.Lines)-1].CustomID, nil
}

// describe notes what the journal knows of a call of another process.
func (j *job) describe() {
	if j.batch == nil {
		return
	}
	j.created = j.batch.Began
	if len(j.batch.Models) == 1 {
		j.model = j.batch.Models[0]
	}
}

// cancel has a call not made any more, if the call has no answer yet.
func (s *Server) cancel(req *http.Request, key Key, id string) *http.Response {
	if e := s.endingOf(key); e != nil {
		return e.response(req, id)
	}
	j, err := s.recall(req, recalled(key, id))
	switch {
	case err != nil:
		return journalFailed(req, err)
	case j.hasEnded() && j.result.err == nil:
		return j.final(req, j.result) // as at OpenAI: too late to cancel
	case j.hasEnded() && j.batch == nil:
		return s.notFound(req, id)
	}
	e := j.cancellation()
	s.end(e) // before the job ends, for those who wait for the end
	s.withdrawJob(j)
	if err := s.withdraw(req.Context(), key); err != nil {
		s.forgetEnding(key)
		return journalFailed(req, err)
	}
	return e.response(req, id)
}

// delete forgets a call and its answer.
func (s *Server) delete(req *http.Request, key Key, id string) *http.Response {
	known := s.forgetEnding(key)
	for attempt := 1; ; attempt++ {
		j := recalled(key, id)
		j.discard = true
		j, err := s.recall(req, j)
		if err != nil {
			return journalFailed(req, err)
		}
		s.withdrawJob(j)
		j.await(req.Context())
		known = known || j.batch != nil || !j.hasEnded() || !errors.Is(j.result.err, ErrNotFound)
		if kept := j.hasEnded() && j.result.err == nil && !j.discard; !kept || attempt == recallAttempts {
			break
		}
	}
	if !known {
		return s.notFound(req, id)
	}
	if err := s.withdraw(req.Context(), key); err != nil {
		return journalFailed(req, err)
	}
	s.forgetEnding(key) // of a call that has failed meanwhile
	return callOf(id).deleted(req)
}

// withdraw says to the journal that nobody will ask for the answer.
func (s *Server) withdraw(ctx context.Context, key Key) error {
	return s.opts.Journal.Withdraw(ctx, key.Account, []journal.Hash{key.Fingerprint})
}

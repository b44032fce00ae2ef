package batchtest

import (
	"cmp"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// responses is the path of the responses API.
const responses = "/responses"

// The statuses that a response has, in addition to the statuses of a batch.
const (
	queued     = "queued"
	incomplete = "incomplete"
)

// A response is a response that a client can retrieve by id. The mutex of the Server
// guards deleted; the other fields do not change.
type response struct {
	id      string
	call    *call
	deleted bool
}

// A responseKey finds a response. The ids of responses that were not made in the
// background are equal for equal bodies.
type responseKey struct{ account, id string }

// wantsBackground reports whether a call asks for a background response, or refuses
// the call.
func (s *Server) wantsBackground(l Line) (bool, error) {
	rules := &s.behavior
	switch raw := string(field(l.Body, "background")); {
	case raw == "", raw == "null", raw == "false":
		return false, nil
	case rules.IgnoreUnknown && (!rules.Background || !strings.HasSuffix(l.URL, responses)):
		return false, nil
	case !strings.HasSuffix(l.URL, responses):
		return false, unknownParameter("background")
	case raw != "true":
		return false, invalid("background", "Invalid type for 'background': expected a boolean.")
	case !rules.Background:
		return false, invalid("background", "Background responses are not supported.")
	case rules.IgnoreUnknown:
	case string(field(l.Body, "store")) == "false":
		e := invalid("background", "Background responses require store to be enabled.")
		e.code = "unsupported_parameter"
		return false, e
	case string(field(l.Body, "stream")) == "true":
		return false, invalid("stream", "This server does not stream background responses.")
	}
	return true, nil
}

// respondLater answers a call with a queued response.
func (s *Server) respondLater(w http.ResponseWriter, c *call) {
	id := "resp_" + strings.TrimPrefix(s.newID("resp_"), "resp_")
	c.response = &response{id: id, call: c}
	s.mu.Lock()
	s.calls = append(s.calls, c)
	s.stored[responseKey{c.owner.account, id}] = c.response
	s.hooks.watchLocked(c)
	s.mu.Unlock()
	writeJSON(w, s.behavior.BackgroundStatus, s.unfinished(c, queued))
}

// storeLocked keeps the answer to a call that was not made in the background, if the
// provider stores the answer. The caller holds mu.
func (s *Server) storeLocked(c *call) {
	if !s.behavior.Background || !strings.HasSuffix(c.line.URL, responses) || !c.outcome.isObject() ||
		string(field(c.line.Body, "store")) == "false" {
		return
	}
	if id, ok := unquote(field(c.outcome.Body, "id")); ok {
		s.stored[responseKey{c.owner.account, id}] = &response{id: id, call: c}
	}
}

// background reports whether the response was made in the background.
func (p *response) background() bool { return p.call.response == p }

// withResponse calls f with the response that a request names, up to date, and answers
// with the response.
func (s *Server) withResponse(w http.ResponseWriter, r *http.Request, owner caller, f func(p *response, now time.Time) error) error {
	now := time.Now()
	s.mu.Lock()
	p, err := s.findResponseLocked(r.PathValue("id"), owner, now)
	if err == nil {
		err = f(p, now)
	}
	var body []byte
	if err == nil {
		body, err = s.responseViewLocked(p, now)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeBody(w, http.StatusOK, body)
	return nil
}

// findResponseLocked returns a response that the owner may see now. The mutex mu must
// be held.
func (s *Server) findResponseLocked(id string, owner caller, now time.Time) (*response, error) {
	p := s.stored[responseKey{owner.account, id}]
	if p == nil || now.Sub(p.call.created) < s.behavior.VisibleAfter || !p.background() && !p.call.executed(now) {
		return nil, responseNotFound(id)
	}
	return p, nil
}

func responseNotFound(id string) error {
	return &apiError{status: 404, message: "Response with id '" + id + "' not found."}
}

func (s *Server) retrieveResponse(w http.ResponseWriter, r *http.Request, owner caller) error {
	if r.URL.Query().Get("stream") == "true" {
		return invalid("stream", "This server does not stream stored responses.")
	}
	return s.withResponse(w, r, owner, func(*response, time.Time) error { return nil })
}

// cancelResponse cancels a background response. The cancel of a response that has ended
// changes nothing.
func (s *Server) cancelResponse(w http.ResponseWriter, r *http.Request, owner caller) error {
	return s.withResponse(w, r, owner, func(p *response, now time.Time) error {
		if !p.background() {
			return invalid("", "Cannot cancel a synchronous response.")
		}
		if p.call.ended(now).IsZero() {
			p.call.cancelled = now
		}
		return nil
	})
}

// deleteResponse removes a response. A response that is queued is not executed then; a
// response in progress is executed to its end.
func (s *Server) deleteResponse(w http.ResponseWriter, r *http.Request, owner caller) error {
	id, now := r.PathValue("id"), time.Now()
	s.mu.Lock()
	p, err := s.findResponseLocked(id, owner, now)
	if err == nil {
		delete(s.stored, responseKey{owner.account, id})
		p.deleted = true
		p.call.withdrawn = p.background() && p.call.status(now) == queued
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, object{"id": id, "object": "response", "deleted": true})
	return nil
}

// responseViewLocked is a response as the API shows the response. The caller holds mu.
func (s *Server) responseViewLocked(p *response, now time.Time) ([]byte, error) {
	c := p.call
	o := &c.outcome
	status := c.status(now)
	switch {
	case !p.background():
		return o.Body, nil
	case status == queued, status == inProgress, !c.cancelled.IsZero():
		return marshal(s.unfinished(c, status)), nil
	case !o.ok():
		return marshal(s.failure(c)), nil
	case o.Missing:
		return nil, responseNotFound(p.id)
	case o.Garbage != "":
		return []byte(o.Garbage), nil
	case !o.isObject():
		return o.Body, nil
	}
	body := withField(o.Body, "id", p.id)
	for _, f := range []struct {
		name  string
		value any
	}{
		{"created_at", s.clock(c.created).Unix()},
		{"completed_at", s.clock(c.done).Unix()},
		{"background", true},
		{"status", status},
	} {
		body = withField(body, f.name, f.value)
	}
	return body, nil
}

// unfinished is a background response without an output.
func (s *Server) unfinished(c *call, status string) object {
	view := responseObject(c.line)
	view["id"], view["status"], view["background"] = c.response.id, status, true
	view["created_at"] = s.clock(c.created).Unix()
	asked, _ := unquote(field(c.line.Body, "service_tier"))
	view["service_tier"] = cmp.Or(asked, "auto")
	return view
}

// failure is a background response that ended in an error.
func (s *Server) failure(c *call) object {
	view := s.unfinished(c, failed)
	view["service_tier"] = c.tier
	o := &c.outcome
	inner := field(o.Body, "error")
	message, _ := unquote(field(inner, "message"))
	code, _ := unquote(field(inner, "code"))
	code = cmp.Or(o.Code, code, failureCode(o.Status))
	failure := object{"code": code, "message": cmp.Or(o.Message, message, "HTTP status "+strconv.Itoa(o.Status))}
	if s.behavior.StatusAsCode {
		failure["type"] = errorType(o.Status)
		failure["code"] = o.Status
	}
	view["error"] = failure
	return view
}

// failureCode is the code of a response that ended in an HTTP error without a code.
func failureCode(status int) string {
	switch {
	case status == 429:
		return "rate_limit_exceeded"
	case status >= 400 && status <= 499:
		return "invalid_prompt"
	}
	return "server_error"
}

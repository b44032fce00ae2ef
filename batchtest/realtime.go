package batchtest

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// realtimePaths are the calls that are answered in real time, too. A path that another
// path ends in comes later.
var realtimePaths = []string{"/chat/completions", "/embeddings", responses, "/completions", moderations, rerank, generations, edits, transcriptions, translations}

// maxRealtime is the largest body of a realtime call.
const maxRealtime = 64 << 20

// A call is a call outside of a batch. The state of a call follows from the clock. After
// the call was added to the log, the Server's mu guards cancelled and withdrawn; the
// other fields do not change.
type call struct {
	line    Line
	outcome Outcome
	owner   caller
	tier    Tier
	created time.Time
	starts  time.Time // when the model begins
	done    time.Time // when the model has answered; zero means never

	response  *response // nil unless the call is a background response
	cancelled time.Time // when a client cancelled the response, before its end
	withdrawn bool      // deleted while queued
}

// executed reports whether the model has answered by now.
func (c *call) executed(now time.Time) bool {
	return !c.done.IsZero() && !now.Before(c.done) && c.cancelled.IsZero() && !c.withdrawn
}

// status is the status of a background response.
func (c *call) status(now time.Time) string {
	switch {
	case !c.cancelled.IsZero():
		return cancelled
	case now.Before(c.starts):
		return queued
	case c.done.IsZero() || now.Before(c.done):
		return inProgress
	}
	return c.outcome.responseStatus()
}

// ended is when a background response ended, or zero if the response has not ended.
func (c *call) ended(now time.Time) time.Time {
	switch {
	case !c.cancelled.IsZero():
		return c.cancelled
	case c.withdrawn || c.done.IsZero() || now.Before(c.done):
		return time.Time{}
	}
	return c.done
}

// responseStatus is the final status of a response.
func (o *Outcome) responseStatus() string {
	if !o.ok() {
		return failed
	}
	if status, _ := unquote(field(o.Body, "status")); slices.Contains([]string{incomplete, failed, cancelled}, status) {
		return status
	}
	return completed
}

// answerNow asks the model, and answers when the model has answered, or at once with a
// background response.
func (s *Server) answerNow(w http.ResponseWriter, r *http.Request, owner caller) error {
	c, background, err := s.readCall(r, owner)
	switch {
	case err != nil:
		return err
	case background:
		s.respondLater(w, c)
		return nil
	}
	survives := c.tier == TierFlex && s.behavior.FlexSurvives
	if survives {
		s.keepCall(c)
	}
	if err := s.waitFor(r, c); err != nil {
		return err
	}
	if !survives {
		s.keepCall(c)
	}
	return writeOutcome(w, c.line, c.outcome)
}

// readCall reads a call, decides the outcome, and refuses a call that is not executed.
func (s *Server) readCall(r *http.Request, owner caller) (c *call, background bool, err error) {
	body, err := readJSON(r, maxRealtime)
	if err != nil {
		return nil, false, err
	}
	l := Line{Method: "POST", URL: s.behavior.lineURL(r.URL.Path), Body: body}
	if l.Model, err = s.modelOf(l); err != nil {
		return nil, false, err
	}
	tier, err := s.tierOf(l)
	if err == nil {
		background, err = s.wantsBackground(l)
	}
	if err != nil {
		return nil, false, err
	}
	o := s.outcome(l)
	switch {
	case o.FlexRefused && tier == TierFlex:
		return nil, false, s.behavior.noCapacity()
	case o.Refused != nil && background:
		return nil, false, invalid(o.Refused.Param, "%s", o.Refused.Message)
	}
	return s.newCall(l, o, owner, cmp.Or(o.Tier, tier), background), background, nil
}

// newCall plans when the model begins and answers.
func (s *Server) newCall(l Line, o Outcome, owner caller, tier Tier, background bool) *call {
	now := time.Now()
	o.nameTier(l, tier)
	c := &call{line: l, outcome: o, owner: owner, tier: tier, created: now, starts: now}
	if tier == TierFlex {
		c.starts = c.starts.Add(s.opts.FlexDelay)
	}
	delay := max(0, o.Delay)
	if background {
		c.starts = c.starts.Add(s.opts.ResponseQueued)
		delay = cmp.Or(delay, s.opts.ResponseRunning)
	}
	if !o.Never {
		c.done = c.starts.Add(delay)
	}
	return c
}

// keepCall adds a call that is not a background response to the log.
func (s *Server) keepCall(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, c)
	s.storeLocked(c)
}

// waitFor waits until the model has answered. The result is the error that a flex call
// gets which lasts too long.
func (s *Server) waitFor(r *http.Request, c *call) error {
	limit := s.behavior.FlexTimeout
	if c.tier == TierFlex && limit > 0 && (c.done.IsZero() || c.done.Sub(c.created) > limit) {
		if !sleep(r.Context(), limit) {
			panic(http.ErrAbortHandler)
		}
		return &apiError{status: http.StatusGatewayTimeout, kind: "server_error", message: "Request timed out."}
	}
	if c.done.IsZero() {
		hang(r)
	}
	if !sleep(r.Context(), time.Until(c.done)) {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// lineURL is the url of a line for a call to path, so that equal work has equal
// keys ([Line.Key]) in a batch and in real time.
func (rules *Behavior) lineURL(path string) string {
	for _, suffix := range realtimePaths {
		if !strings.HasSuffix(path, suffix) {
			continue
		}
		for _, url := range rules.Endpoints {
			version, ok := strings.CutSuffix(url, suffix)
			if ok && strings.Count(version, "/") <= 1 && version != "/chat" {
				return url
			}
		}
		return "/v1" + suffix
	}
	return path
}

func (s *Server) modelOf(l Line) (string, error) {
	raw := field(l.Body, "model")
	model, ok := unquote(raw)
	switch {
	case raw == nil && l.modelOptional():
		return "", nil
	case !ok || model == "":
		return "", invalid("model", "you must provide a model parameter")
	}
	if !allowed(s.opts.Models, model) {
		return "", &apiError{
			status: 404, code: "model_not_found",
			message: fmt.Sprintf("The model `%s` does not exist or you do not have access to it.", model),
		}
	}
	return model, nil
}

func writeOutcome(w http.ResponseWriter, l Line, o Outcome) error {
	switch {
	case o.Refused != nil:
		return invalid(o.Refused.Param, "%s", o.Refused.Message)
	case o.Code != "":
		return &apiError{status: 500, code: o.Code, message: o.Message}
	case o.Missing:
		panic(http.ErrAbortHandler)
	case o.Garbage != "":
		writeBody(w, o.Status, []byte(o.Garbage))
	case o.ok() && string(field(l.Body, "stream")) == "true" && strings.HasSuffix(l.URL, "/chat/completions"):
		streamChat(w, l, o.Body)
	case o.ok() && string(field(l.Body, "stream")) == "true" && strings.HasSuffix(l.URL, "/completions"):
		streamText(w, l, o.Body)
	case o.ok() && string(field(l.Body, "stream")) == "true" && strings.HasSuffix(l.URL, generations):
		streamImages(w, "image_generation.completed", o.Body)
	case o.ok() && string(field(l.Body, "stream")) == "true" && strings.HasSuffix(l.URL, edits):
		streamImages(w, "image_edit.completed", o.Body)
	case o.isObject() && string(field(l.Body, "stream")) == "true" && strings.HasSuffix(l.URL, responses):
		streamResponse(w, o.Body)
	default:
		writeBody(w, o.Status, o.Body)
	}
	return nil
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request, _ caller) error {
	data := []any{}
	for _, id := range s.opts.Models {
		data = append(data, object{"id": id, "object": "model", "created": answeredAt, "owned_by": "batchtest"})
	}
	writeJSON(w, http.StatusOK, object{"object": "list", "data": data})
	return nil
}

package batchtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

var realtimePaths = []string{"/chat/completions", "/embeddings", "/responses", "/completions"}

// maxRealtime is the largest body of a realtime call.
const maxRealtime = 64 << 20

// A realtimeCall is a call outside of a batch, after the answer.
type realtimeCall struct {
	line    Line
	outcome Outcome
	owner   caller
}

// answerNow asks the model and answers at once.
func (s *Server) answerNow(w http.ResponseWriter, r *http.Request, c caller) error {
	body, err := readJSON(r, maxRealtime)
	if err != nil {
		return err
	}
	l := Line{Method: "POST", URL: s.behavior.lineURL(r.URL.Path), Body: body}
	if l.Model, err = s.modelOf(body); err != nil {
		return err
	}
	o := s.outcome(l)
	if o.Never {
		hang(r)
	}
	if !sleep(r.Context(), o.Delay) {
		panic(http.ErrAbortHandler)
	}
	s.mu.Lock()
	s.realtime = append(s.realtime, realtimeCall{l, o, c})
	s.mu.Unlock()
	return writeOutcome(w, l, o)
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

func (s *Server) modelOf(body []byte) (string, error) {
	model, ok := unquote(field(body, "model"))
	if !ok || model == "" {
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
		stream(w, l, o.Body)
	default:
		writeBody(w, o.Status, o.Body)
	}
	return nil
}

// stream sends the text of a chat completion as server-sent events, word by word.
func stream(w http.ResponseWriter, l Line, body []byte) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	id, _ := unquote(field(body, "id"))
	var message []byte
	eachItem(field(body, "choices"), func(choice []byte) bool {
		message = field(choice, "message")
		return false
	})
	text, _ := unquote(field(message, "content"))
	send := func(delta any, finish any) {
		event(w, chunk(l, id, []any{object{"index": 0, "delta": delta, "finish_reason": finish}}))
	}
	send(object{"role": "assistant", "content": ""}, nil)
	for word := range strings.SplitAfterSeq(text, " ") {
		send(object{"content": word}, nil)
	}
	send(object{}, "stop")
	if string(field(field(l.Body, "stream_options"), "include_usage")) == "true" {
		last := chunk(l, id, []any{})
		last["usage"] = json.RawMessage(field(body, "usage"))
		event(w, last)
	}
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

func chunk(l Line, id string, choices []any) object {
	return object{
		"id": id, "object": "chat.completion.chunk", "created": answeredAt, "model": l.Model, "choices": choices,
	}
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request, _ caller) error {
	data := []any{}
	for _, id := range s.opts.Models {
		data = append(data, object{"id": id, "object": "model", "created": answeredAt, "owned_by": "batchtest"})
	}
	writeJSON(w, http.StatusOK, object{"object": "list", "data": data})
	return nil
}

// event writes and flushes a server-sent event.
func event(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // v has a type of this package, and holds JSON from a valid body
	}
	_, _ = fmt.Fprintf(w, "data: %s\n\n", data)
	_ = http.NewResponseController(w).Flush()
}

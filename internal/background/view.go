package background

import (
	"encoding/json"
	"net/http"
	"path"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/autobatcher/autobatcher/internal/reply"
)

// A response is a response of OpenAI's API without an output. The members without
// omitempty are those that SDKs require.
type response struct {
	ID                string          `json:"id"`
	Object            string          `json:"object"`
	CreatedAt         int64           `json:"created_at"`
	Status            string          `json:"status"`
	Background        bool            `json:"background"`
	Error             *failure        `json:"error"`
	IncompleteDetails *struct{}       `json:"incomplete_details"`
	Instructions      *struct{}       `json:"instructions"`
	Metadata          json.RawMessage `json:"metadata"`
	Model             string          `json:"model"`
	Output            []struct{}      `json:"output"`
	ParallelToolCalls bool            `json:"parallel_tool_calls"`
	Temperature       *float64        `json:"temperature"`
	ToolChoice        string          `json:"tool_choice"`
	Tools             []struct{}      `json:"tools"`
	TopP              *float64        `json:"top_p"`
	Usage             *struct{}       `json:"usage"`
}

type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// A state is the answer to a question for a call of any endpoint that has no answer yet.
type state struct {
	ID        string `json:"id"`
	Object    string `json:"object"`
	CreatedAt int64  `json:"created_at"`
	Status    string `json:"status"`
}

// metadataOf returns the metadata of a call to the endpoint of responses, or nil.
func metadataOf(asked *Asked) []byte {
	if metadata := gjson.GetBytes(asked.Body, "metadata"); !asked.Async && metadata.IsObject() {
		return []byte(metadata.Raw)
	}
	return nil
}

// view is a job in the shape of a response without an output.
func (j *job) view(status string) response {
	metadata := json.RawMessage(j.metadata)
	if metadata == nil {
		metadata = json.RawMessage("{}")
	}
	return response{
		ID: j.id, Object: "response", CreatedAt: j.created.Unix(), Status: status, Background: true, Metadata: metadata,
		Model: j.model, Output: []struct{}{}, ParallelToolCalls: true, ToolChoice: "auto", Tools: []struct{}{},
	}
}

// respond makes a response with a JSON body.
func respond(req *http.Request, status int, body any) *http.Response {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // cannot happen: the values are plain, and the metadata was read as JSON
	}
	a := reply.Answer{Status: status, Body: text}
	return a.Response(req)
}

// accepted is the answer to a call: the id by which to ask for the answer.
func (j *job) accepted(req *http.Request) *http.Response {
	res := j.unfinished(req, "queued")
	if j.async {
		// Relative to the call, since the path at a proxy differs from that at the provider.
		place := path.Base(req.URL.EscapedPath()) + "/" + j.id
		if req.URL.RawQuery != "" {
			place += "?" + req.URL.RawQuery
		}
		res.Header.Set("Location", place)
		res.Header.Set("Preference-Applied", "respond-async")
	}
	return res
}

// unfinished says that a call has no answer yet.
func (j *job) unfinished(req *http.Request, status string) *http.Response {
	if !j.async {
		return respond(req, http.StatusOK, j.view(status))
	}
	res := respond(req, http.StatusAccepted, state{j.id, "autobatcher.call", j.created.Unix(), status})
	res.Header.Set("Retry-After", "10")
	return res
}

// state is the status of a call that has no answer yet.
func (j *job) state() string {
	created := j.isSent()
	if j.batch != nil {
		created = created || j.batch.BatchID != ""
	}
	if created {
		return "in_progress"
	}
	return "queued"
}

// first is the response to a call that ended before its batch was created, or right
// afterwards.
func (j *job) first(req *http.Request) (*http.Response, error) {
	switch {
	case j.result.err != nil && !j.isSent():
		return nil, j.result.err
	case j.result.failed():
		return j.result.response(req), nil
	}
	return j.accepted(req), nil
}

// response is the response as the call got the response.
func (r *result) response(req *http.Request) *http.Response {
	a := reply.Answer{Status: r.status, Body: r.body}
	res := a.Response(req)
	for name, values := range r.header {
		res.Header[name] = values
	}
	return res
}

// final is the answer of a call that has ended.
func (j *job) final(req *http.Request) *http.Response {
	r := j.result
	if j.async {
		return r.response(req)
	}
	var body []byte
	var err error
	if r.failed() {
		body, err = json.Marshal(j.failedView(&r))
	} else if body, err = sjson.SetBytes(r.body, "id", j.id); err == nil {
		body, err = sjson.SetBytes(body, "background", true)
	}
	if err != nil || !r.failed() && !gjson.ParseBytes(r.body).IsObject() {
		return refusal(req, http.StatusBadGateway, "response_unreadable", "the answer of the call is no JSON object")
	}
	r.status, r.body = http.StatusOK, body
	r.header = r.header.Clone()
	r.header.Del("Content-Length")
	r.header.Del("X-Should-Retry")
	return r.response(req)
}

// failedView is a response that has failed.
func (j *job) failedView(r *result) response {
	view := j.view("failed")
	message := gjson.GetBytes(r.body, "error.message").String()
	if message == "" {
		message = "HTTP status " + http.StatusText(r.status)
	}
	code := gjson.GetBytes(r.body, "error.code").String()
	if code == "" {
		code = "server_error"
	}
	view.Error = &failure{code, message}
	return view
}

// response is the answer to a question for a call that failed or was cancelled. asked is a
// new job with the id.
func (e *ending) response(req *http.Request, asked *job) *http.Response {
	if c := e.cancelled; c != nil && c.async {
		return respond(req, http.StatusOK, state{c.id, "autobatcher.call", c.created.Unix(), "cancelled"})
	} else if c != nil {
		return respond(req, http.StatusOK, c.view("cancelled"))
	}
	asked.result = e.result
	return asked.final(req)
}

// deleted says that the call was deleted.
func (j *job) deleted(req *http.Request) *http.Response {
	object := "response"
	if j.async {
		object = "autobatcher.call"
	}
	return respond(req, http.StatusOK, struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Deleted bool   `json:"deleted"`
	}{j.id, object, true})
}

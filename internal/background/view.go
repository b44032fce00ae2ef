package background

import (
	"cmp"
	"encoding/json"
	"net/http"
	"path"
	"time"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"github.com/autobatcher/autobatcher/internal/reply"
)

// A call is what the responses to questions for a call say about the call.
type call struct {
	id       string
	async    bool // not a response of OpenAI's API
	model    string
	metadata []byte // nil: none, or not known
	created  time.Time
}

// A response is a response of OpenAI's API without an output, with the members that SDKs
// require.
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
	Location  string `json:"location,omitempty"` // of the answer, relative to the call
}

// metadataOf returns the metadata of a call to the endpoint of responses, or nil.
func metadataOf(asked *Asked) []byte {
	if metadata := gjson.GetBytes(asked.Body, "metadata"); !asked.Async && metadata.IsObject() {
		return []byte(metadata.Raw)
	}
	return nil
}

// view is a call in the shape of a response without an output.
func (c *call) view(status string) response {
	metadata := json.RawMessage(c.metadata)
	if metadata == nil {
		metadata = json.RawMessage("{}")
	}
	return response{
		ID: c.id, Object: "response", CreatedAt: c.created.Unix(), Status: status, Background: true, Metadata: metadata,
		Model: c.model, Output: []struct{}{}, ParallelToolCalls: true, ToolChoice: "auto", Tools: []struct{}{},
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

// accepted is the answer to a call: the id by which to ask for the answer. The body names
// the place, too: a proxy may have sent the headers before.
func (c *call) accepted(req *http.Request) *http.Response {
	if !c.async {
		return c.unfinished(req, "queued")
	}
	// Relative to the call, since the path at a proxy differs from that at the provider.
	place := path.Base(req.URL.EscapedPath()) + "/" + c.id
	if req.URL.RawQuery != "" {
		place += "?" + req.URL.RawQuery
	}
	state := c.state("queued")
	state.Location = place
	res := pending(req, state)
	res.Header.Set("Location", place)
	res.Header.Set("Preference-Applied", "respond-async")
	return res
}

// unfinished says that a call has no answer yet.
func (c *call) unfinished(req *http.Request, status string) *http.Response {
	if !c.async {
		return respond(req, http.StatusOK, c.view(status))
	}
	return pending(req, c.state(status))
}

func pending(req *http.Request, s state) *http.Response {
	res := respond(req, http.StatusAccepted, s)
	res.Header.Set("Retry-After", "10")
	return res
}

// cancelled says that the call was cancelled.
func (c *call) cancelled(req *http.Request) *http.Response {
	if !c.async {
		return respond(req, http.StatusOK, c.view("cancelled"))
	}
	return respond(req, http.StatusOK, c.state("cancelled"))
}

// state is a call that is no response of OpenAI's API.
func (c *call) state(status string) state {
	return state{ID: c.id, Object: c.object(), CreatedAt: c.created.Unix(), Status: status}
}

func (c *call) object() string {
	if c.async {
		return "autobatcher.call"
	}
	return "response"
}

// status is the status of a call that has no answer yet.
func (j *job) status() string {
	if j.isSent() || j.batch != nil && j.batch.BatchID != "" {
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

// final is the answer to a question for a call that has ended.
func (c *call) final(req *http.Request, r result) *http.Response {
	if c.async {
		return r.response(req)
	}
	var body []byte
	var err error
	if r.failed() {
		body, err = json.Marshal(c.failedView(&r))
	} else if body, err = sjson.SetBytes(r.body, "id", c.id); err == nil {
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
func (c *call) failedView(r *result) response {
	view := c.view("failed")
	view.Error = &failure{
		Code:    cmp.Or(gjson.GetBytes(r.body, "error.code").String(), "server_error"),
		Message: cmp.Or(gjson.GetBytes(r.body, "error.message").String(), "HTTP status "+http.StatusText(r.status)),
	}
	return view
}

// deleted says that the call was deleted.
func (c call) deleted(req *http.Request) *http.Response {
	return respond(req, http.StatusOK, struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Deleted bool   `json:"deleted"`
	}{c.id, c.object(), true})
}

package batchtest_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/google/go-cmp/cmp"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	openairesponses "github.com/openai/openai-go/v3/responses"
)

const inBackground = `,"background":true`

// respond makes a response and returns its id.
func (a *api) respond(fields string) string {
	a.t.Helper()
	res := a.post("/responses", tierBody("/responses", fields))
	if res.status > 299 {
		a.t.Fatalf("response: %d %s", res.status, res.body)
	}
	return res.json(a.t)["id"].(string)
}

func TestBackgroundLifecycle(t *testing.T) {
	slow := batchtest.Options{FlexDelay: time.Hour, ResponseQueued: time.Minute, ResponseRunning: 10 * time.Minute}
	with := func(opts batchtest.Options, o batchtest.Outcome) batchtest.Options {
		opts.Answer = func(batchtest.Line) batchtest.Outcome { return o }
		return opts
	}
	type state struct {
		At             time.Duration
		Status         any
		Output, Tokens bool
		Tier           any
		Error          any // the code
	}
	done := func(at time.Duration, tier string) state { return state{at, "completed", true, true, tier, nil} }
	failure := func(code any) state { return state{11 * time.Minute, "failed", false, false, "default", code} }
	tests := []struct {
		name   string
		opts   batchtest.Options
		fields string
		states []state
		paid   map[batchtest.Tier]int
	}{{
		name:   "the zero options finish by the first retrieve",
		states: []state{done(0, "default")},
		paid:   map[batchtest.Tier]int{"default": 1},
	}, {
		name: "every state takes its time",
		opts: slow,
		states: []state{
			{0, "queued", false, false, "auto", nil},
			{time.Minute - 1, "queued", false, false, "auto", nil},
			{time.Minute, "in_progress", false, false, "auto", nil},
			{11*time.Minute - 1, "in_progress", false, false, "auto", nil},
			done(11*time.Minute, "default"),
			done(48*time.Hour, "default"),
		},
		paid: map[batchtest.Tier]int{"default": 1},
	}, {
		name:   "flex waits for capacity",
		opts:   slow,
		fields: `,"service_tier":"flex"`,
		states: []state{
			{61*time.Minute - 1, "queued", false, false, "flex", nil},
			{61 * time.Minute, "in_progress", false, false, "flex", nil},
			done(71*time.Minute, "flex"),
		},
		paid: map[batchtest.Tier]int{"flex": 1},
	}, {
		name:   "a response can take another time",
		opts:   with(slow, batchtest.Outcome{Delay: time.Second}),
		states: []state{done(61*time.Second, "default")},
		paid:   map[batchtest.Tier]int{"default": 1},
	}, {
		name:   "never",
		opts:   with(slow, batchtest.Outcome{Never: true}),
		states: []state{{1000 * time.Hour, "in_progress", false, false, "auto", nil}},
	}, {
		name:   "incomplete",
		opts:   with(slow, batchtest.Outcome{ResponseStatus: "incomplete"}),
		states: []state{{11 * time.Minute, "incomplete", true, true, "default", nil}},
		paid:   map[batchtest.Tier]int{"default": 1},
	}, {
		name:   "cancelled by the provider",
		opts:   with(slow, batchtest.Outcome{ResponseStatus: "cancelled"}),
		states: []state{{11 * time.Minute, "cancelled", false, false, "default", nil}},
	}, {
		name:   "failed",
		opts:   with(slow, batchtest.Outcome{ResponseStatus: "failed"}),
		states: []state{failure("server_error")},
	}, {
		name:   "an HTTP error",
		opts:   with(slow, batchtest.Outcome{Status: 500}),
		states: []state{failure("server_error")},
	}, {
		name:   "a rate limit",
		opts:   with(slow, batchtest.Outcome{Status: 429}),
		states: []state{failure("rate_limit_exceeded")},
	}, {
		name:   "an error with a code",
		opts:   with(slow, batchtest.Outcome{Code: "bio_policy", Message: "No."}),
		states: []state{failure("bio_policy")},
	}, {
		name: "an HTTP error at Doubleword",
		opts: func() batchtest.Options {
			o := with(slow, batchtest.Outcome{Status: 422})
			o.Behavior = batchtest.Doubleword()
			return o
		}(),
		states: []state{failure(422.0)},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t, tt.opts)
				start := time.Now()
				res := a.post("/responses", tierBody("/responses", inBackground+tt.fields))
				first := res.json(t)
				if want := max(200, tt.opts.Behavior.BackgroundStatus); res.status != want || first["status"] != "queued" || first["background"] != true {
					t.Errorf("answer to the create: %d %s", res.status, res.body)
				}
				for _, want := range tt.states {
					time.Sleep(time.Until(start.Add(want.At)))
					r := a.get("/responses/" + first["id"].(string)).json(t)
					got := state{At: want.At, Status: r["status"], Output: len(r["output"].([]any)) > 0, Tokens: r["usage"] != nil, Tier: r["service_tier"]}
					if e, ok := r["error"].(map[string]any); ok {
						got.Error = e["code"]
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("at %v (-want +got):\n%s", want.At, diff)
					}
					if r["id"] != first["id"] || r["created_at"] != float64(start.Unix()) || r["background"] != true {
						t.Errorf("response = %v", r)
					}
				}
				paid := a.server.PaidTiers()
				if diff := cmp.Diff(tt.paid, paid); diff != "" && len(tt.paid)+len(paid) > 0 {
					t.Errorf("paid (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestCancelAndDeleteResponses(t *testing.T) {
	const running = 5 * time.Minute
	tests := []struct {
		name     string
		fields   string
		after    time.Duration
		do       []string // the actions
		want     []string // the status of each answer, and the status of the response
		executed int      // an hour later
	}{
		{"queued", inBackground, 0, []string{"cancel", "get"}, []string{"200 cancelled", "200 cancelled"}, 0},
		{"in progress, twice", inBackground, running, []string{"cancel", "cancel", "get"}, []string{"200 cancelled", "200 cancelled", "200 cancelled"}, 0},
		{"completed", inBackground, time.Hour, []string{"cancel", "get"}, []string{"200 completed", "200 completed"}, 1},
		{"not in the background", "", 0, []string{"get", "cancel", "get"}, []string{"200 completed", "400", "200 completed"}, 1},
		{"not stored", `,"store":false`, 0, []string{"get", "cancel", "delete"}, []string{"404", "404", "404"}, 1},
		{"delete what is queued", inBackground, 0, []string{"delete", "get", "cancel", "delete"}, []string{"200", "404", "404", "404"}, 0},
		{"delete what is in progress", inBackground, running, []string{"delete", "get"}, []string{"200", "404"}, 1},
		{"delete what is completed", inBackground, time.Hour, []string{"delete", "get"}, []string{"200", "404"}, 1},
		{"delete what is not in the background", "", 0, []string{"delete", "get"}, []string{"200", "404"}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(t, batchtest.Options{ResponseQueued: time.Minute, ResponseRunning: 10 * time.Minute})
				id := a.respond(tt.fields)
				time.Sleep(tt.after)
				var got []string
				for _, action := range tt.do {
					got = append(got, a.act(action, id))
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				time.Sleep(time.Hour)
				if n := len(a.server.Executed()); n != tt.executed {
					t.Errorf("%d executed, want %d", n, tt.executed)
				}
			})
		})
	}
}

// act does something with a response, and sums up the answer.
func (a *api) act(action, id string) string {
	a.t.Helper()
	var res answer
	switch action {
	case "get":
		res = a.get("/responses/" + id)
	case "cancel":
		res = a.post("/responses/"+id+"/cancel", "")
	case "delete":
		res = a.do(a.request("DELETE", "/responses/"+id, nil))
	}
	if status, ok := res.json(a.t)["status"]; ok {
		return fmt.Sprintf("%d %v", res.status, status)
	}
	return fmt.Sprint(res.status)
}

// Each response repeats the metadata of its request: in real time, in the background and in a batch.
func TestResponsesRepeatMetadata(t *testing.T) {
	for fields, want := range map[string]map[string]any{
		"":                                {},
		`,"metadata":{"b":"<2>","a":"ä"}`: {"b": "<2>", "a": "ä"},
		`,"metadata":null`:                {},
		`,"metadata":{}`:                  {},
		`,"metadata":"a"`:                 {},
		`,"metadata":{"a":"1","b":2}`:     {},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{ResponseQueued: time.Minute, ResponseRunning: time.Minute, Behavior: batchtest.OpenAI()})
			got := map[string]any{"real time": a.post("/responses", tierBody("/responses", fields)).json(t)["metadata"]}
			id, cancelled := a.respond(inBackground+fields), a.respond(inBackground+fields)
			a.act("cancel", cancelled)
			got["cancelled"] = a.get("/responses/" + cancelled).json(t)["metadata"]
			for range 3 {
				r := a.get("/responses/" + id).json(t)
				got[r["status"].(string)] = r["metadata"]
				time.Sleep(time.Minute)
			}
			line := `{"custom_id":"1","method":"POST","url":"/v1/responses","body":` + tierBody("/responses", fields) + "}\n"
			b := a.post("/batches", createBody(a.upload(line), "/v1/responses", "24h")).json(t)
			time.Sleep(24 * time.Hour)
			for _, l := range a.results(a.retrieve(b["id"])["output_file_id"]) {
				got["batch"] = l["response"].(map[string]any)["body"].(map[string]any)["metadata"]
			}
			all := map[string]any{}
			for _, name := range []string{"real time", "cancelled", "queued", "in_progress", "completed", "batch"} {
				all[name] = want
			}
			if diff := cmp.Diff(all, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", fields, diff)
			}
		})
	}
}

func TestResponsesOfOthersAreNotFound(t *testing.T) {
	a := newAPI(t, batchtest.Options{Keys: map[string]batchtest.Key{
		"sk-test": {Account: "a"}, "sk-same": {Account: "a"}, "sk-other": {Account: "b"},
	}})
	id := a.respond(inBackground)
	for key, want := range map[string]string{"sk-other": "404", "sk-same": "200 completed"} {
		a.key = key
		for _, action := range []string{"get", "cancel"} {
			if got := a.act(action, id); got != want {
				t.Errorf("%s with %s: %s, want %s", action, key, got, want)
			}
		}
	}
	a.key = "sk-other"
	if got := a.act("delete", id); got != "404" {
		t.Errorf("delete: %s", got)
	}
	if got := a.act("get", "resp_unknown"); got != "404" {
		t.Errorf("an unknown id: %s", got)
	}
}

func TestRefusedBackground(t *testing.T) {
	refuse := func(batchtest.Line) batchtest.Outcome {
		return batchtest.Outcome{Refused: &batchtest.BatchError{Message: "Bad."}}
	}
	noFlex := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{FlexRefused: true} }
	ignoring := batchtest.Doubleword()
	ignoring.Background = false
	tests := []struct {
		name         string
		behavior     batchtest.Behavior
		answer       func(batchtest.Line) batchtest.Outcome
		path, fields string
		status       int
	}{
		{"store: false", batchtest.OpenAI(), nil, "/responses", inBackground + `,"store":false`, 400},
		{"stream: true", batchtest.OpenAI(), nil, "/responses", inBackground + `,"stream":true`, 400},
		{"not a boolean", batchtest.OpenAI(), nil, "/responses", `,"background":"yes"`, 400},
		{"false", batchtest.OpenAI(), nil, "/responses", `,"background":false`, 200},
		{"null", batchtest.OpenAI(), nil, "/responses", `,"background":null`, 200},
		{"a chat", batchtest.OpenAI(), nil, "/chat/completions", inBackground, 400},
		{"a bad input", batchtest.OpenAI(), refuse, "/responses", inBackground, 400},
		{"no capacity", batchtest.OpenAI(), noFlex, "/responses", inBackground + `,"service_tier":"flex"`, 429},
		{"Doubleword ignores store and stream", batchtest.Doubleword(), nil, "/responses", inBackground + `,"store":false,"stream":true`, 202},
		{"a provider without background", batchtest.Nebius(), nil, "/responses", inBackground, 400},
		{"a provider that ignores background", ignoring, nil, "/responses", inBackground, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{Behavior: tt.behavior, Answer: tt.answer})
			res := a.post(tt.path, tierBody(tt.path, tt.fields))
			if res.status != tt.status {
				t.Errorf("%d %s, want %d", res.status, res.body, tt.status)
			}
			if n := len(a.server.Executed()); n != 0 && tt.status > 299 {
				t.Errorf("%d executed", n)
			}
		})
	}
}

func TestResponsesAtDoubleword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		behavior := batchtest.Doubleword()
		behavior.VisibleAfter = time.Second
		a := newAPI(t, batchtest.Options{Behavior: behavior, ResponseQueued: time.Minute})
		id := a.respond(inBackground)
		if got := a.get("/responses/" + id).status; got != 404 {
			t.Errorf("before the replica has the response: %d, want 404", got)
		}
		time.Sleep(time.Second)
		if got := a.act("get", id); got != "200 queued" {
			t.Errorf("afterwards: %s", got)
		}
		if got := a.post("/responses/"+id+"/cancel", "").status; got != 404 {
			t.Errorf("cancel: %d, want 404", got)
		}
	})
}

func TestResponsesThatAreLostOrMalformed(t *testing.T) {
	tests := map[string]struct {
		outcome batchtest.Outcome
		want    string
	}{
		"lost":          {batchtest.Outcome{Missing: true}, "404 Response with id"},
		"garbage":       {batchtest.Outcome{Garbage: "{{"}, "200 {{"},
		"not an object": {batchtest.Outcome{Body: []byte("[1]")}, "200 [1]"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return tt.outcome }})
			res := a.get("/responses/" + a.respond(inBackground))
			status, text, _ := strings.Cut(tt.want, " ")
			if fmt.Sprint(res.status) != status || !strings.Contains(res.body, text) {
				t.Errorf("%d %s, want %s", res.status, res.body, tt.want)
			}
			if got := a.server.PaidTiers()[batchtest.TierDefault]; got != 1 {
				t.Errorf("%d paid for, want 1", got)
			}
		})
	}
}

func TestLogOfResponses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{ResponseQueued: time.Minute})
		start := time.Now()
		kept, gone := a.respond(inBackground), a.respond(inBackground+`,"service_tier":"flex"`)
		a.respond("") // is not in the log
		a.act("cancel", gone)
		a.act("delete", gone)
		time.Sleep(time.Hour)
		got := a.server.Responses()
		for i := range got {
			if got[i].URL != "/v1/responses" || got[i].Outcome.Status != 200 {
				t.Errorf("response %d = %+v", i, got[i])
			}
			got[i].Line, got[i].Outcome = batchtest.Line{}, batchtest.Outcome{}
		}
		want := []batchtest.Response{
			{ID: kept, Tier: "default", Status: "completed", APIKey: "sk-test", Account: "sk-test", Created: start, Ended: start.Add(time.Minute)},
			{
				ID: gone, Tier: "flex", Status: "cancelled", CancelRequested: true, Deleted: true,
				APIKey: "sk-test", Account: "sk-test", Created: start, Ended: start,
			},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("responses (-want +got):\n%s", diff)
		}
	})
}

// TestOfficialClientResponses takes OpenAI's own client through the responses API.
func TestOfficialClientResponses(t *testing.T) {
	server := batchtest.New(batchtest.Options{ResponseQueued: time.Hour})
	t.Cleanup(server.Close)
	client := openai.NewClient(
		option.WithBaseURL(server.URL), option.WithHTTPClient(server.Client()), option.WithAPIKey("sk-test"), option.WithMaxRetries(0))
	ctx := t.Context()
	params := openairesponses.ResponseNewParams{
		Model: "m", ServiceTier: openairesponses.ResponseNewParamsServiceTierFlex,
		Input:    openairesponses.ResponseNewParamsInputUnion{OfString: openai.String("Hello there. Bye.")},
		Metadata: map[string]string{"k": "v"},
	}
	whole, err := client.Responses.New(ctx, params)
	if err != nil {
		t.Fatal(err)
	}
	if whole.OutputText() != "You said: Hello there." || whole.ServiceTier != "flex" || whole.Metadata["k"] != "v" {
		t.Errorf("response = %s", whole.RawJSON())
	}
	stream := client.Responses.NewStreaming(ctx, params)
	text, sequence := "", int64(0)
	var last openairesponses.Response
	for stream.Next() {
		e := stream.Current()
		if e.SequenceNumber != sequence {
			t.Errorf("event %d has the number %d", sequence, e.SequenceNumber)
		}
		sequence++
		switch e.Type {
		case "response.output_text.delta":
			text += e.Delta
		case "response.completed":
			last = e.Response
		}
	}
	if stream.Err() != nil || text != whole.OutputText() || last.OutputText() != text || last.ServiceTier != "flex" || last.Metadata["k"] != "v" {
		t.Errorf("stream: %v, %q, %s", stream.Err(), text, last.RawJSON())
	}
	params.Background = openai.Bool(true)
	later, err := client.Responses.New(ctx, params)
	if err != nil || later.Status != "queued" || !later.Background || later.Metadata["k"] != "v" {
		t.Fatalf("background: %v %v", later, err)
	}
	if got, err := client.Responses.Get(ctx, later.ID, openairesponses.ResponseGetParams{}); err != nil || got.Status != "queued" {
		t.Errorf("get: %v %v", got, err)
	}
	if got, err := client.Responses.Cancel(ctx, later.ID); err != nil || got.Status != "cancelled" {
		t.Errorf("cancel: %v %v", got, err)
	}
	if err := client.Responses.Delete(ctx, later.ID); err != nil {
		t.Errorf("delete: %v", err)
	}
}

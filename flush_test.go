package autobatcher_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// A sending is one batch: when its file was uploaded, and how many lines it has.
type sending struct {
	At    time.Duration
	Lines int
}

// sendings are the batches so far, in the order of their uploads.
func (t *trial) sendings() (all []sending) {
	for _, r := range t.srv.Requests() {
		if r.Method == "POST" && strings.HasSuffix(r.Path, "/files") {
			all = append(all, sending{At: r.Time.Sub(t.begun), Lines: len(t.srv.Uploads()[len(all)].Lines)})
		}
	}
	return all
}

// A batch is sent when its window ends, or when a limit of the Options or of the
// provider is reached: calls, bytes, lines, embedding inputs.
func TestWhenABatchIsSent(t *testing.T) {
	const second = time.Second
	inputs := func(n int) string { return `{"model":"m","input":["a"` + strings.Repeat(`,"a"`, n-1) + `]}` }
	text := strings.Repeat("x", 250)
	type sent struct {
		at   time.Duration
		path string
		body string
	}
	chats := func(n int, at time.Duration, body string) (all []sent) {
		for range n {
			all = append(all, sent{at, "/chat/completions", body})
		}
		return all
	}
	limits := func(change func(p *provider.Profile)) *provider.Profile {
		p := provider.OpenAI()
		change(&p)
		return &p
	}
	tests := []struct {
		name    string
		options autobatcher.Options
		calls   []sent
		want    []sending
	}{
		{"single_request_starts_window_timer", autobatcher.Options{}, chats(1, 0, chat("a")), []sending{{10 * second, 1}}},
		{"window_timer_fires_for_undersized_batch", autobatcher.Options{}, append(chats(2, 0, chat("a")), chats(3, 9*second, chat("b"))...), []sending{{10 * second, 5}}},
		{"concurrent_requests_batched_together", autobatcher.Options{}, chats(10, 0, chat("a")), []sending{{10 * second, 10}}},
		{"a call after the window", autobatcher.Options{}, append(chats(1, 0, chat("a")), chats(1, 11*second, chat("b"))...), []sending{{10 * second, 1}, {21 * second, 1}}},
		{"a window of an hour", autobatcher.Options{BatchWindow: time.Hour}, chats(2, 0, chat("a")), []sending{{time.Hour, 2}}},
		{"batch_size_triggers_immediate_submit", autobatcher.Options{BatchSize: 3}, chats(7, 2*second, chat("a")), []sending{{2 * second, 3}, {2 * second, 3}, {12 * second, 1}}},
		{"enough bytes", autobatcher.Options{BatchBytes: 1000}, chats(5, 0, chat(text)), []sending{{0, 2}, {0, 2}, {10 * second, 1}}},
		{"the provider's lines", autobatcher.Options{Provider: limits(func(p *provider.Profile) { p.MaxLines = 4 })}, chats(9, 0, chat("a")), []sending{{0, 4}, {0, 4}, {10 * second, 1}}},
		{"the provider's bytes", autobatcher.Options{Provider: limits(func(p *provider.Profile) { p.MaxBytes = 1000 })}, chats(3, 0, chat(text)), []sending{{0, 2}, {10 * second, 1}}},
		{
			"the provider's inputs",
			autobatcher.Options{Provider: limits(func(p *provider.Profile) { p.MaxInputs = 6 })},
			[]sent{{0, "/embeddings", inputs(4)}, {0, "/embeddings", inputs(2)}, {second, "/embeddings", `{"model":"m","input":[1,2,3,4,5,6,7]}`}},
			[]sending{{second, 2}, {11 * second, 1}},
		},
	}
	for _, test := range tests {
		try(t, test.name, batchtest.Options{}, test.options, func(t *trial) {
			var ends []<-chan answer
			for _, c := range test.calls {
				time.Sleep(c.at - time.Since(t.begun))
				ends = append(ends, t.start(c.path, c.body))
			}
			for i, end := range ends {
				if a := <-end; a.err != nil || a.res.StatusCode != 200 {
					t.Errorf("call %d: %v, %v", i, a.err, a.res)
				}
			}
			if diff := cmp.Diff(test.want, t.sendings()); diff != "" {
				t.Error(diff)
			}
			for _, u := range t.srv.Uploads() {
				if strings.Contains(test.name, "bytes") && len(u.Content) > 1000 {
					t.Errorf("a file of %d bytes; the limit is 1000", len(u.Content))
				}
			}
		})
	}
}

// Calls that differ in credential, base URL or window never share a batch. Where the
// provider asks for that, neither do endpoints and models.
func TestCallsThatShareABatch(t *testing.T) {
	doubleword := provider.Doubleword()
	for name, test := range map[string]struct {
		profile *provider.Profile
		path    string
		body    string
		header  []string
		share   bool
	}{
		"another text":              {body: chat("b"), share: true},
		"another credential":        {header: []string{"Authorization", "Bearer other"}},
		"another organization":      {header: []string{"OpenAI-Organization", "other"}},
		"another query":             {path: "/chat/completions?x=1"},
		"another window":            {header: []string{"Autobatcher-Completion-Window", "24h"}, profile: &doubleword},
		"another user agent":        {header: []string{"User-Agent", "x", "X-Stainless-Retry-Count", "1", "Idempotency-Key", "2"}, share: true},
		"another model":             {body: `{"model":"n","messages":[]}`},
		"another endpoint":          {path: "/responses", body: `{"model":"m","input":"a"}`},
		"another model, mixed":      {body: `{"model":"n","messages":[]}`, profile: &doubleword, share: true},
		"another endpoint, mixed":   {path: "/responses", body: `{"model":"m","input":"a"}`, profile: &doubleword, share: true},
		"the same call once again":  {share: true},
		"the window by its default": {header: []string{"Autobatcher-Completion-Window", "24h"}, share: true},
	} {
		if test.path == "" {
			test.path = "/chat/completions"
		}
		if test.body == "" {
			test.body = chat("a")
		}
		server := batchtest.Options{}
		if test.profile != nil {
			server.Behavior = batchtest.Doubleword()
		}
		try(t, name, server, autobatcher.Options{Provider: test.profile}, func(t *trial) {
			first, second := t.start("/chat/completions", chat("a")), t.start(test.path, test.body, test.header...)
			for _, end := range []<-chan answer{first, second} {
				if a := <-end; a.err != nil || a.res.StatusCode != 200 {
					t.Errorf("%v, %v", a.err, a.res)
				}
			}
			if n := len(t.srv.Batches()); (n == 1) != test.share {
				t.Errorf("%d batches; want the calls to share one: %v", n, test.share)
			}
		})
	}
}

// Flush sends at once what is queued, and waits until the batches were created.
func TestFlush(t *testing.T) {
	for name, test := range map[string]struct {
		op       batchtest.Op
		fault    batchtest.Fault
		options  autobatcher.Options
		deadline time.Duration
		at       time.Duration
		err      string // part of the error; "" for none
	}{
		"waits for the create":   {op: batchtest.OpCreate, fault: batchtest.Delay(2 * time.Second), at: 2 * time.Second},
		"waits for a full batch": {op: batchtest.OpCreate, fault: batchtest.Delay(2 * time.Second), options: autobatcher.Options{BatchSize: 1}, at: 2 * time.Second},
		"returns the refusal":    {op: batchtest.OpUpload, fault: batchtest.HTML(403), err: "403"},
		"ends with its context":  {op: batchtest.OpUpload, fault: batchtest.Delay(time.Minute), deadline: time.Second, at: time.Second, err: context.DeadlineExceeded.Error()},
		"empty_pending_is_noop":  {},
	} {
		try(t, name, batchtest.Options{}, test.options, func(t *trial) {
			var end <-chan answer
			if test.fault != nil {
				t.srv.Control(test.op, test.fault)
				end = t.start("/chat/completions", chat("a"))
			}
			ctx := t.Context()
			if test.deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, test.deadline)
				defer cancel()
			}
			err := t.tr.Flush(ctx)
			if at := time.Since(t.begun); at != test.at || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("Flush returned %v at %v; want %q at %v", err, at, test.err, test.at)
			}
			if end != nil {
				<-end
			}
		})
	}
}

// A call whose caller leaves before the batch is sent is never sent, and the window
// begins anew with the next call.
func TestACallerWhoLeavesTheQueue(t *testing.T) {
	try(t, "", batchtest.Options{}, autobatcher.Options{}, func(t *trial) {
		ctx, leave := context.WithCancelCause(t.Context())
		reason := errors.New("the window was closed")
		time.AfterFunc(2*time.Second, func() { leave(reason) })
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.srv.URL+"/chat/completions", strings.NewReader(chat("gone")))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := t.tr.RoundTrip(req); !errors.Is(err, context.Canceled) || !errors.Is(err, reason) {
			t.Errorf("error %v; want the end of the context and its cause", err)
		}
		time.Sleep(6 * time.Second)
		if st := t.tr.Stats(); st.Queued != 0 || st.Left != 1 {
			t.Errorf("stats %+v", st)
		}
		t.call("/chat/completions", chat("stays"))
		synctest.Wait()
		if diff := cmp.Diff([]sending{{18 * time.Second, 1}}, t.sendings()); diff != "" {
			t.Error(diff)
		}
		if text := string(t.srv.Uploads()[0].Content); strings.Contains(text, "gone") {
			t.Errorf("the file holds the call whose caller left: %s", text)
		}
	})
}

// After NoMoreCalls, calls do not wait for the end of a window, whether they entered
// before or after: a program need not know which of its goroutines have begun their calls.
func TestNoMoreCalls(t *testing.T) {
	const tenth = 100 * time.Millisecond
	for name, test := range map[string]struct {
		window    time.Duration
		at        time.Duration   // of NoMoreCalls
		calls     []time.Duration // when the calls are made
		sendings  []sending
		unhurried bool
	}{
		"calls that wait":                        {time.Hour, time.Minute, []time.Duration{0, time.Second}, []sending{{time.Minute + tenth, 2}}, false},
		"calls that were just begun":             {time.Hour, time.Minute, []time.Duration{time.Minute - 1, time.Minute + 1, time.Minute + tenth/2}, []sending{{time.Minute + tenth, 3}}, false},
		"a call that comes later all the same":   {time.Hour, 0, []time.Duration{time.Hour}, []sending{{time.Hour + tenth, 1}}, false},
		"a window that ends sooner":              {time.Second, time.Second - 1, []time.Duration{0}, []sending{{time.Second, 1}}, false},
		"a window that is shorter than a moment": {tenth / 2, 0, []time.Duration{time.Second}, []sending{{time.Second + tenth/2, 1}}, false},
		"without NoMoreCalls":                    {time.Hour, 0, []time.Duration{0}, []sending{{time.Hour, 1}}, true},
	} {
		try(t, name, batchtest.Options{}, autobatcher.Options{BatchWindow: test.window}, func(t *trial) {
			if !test.unhurried {
				time.AfterFunc(test.at, func() {
					t.tr.NoMoreCalls()
					t.tr.NoMoreCalls() // changes nothing
				})
			}
			var ends []<-chan answer
			for _, at := range test.calls {
				time.Sleep(time.Until(t.begun.Add(at)))
				ends = append(ends, t.start("/chat/completions", chat("a")))
				synctest.Wait()
			}
			for _, end := range ends {
				if a := <-end; a.err != nil || a.res.StatusCode != 200 {
					t.Errorf("%v %s", a.err, a.body)
				}
			}
			if diff := cmp.Diff(test.sendings, t.sendings()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

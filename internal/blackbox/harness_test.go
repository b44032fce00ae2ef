package blackbox_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// A setup is what a scene is played with. The zero setup is a Transport with
// the zero Options in front of an OpenAI that answers a batch at its first poll,
// but for this: a call is sent once, unless Options.Resubmits or again say more.
type setup struct {
	server  batchtest.Options
	options autobatcher.Options
	base    func(http.RoundTripper) http.RoundTripper // around the way to the server
	again   bool                                      // calls are resubmitted as by default
}

// A scene is a Transport in front of a provider, in virtual time. What it
// leaves running, but for the Transport itself, fails the test.
type scene struct {
	*testing.T
	srv   *batchtest.Server
	tr    *autobatcher.Transport
	begin time.Time

	mu     sync.Mutex
	events []autobatcher.Event
}

func (u setup) play(t *testing.T, script func(s *scene)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{T: t, srv: batchtest.New(u.server), begin: time.Now()}
		o := u.options
		o.Base = s.srv.Transport()
		if u.base != nil {
			o.Base = u.base(o.Base)
		}
		if o.Resubmits == 0 && !u.again {
			o.Resubmits = -1
		}
		if o.OnEvent == nil {
			o.OnEvent = s.record
		}
		var err error
		o.QuietAfter = cmp.Or(o.QuietAfter, -1) // the times below are those of whole windows
		if s.tr, err = autobatcher.New(o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			s.tr.Close()
			time.Sleep(time.Hour) // Close does not wait long for a slow event handler
		})
		script(s)
	})
}

// run plays the scene as a subtest of that name.
func (u setup) run(t *testing.T, name string, script func(s *scene)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { u.play(t, script) })
}

// doubleword is a setup whose provider mixes models and endpoints and serves
// partial results.
func doubleword(server batchtest.Options, options autobatcher.Options) setup {
	p := provider.Doubleword()
	server.Behavior, options.Provider = batchtest.Doubleword(), &p
	return setup{server: server, options: options}
}

func (s *scene) record(e autobatcher.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// eventNames returns the names of the events so far.
func (s *scene) eventNames() []autobatcher.EventName {
	synctest.Wait() // the handler runs beside the callers
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]autobatcher.EventName, len(s.events))
	for i, e := range s.events {
		names[i] = e.Name
	}
	return names
}

// event returns the first event of that name.
func (s *scene) event(name autobatcher.EventName) autobatcher.Event {
	s.Helper()
	synctest.Wait() // the handler runs beside the callers
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.events, func(e autobatcher.Event) bool { return e.Name == name })
	if i < 0 {
		s.Fatalf("there was no event %s", name)
	}
	return s.events[i]
}

// until waits for a moment, counted from the beginning of the scene, and for
// everything that happens then.
func (s *scene) until(at time.Duration) {
	time.Sleep(at - s.elapsed())
	synctest.Wait()
}

func (s *scene) elapsed() time.Duration { return time.Since(s.begin) }

// An edit changes a request before it is sent.
type edit func(*http.Request)

func with(name, value string) edit { return func(r *http.Request) { r.Header.Set(name, value) } }

func key(name string) edit { return with("Authorization", "Bearer "+name) }

func (s *scene) request(ctx context.Context, path, body string, edits ...edit) *http.Request {
	s.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.srv.URL+path, strings.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer sk-test")
	for _, e := range edits {
		e(req)
	}
	return req
}

// A reply is how a call ended, and when.
type reply struct {
	t      *testing.T
	status int
	header http.Header
	body   string
	err    error
	at     time.Duration // since the beginning of the scene
	res    *http.Response
}

// post makes a call and waits for its end.
func (s *scene) post(path, body string, edits ...edit) reply {
	s.Helper()
	return s.send(path, body, edits...).wait()
}

func (s *scene) do(req *http.Request) reply {
	r := reply{t: s.T}
	if r.res, r.err = s.tr.RoundTrip(req); r.err == nil {
		text, err := io.ReadAll(r.res.Body)
		r.status, r.header, r.body, r.err = r.res.StatusCode, r.res.Header, string(text), err
		r.res.Body.Close()
	}
	r.at = s.elapsed()
	return r
}

// A pending call is on its way.
type pending struct {
	s     *scene
	leave context.CancelFunc
	done  chan reply
}

// send starts a call, and returns when it is queued.
func (s *scene) send(path, body string, edits ...edit) *pending {
	s.Helper()
	ctx, leave := context.WithCancel(context.Background())
	req := s.request(ctx, path, body, edits...)
	p := &pending{s: s, leave: leave, done: make(chan reply, 1)}
	go func() { p.done <- s.do(req) }()
	synctest.Wait()
	return p
}

// chat starts a chat call that says text.
func (s *scene) chat(text string, edits ...edit) *pending {
	s.Helper()
	return s.send("/chat/completions", chatBody(text), edits...)
}

// chats starts n different chat calls.
func (s *scene) chats(n int) []*pending {
	s.Helper()
	calls := make([]*pending, n)
	for i := range calls {
		calls[i] = s.chat(fmt.Sprintf("call %d", i))
	}
	return calls
}

func (p *pending) wait() reply {
	defer p.leave()
	return <-p.done
}

// within waits at most that long for the call. A call that has not ended by then
// fails the test, and its caller leaves, so that the test can end.
func (p *pending) within(limit time.Duration) reply {
	p.s.Helper()
	select {
	case r := <-p.done:
		return r
	case <-time.After(limit):
		p.s.Errorf("the call has not ended within %v", limit)
	}
	return p.left()
}

// left ends the caller's context and returns how the call ended.
func (p *pending) left() reply {
	p.leave()
	return <-p.done
}

// want waits for the call and checks its status and the moment of its end.
func (p *pending) want(status int, at time.Duration) reply {
	p.s.Helper()
	return p.wait().want(status, at)
}

func (r reply) want(status int, at time.Duration) reply {
	r.t.Helper()
	if r.err != nil || r.status != status || r.at != at {
		r.t.Errorf("status %d at %v, error %v; want %d at %v; body: %.300s", r.status, r.at, r.err, status, at, r.body)
	}
	return r
}

// says checks that the answer is what the echoing model says to text.
func (r reply) says(text string) reply {
	r.t.Helper()
	if want := "You said: " + text; !strings.Contains(r.body, want) {
		r.t.Errorf("body = %.300s; want it to say %q", r.body, want)
	}
	return r
}

// A fault is an error as OpenAI shapes it.
type fault struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

// fails checks that the answer is an error of that code in OpenAI's shape, and
// returns its message.
func (r reply) fails(code string) string {
	r.t.Helper()
	var object struct{ Error fault }
	decoder := json.NewDecoder(strings.NewReader(r.body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&object); err != nil {
		r.t.Errorf("the body is no error in OpenAI's shape: %v: %.300s", err, r.body)
	}
	if got := *cmp.Or(object.Error.Code, new(string)); got != code || object.Error.Type == "" || object.Error.Message == "" {
		r.t.Errorf("error = %s; want code %q, and a type and a message", r.body, code)
	}
	if kind := r.header.Get("Content-Type"); kind != "application/json" {
		r.t.Errorf("Content-Type of an error = %q", kind)
	}
	return object.Error.Message
}

func chatBody(text string) string {
	return `{"model":"m","messages":[{"role":"user","content":"` + text + `"}]}`
}

func embeddingBody(text string) string { return `{"model":"m","input":"` + text + `"}` }

// lines are the texts of an upload's lines.
func lines(u batchtest.Upload) []string { return strings.Split(string(u.Content), "\n") }

// upload returns the only upload there was.
func (s *scene) upload() batchtest.Upload {
	s.Helper()
	uploads := s.srv.Uploads()
	if len(uploads) != 1 {
		s.Fatalf("%d uploads, want one", len(uploads))
	}
	return uploads[0]
}

// batch returns the only batch there was.
func (s *scene) batch() batchtest.Batch {
	s.Helper()
	batches := s.srv.Batches()
	if len(batches) != 1 {
		s.Fatalf("%d batches, want one", len(batches))
	}
	return batches[0]
}

// sent checks how many lines each batch has, in order.
func (s *scene) sent(sizes ...int) {
	s.Helper()
	got := []int{}
	for _, b := range s.srv.Batches() {
		got = append(got, b.Total)
	}
	if !slices.Equal(got, sizes) {
		s.Errorf("batches of %v lines, want %v", got, sizes)
	}
}

// count counts the requests to a path of which every piece is a part.
func (s *scene) count(method string, pieces ...string) (n int) {
	for _, r := range s.srv.Requests() {
		if r.Method == method && !slices.ContainsFunc(pieces, func(p string) bool { return !strings.Contains(r.Path, p) }) {
			n++
		}
	}
	return n
}

// rewrite answers as the server would have, but for what change does to the body.
func rewrite(change func(body []byte, h http.Header) []byte) batchtest.Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		rec := &recorded{header: http.Header{}, status: http.StatusOK}
		batchtest.Proceed(rec, r)
		for name, values := range rec.header {
			w.Header()[name] = values
		}
		w.Header().Del("Content-Length")
		body := change(rec.body.Bytes(), w.Header())
		w.WriteHeader(rec.status)
		w.Write(body)
		return true
	}
}

type recorded struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorded) Header() http.Header         { return r.header }
func (r *recorded) WriteHeader(status int)      { r.status = status }
func (r *recorded) Write(p []byte) (int, error) { return r.body.Write(p) }

// field changes one field of a batch object.
func field(name, value string) batchtest.Fault {
	return rewrite(func(body []byte, _ http.Header) []byte {
		var object map[string]json.RawMessage
		json.Unmarshal(body, &object)
		object[name] = json.RawMessage(value)
		body, _ = json.Marshal(object)
		return body
	})
}

// every makes n times the same fault.
func every(n int, f batchtest.Fault) []batchtest.Fault { return slices.Repeat([]batchtest.Fault{f}, n) }

// roundTripper makes a function a RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

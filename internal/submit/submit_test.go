package submit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/submit"
)

func batched(endpoint string) bool {
	return slices.Contains([]string{"/chat/completions", "/embeddings"}, endpoint)
}

func request(id string) string {
	return fmt.Sprintf(`{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":{"model":"m","n":%q}}`, id, id)
}

func check(t *testing.T, text string) *submit.Input {
	t.Helper()
	in, err := submit.Check(strings.NewReader(text), batched)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name, line, bad string // bad: part of the reason; "" for a good line
	}{
		{"a good line", request("a"), ""},
		{"no method", `{"custom_id":"a","url":"/v1/embeddings","body":{}}`, ""},
		{"a URL without a version", `{"custom_id":"a","url":"/embeddings","body":{}}`, ""},
		{"a byte-order mark", "\ufeff" + request("a"), ""},
		{"a carriage return", request("a") + "\r", ""},
		{"not JSON", `{"custom_id":`, "not valid JSON"},
		{"NaN", `{"custom_id":"a","url":"/v1/embeddings","body":{"n":NaN}}`, "not valid JSON"},
		{"an array", `[]`, "not a JSON object"},
		{"no id", `{"url":"/v1/embeddings","body":{}}`, "custom_id"},
		{"a number as id", `{"custom_id":7,"url":"/v1/embeddings","body":{}}`, "custom_id"},
		{"an empty id", `{"custom_id":"","url":"/v1/embeddings","body":{}}`, "custom_id"},
		{"another method", `{"custom_id":"a","method":"GET","url":"/v1/embeddings","body":{}}`, `must be "POST"`},
		{"no URL", `{"custom_id":"a","body":{}}`, `"url" is missing`},
		{"another endpoint", `{"custom_id":"a","url":"/v1/audio/speech","body":{}}`, `"/v1/audio/speech" is no endpoint`},
		{"no body", `{"custom_id":"a","url":"/v1/embeddings"}`, `"body" is missing`},
		{"a body that is text", `{"custom_id":"a","url":"/v1/embeddings","body":"{}"}`, `"body" is missing`},
		{"a stream", `{"custom_id":"a","url":"/v1/embeddings","body":{"stream":true}}`, "cannot be a stream"},
	} {
		in := check(t, tt.line+"\n\n"+request("other")+"\n")
		switch {
		case tt.bad == "" && (in.Requests != 2 || len(in.Bad) > 0):
			t.Errorf("%s: %d requests, bad %v", tt.name, in.Requests, in.Bad)
		case tt.bad != "" && (len(in.Bad) != 1 || in.Bad[0].Line != 1 || !strings.Contains(in.Bad[0].Reason, tt.bad)):
			t.Errorf("%s: bad %v, want %q", tt.name, in.Bad, tt.bad)
		}
	}
	in := check(t, strings.Join([]string{request("a"), request("b"), "x", request("a"), request("a")}, "\n"))
	want := []int{3, 4, 5}
	got := []int{}
	for _, b := range in.Bad {
		got = append(got, b.Line)
	}
	if !slices.Equal(got, want) || in.Requests != 2 || !strings.Contains(in.Bad[1].String(), `"a", as on line 1`) {
		t.Errorf("bad %v; want lines %v, two of them repeated", in.Bad, want)
	}
}

// A place is a folder with the output of a job.
type place struct {
	*testing.T
	text string
	in   *submit.Input
	path string
}

func newPlace(t *testing.T, lines ...string) *place {
	text := strings.Join(lines, "\n") + "\n"
	return &place{t, text, check(t, text), filepath.Join(t.TempDir(), "out.part")}
}

func (p *place) open() *submit.Part {
	p.Helper()
	part, err := submit.OpenPart(p.path, p.in)
	if err != nil {
		p.Fatal(err)
	}
	return part
}

// answers answers each request with its id. It fails the test for a request that was
// answered before.
type answers struct {
	*testing.T
	mu   sync.Mutex
	seen map[string]bool
	do   func(id string) (*http.Response, error) // nil, nil: as usual
}

func reply(status int, body string, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Header: h,
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}
}

func (a *answers) answer(_ context.Context, r submit.Request, queued func()) (*http.Response, error) {
	queued()
	if a.do != nil {
		if res, err := a.do(r.CustomID); res != nil || err != nil {
			return res, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen[r.CustomID] {
		a.Errorf("%s was sent twice", r.CustomID)
	}
	a.seen[r.CustomID] = true
	body := fmt.Sprintf("{\n \"n\": %q, \"usage\": {\"prompt_tokens\": 2, \"completion_tokens\": 3}}", gjson.GetBytes(r.Body, "n").String())
	return reply(200, body, "Autobatcher-Batch-Id", "b", "X-Request-Id", "r"), nil
}

func (p *place) job(part *submit.Part, a *answers) *submit.Job {
	return &submit.Job{Input: p.in, Part: part, Batched: batched, Do: a.answer, AllQueued: func() {}, MaxCalls: 10, MaxBytes: 1 << 20}
}

func (p *place) newAnswers() *answers { return &answers{T: p.T, seen: map[string]bool{}} }

// finish writes the output and returns the statuses by id, in order: 0 for an error.
func (p *place) finish(part *submit.Part) (results []string) {
	p.Helper()
	out := filepath.Join(p.TempDir(), "out")
	if err := part.Finish(out); err != nil {
		p.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		p.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		l := gjson.Parse(line)
		results = append(results, fmt.Sprintf("%s %d%s", l.Get("custom_id"), l.Get("response.status_code").Int(), l.Get("error.code")))
	}
	if _, err := os.Stat(p.path); !errors.Is(err, os.ErrNotExist) {
		p.Errorf("the part is left: %v", err)
	}
	return results
}

func TestResultsAreInTheOrderOfTheInput(t *testing.T) {
	var lines, want []string
	for i := range 200 {
		lines = append(lines, request(fmt.Sprint(i)))
		want = append(want, fmt.Sprint(i, " 200"))
	}
	p := newPlace(t, lines...)
	part := p.open()
	job := p.job(part, p.newAnswers())
	var now, peak int
	var mu sync.Mutex
	next := job.Do
	job.Do = func(ctx context.Context, r submit.Request, queued func()) (*http.Response, error) {
		mu.Lock()
		now++
		peak = max(peak, now)
		mu.Unlock()
		defer func() { mu.Lock(); defer mu.Unlock(); now-- }()
		return next(ctx, r, queued)
	}
	all := false
	job.AllQueued = func() { all = true }
	if err := job.Run(t.Context(), strings.NewReader(p.text)); err != nil || !all {
		t.Fatalf("%v; all queued: %v", err, all)
	}
	if prompt, completion := job.Tokens(); prompt != 400 || completion != 600 {
		t.Errorf("%d and %d tokens", prompt, completion)
	}
	if peak > 10 {
		t.Errorf("%d calls at once, want 10 at the most", peak)
	}
	if got := p.finish(part); !slices.Equal(got, want) {
		t.Errorf("results %v", got)
	}
}

// Failures are results, but for requests that were not sent: the next run sends them.
func TestFailures(t *testing.T) {
	p := newPlace(t, request("a"), "no JSON", request("b"), request("c"), request("d"), request("e"))
	part, a := p.open(), p.newAnswers()
	refuses := true
	a.do = func(id string) (*http.Response, error) {
		switch {
		case id == "b":
			return reply(429, `{"error":{"message":"slow"}}`, "Autobatcher-Batch-Id", "b"), nil
		case id == "c":
			return reply(424, `{"error":{"code":"batch_expired","message":"late"}}`, "Autobatcher-Batch-Id", "b"), nil
		case id == "d":
			return reply(400, `{"error":{"message":"no model"}}`), nil
		case id == "e" && refuses:
			return reply(401, `{"error":{"message":"wrong key"}}`), nil
		}
		return nil, nil
	}
	job := p.job(part, a)
	if err := job.Run(t.Context(), strings.NewReader(p.text)); err != nil {
		t.Fatal(err)
	}
	if n, why := job.Unsent(); n != 1 || why != "wrong key" {
		t.Errorf("%d were not sent: %q", n, why)
	}
	refuses = false
	job = p.job(part, a)
	if err := job.Run(t.Context(), strings.NewReader(p.text)); err != nil {
		t.Fatal(err)
	}
	if done, ok := part.Counts(); done != 6 || ok != 2 {
		t.Errorf("%d results, %d answers", done, ok)
	}
	want := []string{"a 200", " 0invalid_line", "b 429", "c 0batch_expired", "d 400", "e 200"}
	if got := p.finish(part); !slices.Equal(got, want) {
		t.Errorf("results %q, want %q", got, want)
	}
}

// A run that ends early keeps its results, also if the last one is torn.
func TestResume(t *testing.T) {
	p := newPlace(t, request("a"), request("b"), request("c"))
	a := p.newAnswers()
	stop := errors.New("stop")
	part := p.open()
	job := p.job(part, a)
	job.MaxCalls = 1
	a.do = func(id string) (*http.Response, error) {
		if id == "c" {
			return nil, stop
		}
		return nil, nil
	}
	if err := job.Run(t.Context(), strings.NewReader(p.text)); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	if err := part.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(p.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.path, text[:len(text)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	a.do, a.seen = nil, map[string]bool{"a": true} // the result of b was torn
	part = p.open()
	if !part.Has(1) || part.Has(2) || part.Has(3) {
		t.Error("the results that are kept are not those that are whole")
	}
	if err := p.job(part, a).Run(t.Context(), strings.NewReader(p.text)); err != nil {
		t.Error(err)
	}
	if got, want := p.finish(part), []string{"a 200", "b 200", "c 200"}; !slices.Equal(got, want) {
		t.Errorf("results %q", got)
	}
}

// The lock of a process that is killed ends a moment after the kill.
func TestOpenPartWaits(t *testing.T) {
	p := newPlace(t, request("a"))
	part := p.open()
	time.AfterFunc(200*time.Millisecond, func() { _ = part.Close() })
	again, err := submit.OpenPart(p.path, p.in)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenPartRefuses(t *testing.T) {
	p := newPlace(t, request("a"))
	part := p.open()
	if _, err := submit.OpenPart(p.path, p.in); !errors.Is(err, submit.ErrInUse) {
		t.Errorf("a part that is in use: %v", err)
	}
	if err := part.Close(); err != nil {
		t.Error(err)
	}
	other := check(t, request("b")+"\n")
	if _, err := submit.OpenPart(p.path, other); !errors.Is(err, submit.ErrOtherInput) {
		t.Errorf("a part of another input: %v", err)
	}
	if err := p.open().Close(); err != nil {
		t.Error(err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(request("a") + "\n" + request("b"))
	f.Add("\ufeff{}\n\r\n[1]")
	f.Fuzz(func(t *testing.T, text string) {
		in, err := submit.Check(strings.NewReader(text), batched)
		if err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "part")
		part, err := submit.OpenPart(path, in)
		if err != nil {
			t.Fatal(err)
		}
		defer part.Close()
		job := &submit.Job{
			Input: in, Part: part, Batched: batched, MaxCalls: 5, MaxBytes: 100, AllQueued: func() {},
			Do: func(_ context.Context, r submit.Request, _ func()) (*http.Response, error) {
				return reply(200, string(r.Body)), nil
			},
		}
		if err := job.Run(t.Context(), bytes.NewReader([]byte(text))); err != nil {
			t.Fatal(err)
		}
		if done, ok := part.Counts(); done != in.Requests+len(in.Bad) || ok != in.Requests {
			t.Errorf("%d results, %d answers of %d requests and %d bad lines", done, ok, in.Requests, len(in.Bad))
		}
	})
}

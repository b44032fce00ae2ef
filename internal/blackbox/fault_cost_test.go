package blackbox_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// refusing is a Base that refuses every request at once.
func refusing(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		io.Copy(io.Discard, req.Body)
		req.Body.Close()
	}
	return &http.Response{StatusCode: 403, Header: http.Header{}, Body: http.NoBody, Request: req}, nil
}

// A body in which a field is repeated costs about as much time as a body of the
// same size with other fields. To remove each repetition on its own would cost a
// copy of the body each, a hundred times as much.
func TestARepeatedFieldCostsLinearTime(t *testing.T) {
	tr, err := autobatcher.New(autobatcher.Options{Base: roundTripper(refusing), BatchSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	const repeated = 20_000
	fastest := func(field string) time.Duration {
		best := time.Hour
		for range 3 {
			body := `{"model":"m",` + strings.Repeat(field, repeated) + `"messages":[]}`
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://host.example/v1/chat/completions", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			res, err := tr.RoundTrip(req)
			best = min(best, time.Since(began))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
		}
		return best
	}
	floor := fastest(`"otherfield":true,`) // quadratic time would be thousands of times as much
	for _, field := range []string{`"stream":true,`, `"stream_options":{"include_usage":true},`, `"str\u0065am":false,`, `"model":"m",`} {
		if took := fastest(field); took > 100*floor {
			t.Errorf("%d times %s took %v, another field %v", repeated, field, took, floor)
		}
	}
}

// Stats costs time in proportion to what is queued.
func TestStatsOfManyModels(t *testing.T) {
	p := provider.Doubleword()
	tr, err := autobatcher.New(autobatcher.Options{
		Base: roundTripper(refusing), Provider: &p, BatchSize: 1 << 20, BatchWindow: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	const models = 3000
	ctx, leave := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for i := range models {
		callers.Go(func() {
			body := fmt.Sprintf(`{"model":"model number %06d","messages":[]}`, i)
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://host.example/v1/chat/completions", strings.NewReader(body))
			if res, err := tr.RoundTrip(req); err == nil {
				res.Body.Close()
			}
		})
	}
	for tr.Stats().Queued < models {
		time.Sleep(20 * time.Millisecond)
	}
	fastest := time.Hour // other work on the machine must not count
	for range 5 {
		began := time.Now()
		st := tr.Stats()
		fastest = min(fastest, time.Since(began))
		if n := len(st.Queues[0].Models); n != models {
			t.Errorf("Stats names %d models, want %d", n, models)
		}
	}
	if fastest > 50*time.Millisecond {
		t.Errorf("Stats took %v", fastest)
	}
	leave()
	callers.Wait()
	tr.Close()
}

// heap is the memory in use after everything unused was collected.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// large answers lines that say large with 1 MB, which the server does not hold: the
// answers grow while they are downloaded.
func large(l batchtest.Line) batchtest.Outcome {
	if strings.Contains(string(l.Body), "large") {
		return batchtest.Outcome{Body: []byte(`{"large":"SHORT"}`)}
	}
	return batchtest.Outcome{}
}

func (s *scene) growAnswers() {
	long := []byte(strings.Repeat("x", 1<<20))
	s.srv.Keep(batchtest.OpContent, rewrite(func(body []byte, _ http.Header) []byte {
		return bytes.ReplaceAll(body, []byte("SHORT"), long)
	}))
}

// grown plays a scene cycle by cycle and returns by how much the memory in use grew
// in five cycles, some time after the last.
func grown(s *scene, rest time.Duration, cycle func(i int)) int64 {
	s.Helper()
	cycle(0)
	synctest.Wait()
	before := heap()
	for i := range 5 {
		cycle(1 + i)
	}
	s.until(s.elapsed() + rest)
	return heap() - before
}

// fetch makes a call in a way that nothing of the answer is kept by the test.
func (s *scene) fetch(text string, leave time.Duration, edits ...edit) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), leave)
	defer cancel()
	if res, err := s.tr.RoundTrip(s.request(ctx, "/chat/completions", chatBody(text), edits...)); err == nil {
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
}

// shortened is a way to the server on which long texts in uploads are cut, so that
// the server does not hold them.
func shortened(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.Method != http.MethodPost || !strings.HasSuffix(req.URL.Path, "/files") {
			return next.RoundTrip(req)
		}
		body, err := io.ReadAll(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, err
		}
		body = bytes.ReplaceAll(body, bytes.Repeat([]byte("y"), 1024), nil)
		req = req.Clone(req.Context())
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		return next.RoundTrip(req)
	})
}

// What was fetched is not held, neither the answer nor the request, whatever older
// answers no caller has fetched.
func TestAKeptAnswerHoldsNoOther(t *testing.T) {
	for _, escalate := range []autobatcher.Escalation{autobatcher.EscalateNever, autobatcher.EscalateFailed} {
		u := setup{
			server:  batchtest.Options{Answer: large},
			base:    shortened,
			options: autobatcher.Options{BatchWindow: time.Second, Escalate: escalate},
		}
		u.run(t, "escalate "+string(escalate), func(s *scene) {
			s.growAnswers()
			s.fetch("no caller comes back for this", 3*time.Second)
			s.until(20 * time.Second)
			pad := strings.Repeat("y", 1<<20)
			size := grown(s, 0, func(i int) {
				text := fmt.Sprint("large ", i, pad)
				s.fetch(text, 3*time.Second)
				s.until(s.elapsed() + 10*time.Second)
				s.fetch(text, time.Minute)
				s.until(s.elapsed() + 10*time.Minute)
			})
			if size > 2<<20 {
				s.Errorf("%d bytes more after five requests and answers of 1 MB were fetched", size)
			}
		})
	}
}

// A download that has ended holds nothing, not even for a few minutes.
func TestAFinishedDownloadHoldsNothing(t *testing.T) {
	u := setup{
		server:  batchtest.Options{Answer: large},
		options: autobatcher.Options{BatchSize: 1, PollInterval: time.Second},
	}
	u.play(t, func(s *scene) {
		s.growAnswers()
		if size := grown(s, 0, func(i int) { s.fetch(fmt.Sprint("large ", i), time.Minute) }); size > 2<<20 {
			s.Errorf("%d bytes more after five answers of 1 MB were fetched", size)
		}
	})
}

// A credential is forgotten once no call, no line and no batch of its account is left.
func TestCredentialsAreForgotten(t *testing.T) {
	store := journal.NewMemory()
	defer store.Close()
	t.Run("with a journal", func(t *testing.T) { credentialsAreForgotten(t, store) })
	t.Run("without a journal", func(t *testing.T) { credentialsAreForgotten(t, nil) })
}

func credentialsAreForgotten(t *testing.T, store journal.Store) {
	t.Helper()
	u := setup{options: autobatcher.Options{BatchSize: 1, PollInterval: time.Second, Journal: store, KeepFor: time.Minute}}
	u.base = func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) { // the server keeps every header that it sees
			r = r.Clone(r.Context())
			r.Header.Set("Authorization", strings.Clone(r.Header.Get("Authorization")[:30]))
			return next.RoundTrip(r)
		})
	}
	u.play(t, func(s *scene) {
		size := grown(s, 2*time.Hour, func(i int) {
			s.fetch("text", time.Minute, key(fmt.Sprintf("%020d", i)+strings.Repeat("k", 1<<20)))
		})
		if size > 2<<20 {
			s.Errorf("%d bytes more, two hours after five calls with five keys of 1 MB", size)
		}
	})
}

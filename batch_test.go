package autobatcher

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/accounts"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/journal"
)

// An inlineProvider is a second Backend, as unlike files and batches as providers
// are: the requests stand in the create, nothing is uploaded or deleted, a batch
// has no metadata and no name by which it could be found, and one response has all
// results, in a form of its own.
type inlineProvider struct {
	behavior
	mu      sync.Mutex
	batches []*inlineBatch
}

type behavior struct {
	turnaround time.Duration
	refuse     error // of each create
	lost       bool  // creates are carried out and not answered
	expires    bool  // batches expire with their last request unanswered
}

type inlineBatch struct {
	id       string
	ids      []string
	created  time.Time
	canceled bool
}

func (p *inlineProvider) Prepare(context.Context, line.File, backend.Params) (backend.Handle, error) {
	return backend.Handle{}, nil
}

func (p *inlineProvider) Create(_ context.Context, f line.File, h backend.Handle, _ backend.Params) (backend.Handle, backend.Status, error) {
	if p.refuse != nil {
		return h, backend.Status{}, p.refuse
	}
	b := &inlineBatch{created: time.Now()}
	for lines := bufio.NewScanner(f.NewReader()); lines.Scan(); {
		b.ids = append(b.ids, gjson.GetBytes(lines.Bytes(), "custom_id").Str)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b.id = fmt.Sprintf("msgbatch_%d", len(p.batches)+1)
	p.batches = append(p.batches, b)
	if p.lost {
		return h, backend.Status{}, fmt.Errorf("%w: %w", backend.ErrUnsure, io.ErrUnexpectedEOF)
	}
	h.BatchID = b.id
	return h, backend.Status{Handle: h, Word: "in_progress"}, nil
}

func (p *inlineProvider) Find(context.Context, backend.Handle, time.Time) (backend.Handle, backend.Existence, error) {
	return backend.Handle{}, backend.Unsure, errors.New("batches have no names")
}

func (p *inlineProvider) Status(_ context.Context, hs []backend.Handle) ([]backend.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := make([]backend.Status, len(hs))
	for i, h := range hs {
		b := p.batchLocked(h)
		s := backend.Status{Handle: h, Word: "in_progress", Counts: backend.Counts{Total: len(b.ids)}}
		switch {
		case b.canceled:
			s.Phase, s.Word = backend.Ended, "cancelled"
		case time.Since(b.created) >= p.turnaround && p.expires:
			s.Phase, s.Word = backend.Ended, "expired"
		case time.Since(b.created) >= p.turnaround:
			s.Phase, s.Word, s.Counts.Completed = backend.Ended, "completed", len(b.ids)
		}
		if s.Phase == backend.Ended {
			s.Sources = []string{"results"}
		}
		found[i] = s
	}
	return found, nil
}

func (p *inlineProvider) batchLocked(h backend.Handle) *inlineBatch {
	for _, b := range p.batches {
		if b.id == h.BatchID {
			return b
		}
	}
	return &inlineBatch{}
}

// Results answers the n-th request of a batch with "answer n", but for the second
// request, which fails.
func (p *inlineProvider) Results(_ context.Context, h backend.Handle, _ string, from backend.Position) (*backend.Stream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.batchLocked(h)
	var results []line.Result
	for i, id := range b.ids {
		r := line.Result{ID: id, Status: http.StatusOK, Body: fmt.Appendf(nil, `{"answer":%d}`, i+1)}
		switch {
		case b.canceled:
			r = line.Result{ID: id, Code: "batch_cancelled", Message: "canceled"}
		case p.expires && i == len(b.ids)-1:
			r = line.Result{ID: id, Code: "batch_expired", Message: "expired"}
		case i == 1:
			r.Status, r.Body = http.StatusTeapot, []byte(`{"error":{"message":"no tea"}}`)
		}
		results = append(results, r)
	}
	return &backend.Stream{Lines: &inlineResults{rest: results[from.Line:], at: from}, From: from}, nil
}

type inlineResults struct {
	rest []line.Result
	at   backend.Position
}

func (r *inlineResults) Next() (line.Result, error) {
	if len(r.rest) == 0 {
		return line.Result{}, io.EOF
	}
	next := r.rest[0]
	r.rest, r.at.Line = r.rest[1:], r.at.Line+1
	return next, nil
}

func (r *inlineResults) Position() backend.Position { return r.at }
func (r *inlineResults) Close() error               { return nil }

func (p *inlineProvider) Cancel(_ context.Context, h backend.Handle) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.batchLocked(h).canceled = true
	return nil
}

func (p *inlineProvider) Cleanup(context.Context, backend.Handle, []string) error { return nil }

// The life cycle of a batch, with a Backend that has nothing of the files API.
func TestASecondBackend(t *testing.T) {
	type result struct {
		status int
		text   string // that is in the body
	}
	teapot := result{418, "no tea"}
	for _, tt := range []struct {
		name     string
		provider behavior
		options  Options
		leave    time.Duration // when the callers leave; 0: they stay
		want     []result      // in the order of the lines
		batches  int
		canceled bool
	}{
		{"success and a failed line", behavior{}, Options{}, 0, []result{{200, `"answer":1`}, teapot, {200, `"answer":3`}}, 1, false},
		{"delete files", behavior{}, Options{Files: FilesDelete}, 0, []result{{200, `"answer":1`}, teapot, {200, `"answer":3`}}, 1, false},
		{
			"create is refused",
			behavior{refuse: &backend.Error{Op: "POST /messages/batches", Status: 402, Body: []byte(`{"error":{"message":"no credit"}}`)}},
			Options{},
			0,
			[]result{{402, "no credit"}, {402, "no credit"}, {402, "no credit"}},
			0, false,
		},
		{"create is not answered", behavior{lost: true}, Options{}, 0, []result{{424, "batch_create_unknown"}, {424, "batch_create_unknown"}, {424, "batch_create_unknown"}}, 1, false},
		{"expiry", behavior{expires: true}, Options{Resubmits: -1}, 0, []result{{200, `"answer":1`}, teapot, {424, "batch_expired"}}, 1, false},
		{"the callers leave", behavior{turnaround: 24 * time.Hour}, Options{}, time.Hour, nil, 1, true},
	} {
		for _, store := range []journal.Store{nil, journal.NewMemory()} {
			t.Run(fmt.Sprintf("%s/journal=%v", tt.name, store != nil), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := &inlineProvider{behavior: tt.provider}
					p.turnaround = max(p.turnaround, time.Minute)
					tt.options.Journal = store
					tt.options.QuietAfter = -1
					tr, err := New(tt.options)
					if err != nil {
						t.Fatal(err)
					}
					defer tr.Close()
					tr.router.newBackend = func(*accounts.Lane) backend.Backend { return p }
					ctx, leave := context.WithCancel(t.Context())
					defer leave()
					ends := make([]chan result, 3)
					for i := range ends {
						ends[i] = make(chan result, 1)
						go func() {
							status, body := chatThrough(ctx, tr, fmt.Sprint(i))
							ends[i] <- result{status, body}
						}()
						synctest.Wait() // the lines are in order
					}
					if tt.leave > 0 {
						time.Sleep(tt.leave)
						leave()
						time.Sleep(time.Hour)
					}
					for i, want := range tt.want {
						if got := <-ends[i]; got.status != want.status || !strings.Contains(got.text, want.text) {
							t.Errorf("call %d: %d %s; want %d %s", i, got.status, got.text, want.status, want.text)
						}
					}
					p.mu.Lock()
					defer p.mu.Unlock()
					if len(p.batches) != tt.batches {
						t.Fatalf("%d batches, want %d", len(p.batches), tt.batches)
					}
					for _, b := range p.batches {
						if b.canceled != tt.canceled || len(b.ids) != 3 {
							t.Errorf("a batch of %d lines, canceled: %v; want 3 lines, canceled: %v", len(b.ids), b.canceled, tt.canceled)
						}
					}
				})
			})
		}
	}
}

// A batch without a file is followed by the next process, and its lines are found
// by retries.
func TestASecondBackendAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &inlineProvider{behavior: behavior{turnaround: time.Hour}}
		store := journal.NewMemory()
		start := func() *Transport {
			tr, err := New(Options{Journal: store, AbandonAfter: -1})
			if err != nil {
				t.Fatal(err)
			}
			tr.router.newBackend = func(*accounts.Lane) backend.Backend { return p }
			return tr
		}
		first := start()
		ctx, leave := context.WithTimeout(t.Context(), time.Minute)
		defer leave()
		chatThrough(ctx, first, "text")
		first.Close()
		second := start()
		defer second.Close()
		status, body := chatThrough(t.Context(), second, "text")
		p.mu.Lock()
		defer p.mu.Unlock()
		if status != http.StatusOK || !strings.Contains(body, `"answer":1`) || len(p.batches) != 1 {
			t.Errorf("%d %s from %d batches, want the answer of one batch", status, body, len(p.batches))
		}
	})
}

// chatThrough makes a call and returns the status and the body of the response.
func chatThrough(ctx context.Context, tr *Transport, text string) (int, string) {
	body := strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"` + text + `"}]}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://host.example/v1/chat/completions", body)
	if err != nil {
		return 0, err.Error()
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(res.Body); err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, answer.String()
}

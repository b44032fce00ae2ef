package simulation

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/autobatcher/autobatcher/journal"
)

// A mutant is a deliberate bug, made by a wrapper around what a process speaks
// through. The zero mutant is no bug.
type mutant struct {
	name  string
	base  func(http.RoundTripper) http.RoundTripper // around its way to the provider
	store func(*world, journal.Store) journal.Store // around its hand on the journal
	says  string                                    // what a simulation says that caught it
}

// mutants are bugs that would cost money or mix up callers. Each is as quiet
// as it can be: the Transport notices nothing.
var mutants = []mutant{
	{name: "a create is retried blindly", base: blindCreate, says: "were paid for"},
	{name: "input files stay, for creates that arrive late", base: keepFiles, says: "were paid for"},
	{name: "a batch is made with another key", base: otherKey, says: "was answered by a line of key-"},
	{name: "answers are swapped between keys", base: swapAnswers(true), says: "its line's answer is"},
	{name: "answers are swapped between lines", base: swapAnswers(false), says: "its line's answer is"},
	{name: "a result is dropped", base: dropResult, says: "though its line"},
	{name: "a result's bytes are changed", base: changeResult, says: "its line's answer is"},
	{name: "takeover merges calls that are alive", store: func(w *world, s journal.Store) journal.Store { return merging{s, w} }, says: "handed out twice"},
	{name: "the journal forgets held lines", store: func(_ *world, s journal.Store) journal.Store {
		return &forgetful{Store: s, released: make(map[string]bool)}
	}, says: "were paid for"},
	{name: "a create is not written down before it is sent", store: func(_ *world, s journal.Store) journal.Store { return tooLate{s} }, says: "were paid for"},
	{name: "deliveries are not written down", store: func(_ *world, s journal.Store) journal.Store { return undelivered{s} }, says: "handed out twice"},
	{name: "lines are never released", store: func(_ *world, s journal.Store) journal.Store { return unreleased{s} }, says: "are held, and nobody waits"},
	{name: "a batch that somebody waits for is cancelled", store: func(_ *world, s journal.Store) journal.Store { return ruthless{s} }, says: "are waited for"},
}

// mutantSeeds is how many schedules a mutant may survive.
const mutantSeeds = 200

// TestSimulationCatches is a test of the test: each mutant must be caught, for
// what it does.
func TestSimulationCatches(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= mutantSeeds; seed++ {
				for _, wrong := range simulate(t, seed, m, new(tally)) {
					if strings.Contains(wrong, m.says) {
						t.Logf("caught: %s", wrong)
						return
					}
				}
			}
			t.Errorf("survived %d seeds", mutantSeeds)
		})
	}
}

func isCreate(req *http.Request) bool {
	return req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/batches")
}

// blindCreate sends a create again when it was not answered.
func blindCreate(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		if !isCreate(req) {
			return next.RoundTrip(req)
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		res, err := next.RoundTrip(req)
		if err == nil && res.StatusCode < 500 || req.Context().Err() != nil {
			return res, err
		}
		if res != nil {
			res.Body.Close()
		}
		again := req.Clone(req.Context())
		again.Body = io.NopCloser(bytes.NewReader(body))
		return next.RoundTrip(again)
	})
}

// keepFiles says that files are deleted, and does nothing.
func keepFiles(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.Method != http.MethodDelete {
			return next.RoundTrip(req)
		}
		return &http.Response{
			StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}},
			Body: io.NopCloser(strings.NewReader(`{"deleted":true}`)), Request: req,
		}, nil
	})
}

// otherKey sends all of a process's requests with the key it saw first.
func otherKey(next http.RoundTripper) http.RoundTripper {
	var mu sync.Mutex
	var first string
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		mu.Lock()
		if first == "" {
			first = req.Header.Get("Authorization")
		}
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", first)
		mu.Unlock()
		return next.RoundTrip(req)
	})
}

// editResults changes the result files that a process downloads.
func editResults(next http.RoundTripper, edit func(key string, lines [][]byte) [][]byte) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		res, err := next.RoundTrip(req)
		if err != nil || res.StatusCode >= 300 || !strings.HasSuffix(req.URL.Path, "/content") {
			return res, err
		}
		text, torn := io.ReadAll(res.Body)
		res.Body.Close()
		lines := slices.DeleteFunc(bytes.SplitAfter(text, []byte("\n")), func(l []byte) bool { return len(l) == 0 })
		text = bytes.Join(edit(req.Header.Get("Authorization"), lines), nil)
		res.ContentLength = -1
		res.Header.Del("Content-Length")
		res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(text), failing{torn}))
		return res, nil
	})
}

// A splitResult is a result line in two: up to its answer, and that.
func splitResult(l []byte) (head, answer []byte, ok bool) {
	i := bytes.Index(l, []byte(`"response":{`))
	if i < 0 {
		return nil, nil, false
	}
	return l[:i], l[i:], true
}

// swapAnswers gives a line the answer that another had before it: of another
// key, or of any.
func swapAnswers(acrossKeys bool) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper {
		var mu sync.Mutex
		var key string
		var answer []byte
		return editResults(next, func(k string, lines [][]byte) [][]byte {
			mu.Lock()
			defer mu.Unlock()
			for i, l := range lines {
				head, own, ok := splitResult(l)
				if !ok {
					continue
				}
				if answer != nil && (key != k || !acrossKeys) {
					lines[i] = slices.Concat(head, answer)
				}
				key, answer = k, bytes.Clone(own)
			}
			return lines
		})
	}
}

// dropResult leaves out the first line of each file.
func dropResult(next http.RoundTripper) http.RoundTripper {
	return editResults(next, func(_ string, lines [][]byte) [][]byte { return lines[min(1, len(lines)):] })
}

// changeResult changes a byte that no JSON parser minds.
func changeResult(next http.RoundTripper) http.RoundTripper {
	return editResults(next, func(_ string, lines [][]byte) [][]byte {
		for i, l := range lines {
			lines[i] = bytes.Replace(l, []byte("You said"), []byte("You Said"), 1)
		}
		return lines
	})
}

// merging hands out lines that another process holds.
type merging struct {
	journal.Store
	w *world
}

func (m merging) TakeOver(ctx context.Context, owner string, payer journal.Hash, prints []journal.Hash) ([]journal.Taken, error) {
	taken, err := m.Store.TakeOver(ctx, owner, payer, prints)
	if err != nil || len(taken) > 0 {
		return taken, err
	}
	for _, b := range m.w.known() {
		if b.State == journal.Running && b.Held > 0 && b.Owner != owner && b.Payer == payer {
			if l, ok := m.w.record.lineOf(b.Ref, prints); ok {
				return []journal.Taken{{Batch: b, Lines: []journal.Line{l}}}, nil
			}
		}
	}
	return nil, nil
}

// forgetful loses the lines of those who died: it hands out only what was
// released through it.
type forgetful struct {
	journal.Store
	mu       sync.Mutex
	released map[string]bool // refs
}

func (f *forgetful) Release(ctx context.Context, owner, ref string, lines []int) error {
	f.mu.Lock()
	f.released[ref] = true
	f.mu.Unlock()
	return f.Store.Release(ctx, owner, ref, lines)
}

func (f *forgetful) TakeOver(ctx context.Context, owner string, payer journal.Hash, prints []journal.Hash) ([]journal.Taken, error) {
	taken, err := f.Store.TakeOver(ctx, owner, payer, prints)
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(taken, func(t journal.Taken) bool { return !f.released[t.Batch.Ref] }), err
}

// tooLate names a batch's input file, and says that it may exist, only when it does.
type tooLate struct{ journal.Store }

func (l tooLate) Advance(ctx context.Context, owner, ref string, s journal.Step) error {
	if s.State == journal.Uploaded || s.State == journal.Creating {
		return nil
	}
	return l.Store.Advance(ctx, owner, ref, s)
}

// undelivered makes open what was delivered.
type undelivered struct{ journal.Store }

func (u undelivered) Deliver(ctx context.Context, owner, ref string, lines []int) error {
	return u.Release(ctx, owner, ref, lines)
}

// unreleased keeps lines whose callers have gone.
type unreleased struct{ journal.Store }

func (unreleased) Release(context.Context, string, string, []int) error { return nil }

// ruthless lets every batch be cancelled that has run for a while.
type ruthless struct{ journal.Store }

func (r ruthless) Abandon(ctx context.Context, owner, ref string) (bool, error) {
	done, err := r.Store.Abandon(ctx, owner, ref)
	return done || err == nil, err
}

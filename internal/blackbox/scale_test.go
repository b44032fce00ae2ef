//go:build unix

package blackbox_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// Tests of scale: work and memory may grow with the number of calls, bytes, batches
// and keys, but no faster. The tests run with small numbers, and with the numbers of
// docs/performance.md where AUTOBATCHER_SCALE is "full". What they limit is CPU time and
// memory of the same run, never the time on the clock.

// scaled is the number for every run, or the number for AUTOBATCHER_SCALE=full.
func scaled(always, full int) int {
	if os.Getenv("AUTOBATCHER_SCALE") == "full" {
		return full
	}
	return always
}

// cpuTime is the CPU time that the process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// liveHeap is the number of bytes that are reachable.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC() // what pools held
	return read("/memory/classes/heap/objects:bytes")
}

// allocated is the number of bytes that were ever allocated.
func allocated() int64 { return read("/gc/heap/allocs:bytes") }

func read(names ...string) (sum int64) {
	for _, name := range names {
		sample := []metrics.Sample{{Name: name}}
		metrics.Read(sample)
		sum += int64(sample[0].Value.Uint64())
	}
	return sum
}

// peak samples the memory of heap and stacks, garbage included, until the function that
// it returns is called, which returns the most.
func peak() (stop func() int64) {
	done, most := make(chan struct{}), make(chan int64)
	go func() {
		highest := int64(0)
		for {
			highest = max(highest, read("/memory/classes/heap/objects:bytes", "/memory/classes/heap/stacks:bytes"))
			select {
			case <-done:
				most <- highest
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() int64 {
		close(done)
		return <-most
	}
}

const mib = 1 << 20

// warm starts so many goroutines at once. The runtime keeps the memory that describes a
// goroutine for ever, which no test should count.
func warm(n int) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for range n {
		wg.Go(func() { <-start })
	}
	close(start)
	wg.Wait()
}

// A toll is what calls cost.
type toll struct {
	calls      int
	cpu        time.Duration
	held, most int64 // bytes: of a call that waits, after a collection; of all calls at the peak
	left       int64 // bytes that stay after all calls have ended
}

func (c toll) each() time.Duration { return c.cpu / time.Duration(c.calls) }

// costs logs the CPU time of a call beside that of one in base, which limit limits.
func (c toll) costs(t *testing.T, what string, base toll, limit float64) {
	t.Helper()
	times := float64(c.each()) / float64(base.each())
	figure(t, fmt.Sprint(c.calls, " ", what), fmt.Sprintf("%v of CPU each, %.2f times the cost among %d", c.each().Round(10*time.Nanosecond), times, base.calls), fmt.Sprintf("%.2f times", limit))
	if times > limit {
		t.Errorf("%v each among %d %s, and %v among %d", c.each(), c.calls, what, base.each(), base.calls)
	}
}

// atMost logs a number of bytes, and limits the number.
func atMost(t *testing.T, what string, bytes, limit int64) {
	t.Helper()
	figure(t, what, fmt.Sprintf("%d bytes", bytes), fmt.Sprint(limit))
	if bytes > limit {
		t.Errorf("%s: %d bytes, want at most %d", what, bytes, limit)
	}
}

// figure logs a row of the table of docs/performance.md: what was measured, the result, and
// the limit.
func figure(t *testing.T, what, got, limit string) {
	t.Helper()
	t.Logf("\n| %s | %s | %s |", what, got, limit)
}

// crowd makes calls in batches of size, all at the same time, through one Transport.
func crowd(t *testing.T, batches, size int) toll {
	t.Helper()
	m, calls := newMill(completion(300)), batches*size
	profile := provider.Generic()
	profile.MaxLines = size
	tr, err := autobatcher.New(autobatcher.Options{Base: m, BatchSize: size, BatchWindow: time.Hour, QuietAfter: -1, PollInterval: 200 * time.Millisecond, Provider: &profile})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	var wg sync.WaitGroup
	var wrong atomic.Int64
	cost := toll{calls: calls}
	before, highest := liveHeap(), peak()
	began := cpuTime()
	for i := range calls {
		wg.Go(func() {
			res, err := tr.RoundTrip(plain(t, i, "k", ""))
			if err != nil || res.StatusCode != 200 {
				wrong.Add(1)
				return
			}
			if n, err := io.Copy(io.Discard, res.Body); err != nil || n != int64(len(m.answer)) {
				wrong.Add(1)
			}
			res.Body.Close()
		})
	}
	for m.created.Load() < int64(batches) {
		time.Sleep(time.Millisecond)
	}
	cost.cpu = cpuTime() - began
	cost.held = (liveHeap() - before - int64(calls*lineID)) / int64(calls) // the mill holds ids
	began = cpuTime()
	m.open()
	wg.Wait()
	cost.cpu += cpuTime() - began
	cost.most = highest()
	for len(tr.Stats().Batches) > 0 {
		time.Sleep(time.Millisecond)
	}
	m.forget()
	cost.left = liveHeap() - before
	if wrong.Load() > 0 {
		t.Errorf("%d of %d calls went wrong", wrong.Load(), calls)
	}
	runtime.KeepAlive(tr)
	return cost
}

// alone is the cost of n calls that are made at the same time and have one answer, without
// a Transport: of their goroutines, their requests and their answers.
func alone(t *testing.T, n int) toll {
	t.Helper()
	text, open, cost := completion(300), make(chan struct{}), toll{calls: n}
	var waiting atomic.Int64
	hold := func(req *http.Request) (*http.Response, error) {
		body, err := io.ReadAll(req.Body)
		waiting.Add(1)
		<-open
		runtime.KeepAlive(body)
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(strings.Clone(text)))}, err
	}
	runtime.GC()
	began := cpuTime()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if res, err := hold(plain(t, i, "k", "")); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
			}
		})
	}
	for waiting.Load() < int64(n) {
		time.Sleep(time.Millisecond)
	}
	close(open)
	wg.Wait()
	cost.cpu = cpuTime() - began
	return cost
}

// Twenty batches that run at the same time cost per call what one batch costs, in CPU
// time and in memory, and leave nothing behind. At full scale these are a million calls.
// Their callers alone cost more each than the callers of one batch, since their memory is
// in no cache and comes from the kernel: the calls may cost that much more, but not more
// than a caller of one batch costs.
func TestManyCalls(t *testing.T) {
	const batches = 20
	size := scaled(300, 50_000) // the race detector allows 8,128 goroutines
	warm(batches * size)
	alone(t, size)
	few, many := alone(t, size), alone(t, batches*size)
	figure(t, fmt.Sprint(many.calls, " callers without a Transport"), fmt.Sprintf("%v of CPU each, %.2f times the cost among %d", many.each(), float64(many.each())/float64(few.each()), few.calls), "")
	crowd(t, 1, size) // what the first batch of a process costs
	one, all := crowd(t, 1, size), crowd(t, batches, size)
	more := min(max(many.each()-few.each(), 0), few.each())
	all.costs(t, "calls", one, float64(scaled(30, 15))/10+float64(more)/float64(one.each()))
	atMost(t, "heap of a waiting call, its request of 60 bytes included", all.held, 3<<10)
	atMost(t, "heap and stacks of a call at the peak, with garbage", all.most/int64(all.calls), 20<<10)
	if all.left > int64(all.calls)*32+mib { // empty maps keep some memory
		t.Errorf("%d bytes of heap stay after %d calls have ended", all.left, all.calls)
	}
}

// A batch takes little memory beyond the bodies of its calls: the file is not in memory
// when it is uploaded, nor when it is downloaded. What is counted is all that was
// allocated, also what the collector has freed. At full scale these are 200 MB up and
// 1 GB down.
func TestLargeFiles(t *testing.T) {
	const (
		calls = 1_000
		limit = 16 * mib
	)
	padding := strings.Repeat("x", scaled(40, 200)*1_000)
	m := newMill(completion(scaled(64, 1_024) << 10)) // whole pages, so that no allocation is rounded up
	profile := provider.Generic()
	profile.MaxBytes = 210 * mib
	tr, err := autobatcher.New(autobatcher.Options{Base: m, BatchSize: calls + 1, BatchWindow: time.Hour, QuietAfter: -1, PollInterval: 10 * time.Millisecond, Provider: &profile})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	var wg sync.WaitGroup
	var received atomic.Int64
	for i := range calls {
		wg.Go(func() {
			res, err := tr.RoundTrip(plain(t, i, "k", padding))
			if err != nil || res.StatusCode != 200 {
				t.Errorf("%v, %v", res, err)
				return
			}
			n, err := io.Copy(io.Discard, res.Body)
			if err != nil {
				t.Error(err)
			}
			received.Add(n)
			res.Body.Close()
		})
	}
	for tr.Stats().Queued < calls {
		time.Sleep(time.Millisecond)
	}
	before := allocated()
	if err := tr.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	up := allocated() - before
	before = allocated()
	m.open()
	wg.Wait()
	down := allocated() - before - received.Load()
	atMost(t, fmt.Sprintf("allocated beyond the bodies: upload of %d MB", m.uploaded.Load()/1e6), up, limit)
	atMost(t, fmt.Sprintf("allocated beyond the bodies: download of %d MB", received.Load()/1e6), down, limit)
	if want := int64(calls * len(m.answer)); received.Load() != want || m.uploaded.Load() < int64(calls*len(padding)) {
		t.Errorf("%d bytes up, %d down, want %d", m.uploaded.Load(), received.Load(), want)
	}
}

// keys makes a call with each of so many keys, all at the same time, so that each key has
// a batch of its own, and lets the batches run for three intervals of polls. The journal
// may be nil.
func keys(t *testing.T, n int, store journal.Store) (cost toll, polls int64) {
	t.Helper()
	const interval = 5 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		m := newMill(completion(300))
		tr, err := autobatcher.New(autobatcher.Options{Base: m, BatchWindow: 5 * time.Second, QuietAfter: -1, PollInterval: interval, KeepFor: time.Minute, Journal: store})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		cost.calls = n
		warm(8 * n)
		before, began := liveHeap(), cpuTime()
		var answered sync.WaitGroup
		for i := range n {
			answered.Go(func() {
				res, err := tr.RoundTrip(plain(t, i, fmt.Sprint("key-", i), ""))
				if err != nil || res.StatusCode != 200 {
					t.Errorf("key %d: %v, %v", i, res, err)
					return
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			})
		}
		time.Sleep(interval)
		if created := int(m.created.Load()); created != n {
			t.Errorf("%d batches for %d keys", created, n)
		}
		asked := m.requests.Load()
		time.Sleep(3 * interval)
		polls = m.requests.Load() - asked
		cost.held = (liveHeap() - before) / int64(n)
		m.open()
		answered.Wait()
		cost.cpu = cpuTime() - began
		time.Sleep(75 * time.Minute) // files are deleted, accounts and records are forgotten
		m.forget()
		cost.left = liveHeap() - before
		runtime.KeepAlive(tr)
	})
	return cost, polls
}

// Ten thousand keys, each with a batch of its own, cost per key what a few hundred cost,
// in CPU time, memory and requests, and are forgotten an hour later.
func TestManyKeys(t *testing.T) {
	few := scaled(30, 500)
	many := 20 * few
	for _, tt := range []struct {
		name  string
		open  func(t *testing.T) journal.Store
		bytes int64 // that a key may hold while its batch runs
	}{
		{"without a journal", func(*testing.T) journal.Store { return nil }, 32 << 10},
		{"with a journal", func(*testing.T) journal.Store { return journal.NewMemory() }, 40 << 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			keys(t, few, tt.open(t)) // what the first keys of a process cost
			base, _ := keys(t, few, tt.open(t))
			all, polls := keys(t, many, tt.open(t))
			all.costs(t, "keys "+tt.name, base, float64(scaled(30, 15))/10)
			atMost(t, "heap of a key while its batch runs, "+tt.name, all.held, tt.bytes)
			if most := int64(many) * 3; polls > most {
				t.Errorf("%d requests in three intervals for %d keys, want at most %d", polls, many, most)
			}
			if all.left > int64(many)*1024+mib { // empty maps keep some memory
				t.Errorf("%d bytes of heap stay of %d keys", all.left, many)
			}
		})
	}
}

// notePolls has a setup note when the provider is asked for batches. seen returns the times
// so far, from the beginning on.
func (u *setup) notePolls() (seen func() []time.Duration) {
	var mu sync.Mutex
	var polls []time.Duration
	u.base = func(next http.RoundTripper) http.RoundTripper {
		began := time.Now()
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/batches") {
				mu.Lock()
				defer mu.Unlock()
				polls = append(polls, time.Since(began))
			}
			return next.RoundTrip(r)
		})
	}
	return func() []time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(polls)
	}
}

// However many batches an account has, it asks for their states twice in an interval of
// polls at the most.
func TestPollsOfManyBatches(t *testing.T) {
	const interval = 5 * time.Minute // longer than a 60th of the age of the batches
	for _, n := range []int{20, 100} {
		u := manyBatches()
		u.server.Turnaround, u.options.PollInterval = 2*time.Hour, interval
		seen := u.notePolls()
		u.run(t, fmt.Sprint(n, " batches"), func(s *scene) {
			s.answered(s.rush(n, numbered), said)
			polls := seen()
			if len(polls) < 20 || len(polls) > 2*24 {
				s.Errorf("%d polls in two hours, want at most 2 in %v", len(polls), interval)
			}
			for i := range len(polls) - 2 {
				if polls[i+2]-polls[i] < interval-time.Second {
					s.Errorf("polls at %v: three within %v", polls[i:i+3], interval)
				}
			}
		})
	}
}

// Batches that are sent early, one after another, are polled together, too, once several run.
func TestPollsOfEarlyBatches(t *testing.T) {
	const n, few, interval = 100, 10, 5 * time.Second
	u := openAI(batchtest.Options{Turnaround: 50 * time.Minute}, autobatcher.Options{QuietAfter: time.Second, PollInterval: interval})
	seen := u.notePolls()
	u.run(t, "", func(s *scene) {
		var calls []*pending
		for i := range n {
			s.until(time.Duration(i) * 12 * time.Second) // later than a window, so that each batch is sent early
			calls = append(calls, s.chat(fmt.Sprint(i)))
		}
		for _, c := range calls {
			c.wait()
		}
		if len(s.srv.Batches()) != n {
			s.Fatalf("%d batches, want %d", len(s.srv.Batches()), n)
		}
		polls := seen()
		for i := range len(polls) - 2 {
			if polls[i] > (few+1)*12*time.Second && polls[i] < 50*time.Minute && polls[i+2]-polls[i] < interval-time.Second {
				s.Errorf("polls at %v: three within %v", polls[i:i+3], interval)
			}
		}
	})
}

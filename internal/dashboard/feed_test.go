package dashboard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
)

// A listener is a client of the event stream. If stuck is set, it reads
// nothing.
type listener struct {
	mu     sync.Mutex
	header http.Header
	status int
	text   strings.Builder
	ended  bool
	stuck  chan struct{}
}

func (l *listener) Header() http.Header    { return l.header }
func (l *listener) WriteHeader(status int) { l.status = status }
func (l *listener) Flush()                 {}

func (l *listener) Write(p []byte) (int, error) {
	if l.stuck != nil {
		<-l.stuck
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// heard lists the names of the events that came since it was last asked.
func (l *listener) heard() []string {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for line := range strings.SplitSeq(l.text.String(), "\n") {
		if name, ok := strings.CutPrefix(line, "event: "); ok {
			names = append(names, name)
		}
	}
	l.text.Reset()
	return names
}

func (l *listener) hasEnded() bool {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

func listen(ctx context.Context, d *Dashboard, stuck chan struct{}) *listener {
	l := &listener{header: make(http.Header), stuck: stuck}
	r := httptest.NewRequestWithContext(ctx, "GET", "/autobatcher/events", nil)
	go func() {
		d.ServeHTTP(l, r)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ended = true
	}()
	return l
}

func expectEvents(t *testing.T, l *listener, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, l.heard()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestStreamTellsWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		l := listen(t.Context(), d, nil)
		expectEvents(t, l, "chart", "state")

		time.Sleep(9 * time.Second)
		expectEvents(t, l)

		for i := range 1000 {
			d.OnEvent(autobatcher.Event{Name: autobatcher.BatchSubmitted, BatchID: fmt.Sprint(i)})
		}
		expectEvents(t, l)
		time.Sleep(time.Second) // the tenth, and a sample is due too
		expectEvents(t, l, "chart", "state")

		d.OnEvent(autobatcher.Event{Name: autobatcher.BatchCompleted, BatchID: "999"})
		time.Sleep(time.Second)
		expectEvents(t, l, "state")
		time.Sleep(8 * time.Second)
		expectEvents(t, l)
	})
}

// The page takes half a minute of silence for a lost connection.
func TestStreamIsNeverSilentForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{History: 24 * time.Hour})
		defer d.Close()
		l := listen(t.Context(), d, nil)
		expectEvents(t, l, "chart", "state")
		for range 5 {
			time.Sleep(maxQuiet)
			expectEvents(t, l, "state")
		}
	})
}

func TestViewersShareOneSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		d := New(Options{Stats: func() autobatcher.Stats { return autobatcher.Stats{Answered: asked.Add(1)} }})
		defer d.Close()

		time.Sleep(time.Hour)
		synctest.Wait()
		if n := asked.Swap(0); n != points+1 {
			t.Errorf("asked %d times in an hour that nobody watched, want %d", n, points+1)
		}

		var viewers []*listener
		for range 100 {
			viewers = append(viewers, listen(t.Context(), d, nil))
		}
		for range 60 {
			time.Sleep(time.Second)
			get(d, "GET", "/autobatcher/state")
		}
		synctest.Wait()
		if n := asked.Load(); n < 60 || n > 61 {
			t.Errorf("asked %d times in a minute, want once a second", n)
		}
		for i, l := range viewers {
			if n := len(l.heard()); n < 60 || l.hasEnded() {
				t.Fatalf("viewer %d heard %d events", i, n)
			}
		}
	})
}

func TestSlowViewerIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		stuck := make(chan struct{})
		slow, fast := listen(t.Context(), d, stuck), listen(t.Context(), d, nil)
		synctest.Wait()
		for i := range 2 * maxBehind {
			d.OnEvent(autobatcher.Event{Name: autobatcher.BatchSubmitted, BatchID: fmt.Sprint(i)})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		d.feed.mu.Lock()
		left := len(d.feed.viewers)
		d.feed.mu.Unlock()
		if left != 1 || fast.hasEnded() {
			t.Errorf("%d viewers are left, want the fast one", left)
		}
		close(stuck)
		if !slow.hasEnded() {
			t.Error("the slow stream goes on")
		}
	})
}

// A peer that stops reading, such as a laptop that was closed, costs a
// connection for ten seconds and not for ever.
func TestStuckConnectionIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		near, far := net.Pipe()
		listener := make(pipeListener, 1)
		listener <- far
		server := &http.Server{Handler: d}
		go func() { _ = server.Serve(listener) }() // ends with the listener
		defer func() { _ = server.Close() }()
		defer close(listener)

		if _, err := io.WriteString(near, "GET /autobatcher/events HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !d.feed.watched() {
			t.Fatal("there is no stream")
		}
		time.Sleep(writePatience + time.Second)
		synctest.Wait()
		if d.feed.watched() {
			t.Error("the stream goes on")
		}
		time.Sleep(writePatience)
		if _, err := io.ReadAll(near); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the connection was not closed: %v", err)
		}
	})
}

// A pipeListener accepts the connections sent to it.
type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (l pipeListener) Close() error   { return nil }
func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// A stream that the server ends must end cleanly.
func TestStreamEndsCleanly(t *testing.T) {
	d := New(Options{})
	server := httptest.NewServer(d)
	defer server.Close()
	resp, err := http.Get(server.URL + "/autobatcher/events")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	d.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasPrefix(string(body), "event: chart\ndata: {") || !strings.HasSuffix(string(body), "}\n\n") {
		t.Errorf("the stream ended with %v after %q", err, body)
	}
}

func TestViewerThatLeavesIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		ctx, cancel := context.WithCancel(t.Context())
		l := listen(ctx, d, nil)
		synctest.Wait()
		cancel()
		if !l.hasEnded() || d.feed.watched() {
			t.Error("the stream goes on")
		}
	})
}

func TestViewersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		for range maxViewers {
			listen(t.Context(), d, nil)
		}
		synctest.Wait()
		w := get(d, "GET", "/autobatcher/events")
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("status %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
		}
	})
}

func TestCloseEndsTheStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		l := listen(t.Context(), d, nil)
		synctest.Wait()
		d.Close()
		d.Close()
		if !l.hasEnded() {
			t.Error("the stream goes on")
		}
		d.OnEvent(autobatcher.Event{Name: autobatcher.ClientClosing}) // harmless
	})
}

// A batch waits for its event handler, so that must wait for nothing.
func TestOnEventDoesNotWaitForStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		answer := make(chan autobatcher.Stats)
		d := New(Options{Stats: func() autobatcher.Stats {
			if slow.Load() {
				return <-answer
			}
			return autobatcher.Stats{}
		}})
		time.Sleep(2 * time.Second)
		slow.Store(true)
		go get(d, "GET", "/autobatcher/state")
		synctest.Wait() // it asks for Stats by now
		d.OnEvent(autobatcher.Event{Name: autobatcher.BatchSubmitted, BatchID: "b"})
		slow.Store(false)
		answer <- autobatcher.Stats{}
		d.Close()
	})
}

func TestConcurrentUse(t *testing.T) {
	d := newDashboard(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for i := range 8 {
		work.Go(func() {
			l := &listener{header: make(http.Header)}
			d.ServeHTTP(l, httptest.NewRequestWithContext(ctx, "GET", "/autobatcher/events", nil))
		})
		work.Go(func() {
			for n := range 200 {
				d.OnEvent(autobatcher.Event{Name: autobatcher.BatchProgress, BatchID: fmt.Sprint(i, n%7)})
				d.refresh(time.Now().Add(time.Duration(n)*time.Second), true)
			}
		})
	}
	time.AfterFunc(200*time.Millisecond, cancel)
	work.Wait()
	if w := get(d, "GET", "/autobatcher/state"); !strings.Contains(w.Body.String(), `"batch_progress"`) {
		t.Errorf("no batch is shown: %.200s", w.Body)
	}
}

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

// A streamClient is the http.ResponseWriter of an event stream. If blocked is not
// nil, Write blocks until blocked is closed.
type streamClient struct {
	mu      sync.Mutex
	header  http.Header
	status  int
	text    strings.Builder
	ended   bool
	blocked chan struct{}
}

func (c *streamClient) Header() http.Header    { return c.header }
func (c *streamClient) WriteHeader(status int) { c.status = status }
func (c *streamClient) Flush()                 {}

func (c *streamClient) Write(p []byte) (int, error) {
	if c.blocked != nil {
		<-c.blocked
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

// newEvents returns the names of the events since the last call.
func (c *streamClient) newEvents() []string {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for line := range strings.SplitSeq(c.text.String(), "\n") {
		if name, ok := strings.CutPrefix(line, "event: "); ok {
			names = append(names, name)
		}
	}
	c.text.Reset()
	return names
}

func (c *streamClient) hasEnded() bool {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

func openStream(ctx context.Context, d *Dashboard, blocked chan struct{}) *streamClient {
	l := &streamClient{header: make(http.Header), blocked: blocked}
	r := httptest.NewRequestWithContext(ctx, "GET", "/autobatcher/events", nil)
	go func() {
		d.ServeHTTP(l, r)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ended = true
	}()
	return l
}

func expectEvents(t *testing.T, l *streamClient, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, l.newEvents()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestStreamSendsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		l := openStream(t.Context(), d, nil)
		expectEvents(t, l, "chart", "state")

		time.Sleep(9 * time.Second)
		expectEvents(t, l)

		for i := range 1000 {
			d.OnEvent(autobatcher.Event{Name: autobatcher.BatchSubmitted, BatchID: fmt.Sprint(i)})
		}
		expectEvents(t, l)
		time.Sleep(time.Second) // second 10: a sample is due, too
		expectEvents(t, l, "chart", "state")

		d.OnEvent(autobatcher.Event{Name: autobatcher.BatchCompleted, BatchID: "999"})
		time.Sleep(time.Second)
		expectEvents(t, l, "state")
		time.Sleep(8 * time.Second)
		expectEvents(t, l)
	})
}

// TestStreamKeepAlive checks that an unchanged state is sent every keepAlive, because
// the page reconnects after 30 s without a frame.
func TestStreamKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{History: 24 * time.Hour})
		defer d.Close()
		l := openStream(t.Context(), d, nil)
		expectEvents(t, l, "chart", "state")
		for range 5 {
			time.Sleep(keepAlive)
			expectEvents(t, l, "state")
		}
	})
}

func TestViewersShareOneSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		d := New(Options{Stats: func() autobatcher.Stats { return autobatcher.Stats{Answered: calls.Add(1)} }})
		defer d.Close()

		time.Sleep(time.Hour)
		synctest.Wait()
		if n := calls.Swap(0); n != historySamples+1 {
			t.Errorf("Stats was called %d times in an hour without viewers, want %d", n, historySamples+1)
		}

		var viewers []*streamClient
		for range 100 {
			viewers = append(viewers, openStream(t.Context(), d, nil))
		}
		for range 60 {
			time.Sleep(time.Second)
			get(d, "GET", "/autobatcher/state")
		}
		synctest.Wait()
		if n := calls.Load(); n < 60 || n > 61 {
			t.Errorf("Stats was called %d times in a minute, want one call per second", n)
		}
		for i, l := range viewers {
			if n := len(l.newEvents()); n < 60 || l.hasEnded() {
				t.Fatalf("viewer %d got %d events", i, n)
			}
		}
	})
}

func TestSlowViewerIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		blocked := make(chan struct{})
		slow, fast := openStream(t.Context(), d, blocked), openStream(t.Context(), d, nil)
		synctest.Wait()
		for i := range 2 * maxPending {
			d.OnEvent(autobatcher.Event{Name: autobatcher.BatchSubmitted, BatchID: fmt.Sprint(i)})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		d.feed.mu.Lock()
		connected := len(d.feed.viewers)
		d.feed.mu.Unlock()
		if connected != 1 || fast.hasEnded() {
			t.Errorf("%d viewers are connected, want only the fast viewer", connected)
		}
		close(blocked)
		if !slow.hasEnded() {
			t.Error("the slow stream has not ended")
		}
	})
}

// TestStalledConnectionIsClosed checks that a client which stops reading is
// disconnected after writeTimeout.
func TestStalledConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		near, far := net.Pipe()
		listener := make(pipeListener, 1)
		listener <- far
		server := &http.Server{Handler: d}
		go func() { _ = server.Serve(listener) }() // Serve returns when the listener is closed
		defer func() { _ = server.Close() }()
		defer close(listener)

		if _, err := io.WriteString(near, "GET /autobatcher/events HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !d.feed.hasViewers() {
			t.Fatal("the stream was not opened")
		}
		time.Sleep(writeTimeout + time.Second)
		synctest.Wait()
		if d.feed.hasViewers() {
			t.Error("the stream has not ended")
		}
		time.Sleep(writeTimeout)
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

// TestStreamEndsCleanly checks that a stream has a clean end after Close.
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

func TestDisconnectedViewerIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		ctx, cancel := context.WithCancel(t.Context())
		l := openStream(ctx, d, nil)
		synctest.Wait()
		cancel()
		if !l.hasEnded() || d.feed.hasViewers() {
			t.Error("the stream has not ended")
		}
	})
}

func TestMaxViewers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		defer d.Close()
		for range maxViewers {
			openStream(t.Context(), d, nil)
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
		l := openStream(t.Context(), d, nil)
		synctest.Wait()
		d.Close()
		d.Close()
		if !l.hasEnded() {
			t.Error("the stream has not ended")
		}
		d.OnEvent(autobatcher.Event{Name: autobatcher.ClientClosing}) // after Close, OnEvent must not panic or block
	})
}

// TestOnEventDoesNotWaitForStats checks that a blocked Stats does not block OnEvent,
// because OnEvent runs on a goroutine of the Transport.
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
		synctest.Wait() // the request is blocked in Stats
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
			l := &streamClient{header: make(http.Header)}
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

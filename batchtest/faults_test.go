package batchtest_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// onBothTransports runs a test through the in-process transport and through a socket.
func onBothTransports(t *testing.T, opts batchtest.Options, test func(t *testing.T, a *api)) {
	t.Run("in process", func(t *testing.T) { test(t, newAPI(t, opts)) })
	t.Run("socket", func(t *testing.T) {
		s := batchtest.NewServer(opts)
		t.Cleanup(s.Close)
		tr := &http.Transport{}
		t.Cleanup(tr.CloseIdleConnections)
		test(t, &api{t, s, &http.Client{Transport: tr}, "sk-test"})
	})
}

// attempt makes a request that may fail, at either end of the answer.
func (a *api) attempt(req *http.Request) (answer, error) {
	req.Header.Set("Authorization", "Bearer "+a.key)
	res, err := a.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(body)}, err
}

func TestStatusFault(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		a.server.Control(batchtest.OpModels,
			batchtest.Status(503, http.Header{"retry-after": {"7"}}, `{"busy":true}`), batchtest.HTML(502))
		first, second, third := a.get("/models"), a.get("/models"), a.get("/models")
		if first.status != 503 || first.header.Get("Retry-After") != "7" || first.body != `{"busy":true}` {
			t.Errorf("first = %+v", first)
		}
		if second.status != 502 || second.header.Get("Content-Type") != "text/html" || !strings.HasPrefix(second.body, "<html>") {
			t.Errorf("second = %+v", second)
		}
		if third.status != 200 {
			t.Errorf("third = %+v, want the faults to be used up", third)
		}
	})
}

func TestFaultsWaitForTheirOperation(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	a.server.Control(batchtest.OpUpload, batchtest.Status(500, nil, "{}"))
	if got := a.get("/models").status; got != 200 {
		t.Errorf("models = %d: another operation took the fault", got)
	}
	if got := a.tryUpload(chatLines(1)).status; got != 500 {
		t.Errorf("upload = %d, want 500", got)
	}
	a.server.Control(batchtest.OpAny, batchtest.Status(418, nil, "{}"))
	if got := a.get("/batches").status; got != 418 {
		t.Errorf("list = %d, want the fault for any operation", got)
	}
}

func TestFaultMayDecline(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	seen := 0
	a.server.Control(batchtest.OpRetrieve, func(w http.ResponseWriter, _ *http.Request) bool {
		if seen++; seen < 3 {
			return false
		}
		w.WriteHeader(599)
		return true
	})
	id := a.create(chatLines(1))["id"].(string)
	for i, want := range []int{200, 200, 599, 200} {
		if got := a.get("/batches/" + id).status; got != want {
			t.Errorf("retrieve %d = %d, want %d", i, got, want)
		}
	}
}

func TestLostAnswer(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		file := a.upload(chatLines(1))
		a.server.Control(batchtest.OpCreate, batchtest.LoseAnswer())
		req := a.request("POST", "/batches", strings.NewReader(createBody(file, chat, "24h")))
		req.Header.Set("Content-Type", "application/json")
		if res, err := a.attempt(req); err == nil {
			t.Errorf("create = %+v, want an error", res)
		}
		if n := len(a.server.Batches()); n != 1 {
			t.Errorf("%d batches, want the one whose answer was lost", n)
		}
	})
}

func TestReset(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		a.server.Control(batchtest.OpUpload, batchtest.Reset())
		if res, err := a.attempt(a.form("/files", "purpose", "batch", "file", chatLines(1))); err == nil {
			t.Errorf("upload = %+v, want an error", res)
		}
		if n := len(a.server.Uploads()); n != 0 {
			t.Errorf("%d uploads, want none", n)
		}
	})
}

func TestTornAndTruncatedContent(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(_ *testing.T, a *api) {
		b := a.retrieve(a.create(chatLines(500))["id"])
		for _, id := range []any{b["input_file_id"], b["output_file_id"]} {
			a.tearContent("/files/" + id.(string) + "/content")
		}
	})
}

func (a *api) tearContent(path string) {
	a.t.Helper()
	whole := a.get(path).body
	for _, n := range []int{0, 1, 1000, 100_000, len(whole), len(whole) + 1} {
		want := whole[:min(n, len(whole))]
		a.server.Control(batchtest.OpContent, batchtest.Tear(n))
		res, err := a.attempt(a.request("GET", path, nil))
		if err == nil || res.body != want {
			a.t.Errorf("Tear(%d): %d bytes, error %v; want %d bytes and an error", n, len(res.body), err, len(want))
		}
		a.server.Control(batchtest.OpContent, batchtest.Truncate(n))
		res, err = a.attempt(a.request("GET", path, nil))
		if err != nil || res.body != want {
			a.t.Errorf("Truncate(%d): %d bytes, error %v; want %d bytes", n, len(res.body), err, len(want))
		}
	}
}

func TestDelayAndHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{})
		start := time.Now()
		a.server.Control(batchtest.OpModels, batchtest.Delay(3*time.Second), batchtest.Hang())
		if got := a.get("/models").status; got != 200 || time.Since(start) != 3*time.Second {
			t.Errorf("delayed: %d after %v, want 200 after 3s", got, time.Since(start))
		}
		a.client.Timeout = time.Minute
		start = time.Now()
		if res, err := a.attempt(a.request("GET", "/models", nil)); err == nil || time.Since(start) != time.Minute {
			t.Errorf("hung: %+v, %v after %v; want an error after 1m", res, err, time.Since(start))
		}
		if got := a.get("/models").status; got != 200 {
			t.Errorf("afterwards: %d", got)
		}
	})
}

func TestKeptFaultIsAnOutage(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	stop := a.server.Keep(batchtest.OpAny, batchtest.Status(503, nil, "{}"))
	for _, path := range []string{"/models", "/batches", "/models"} {
		if got := a.get(path).status; got != 503 {
			t.Errorf("%s = %d, want 503", path, got)
		}
	}
	stop()
	stop()
	if got := a.get("/models").status; got != 200 {
		t.Errorf("after the outage: %d, want 200", got)
	}
}

func TestRateLimitFault(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.Doubleword()})
	a.server.Control(batchtest.OpModels, batchtest.RateLimit(90*time.Second))
	res := a.get("/models")
	if res.status != 429 || res.header.Get("Retry-After") != "90" || res.json(t)["error"] != "too_many_requests" {
		t.Errorf("got %+v", res)
	}
}

func TestAFaultThatHangsDoesNotTakeTwoRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{})
		a.server.Control(batchtest.OpModels, batchtest.Delay(time.Hour))
		done := make(chan error)
		go func() {
			_, err := a.attempt(a.request("GET", "/models", nil))
			done <- err
		}()
		synctest.Wait()
		start := time.Now()
		if got := a.get("/models").status; got != 200 || time.Since(start) != 0 {
			t.Errorf("second request: %d after %v, want 200 at once", got, time.Since(start))
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestCloseEndsHangingRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{
			Logf:   t.Errorf,
			Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Never: true} },
		})
		a.server.Control(batchtest.OpModels, batchtest.Hang())
		call := a.request("POST", "/chat/completions", strings.NewReader(`{"model":"m"}`))
		call.Header.Set("Content-Type", "application/json")
		done := make(chan error)
		for _, req := range []*http.Request{a.request("GET", "/models", nil), call} {
			go func() {
				_, err := a.attempt(req)
				done <- err
			}()
		}
		synctest.Wait()
		go a.server.Close()
		for range 2 {
			if err := <-done; err == nil {
				t.Error("a hanging request survived Close")
			}
		}
	})
}

func TestCloseNamesWhatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged []string
		s := batchtest.New(batchtest.Options{Logf: func(format string, args ...any) {
			logged = append(logged, strings.TrimSpace(strings.ReplaceAll(format, "%s", args[0].(string))))
		}})
		s.Control(batchtest.OpModels, func(_ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done()
			return true
		})
		a := &api{t, s, s.Client(), "sk-test"}
		done := make(chan error)
		go func() {
			_, err := a.attempt(a.request("GET", "/models", nil))
			done <- err
		}()
		synctest.Wait()
		start := time.Now()
		s.Close()
		if got := time.Since(start); got != 5*time.Second {
			t.Errorf("Close took %v, want 5s", got)
		}
		if err := <-done; err == nil {
			t.Error("the stuck request was not cut off")
		}
		want := "batchtest: Close waited 5 seconds for GET /v1/models"
		if len(logged) != 1 || logged[0] != want {
			t.Errorf("logged %q, want %q", logged, want)
		}
		if _, err := a.attempt(a.request("GET", "/models", nil)); err == nil {
			t.Error("a closed server answers")
		}
	})
}

func TestHandlerPanicBreaksTheConnection(t *testing.T) {
	logged := false
	a := newAPI(t, batchtest.Options{
		Answer: func(batchtest.Line) batchtest.Outcome { panic(errors.New("answer is broken")) },
		Logf:   func(string, ...any) { logged = true },
	})
	req := a.request("POST", "/chat/completions", strings.NewReader(`{"model":"m","messages":[]}`))
	req.Header.Set("Content-Type", "application/json")
	if _, err := a.attempt(req); err == nil || !logged {
		t.Errorf("error %v, logged %v; want both", err, logged)
	}
}

func TestUnavailableFault(t *testing.T) {
	for name, tt := range map[string]struct {
		behavior batchtest.Behavior
		body     string
	}{
		"OpenAI":     {batchtest.OpenAI(), `"type":"server_error"`},
		"Doubleword": {batchtest.Doubleword(), `"error":"service_unavailable"`},
	} {
		a := newAPI(t, batchtest.Options{Behavior: tt.behavior})
		path := "/batches/" + a.create(chatLines(1))["id"].(string)
		a.server.Control(batchtest.OpRetrieve, batchtest.Unavailable(time.Hour), batchtest.Unavailable(0))
		first, second, third := a.get(path), a.get(path), a.get(path)
		if first.status != 503 || first.header.Get("Retry-After") != "3600" || !strings.Contains(first.body, tt.body) {
			t.Errorf("%s: first = %+v", name, first)
		}
		if second.status != 503 || second.header.Get("Retry-After") != "" {
			t.Errorf("%s: second = %+v", name, second)
		}
		if third.status != 200 {
			t.Errorf("%s: third = %d, want 200", name, third.status)
		}
	}
}

// TestPollsThatNeverSucceed keeps one operation out of order and no other.
func TestPollsThatNeverSucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, batchtest.Options{})
		id := a.create(chatLines(1))["id"].(string)
		a.server.Keep(batchtest.OpRetrieve, batchtest.Unavailable(0))
		for range 14 {
			time.Sleep(24 * time.Hour)
			if got := a.get("/batches/" + id).status; got != 503 {
				t.Fatalf("poll: %d, want 503", got)
			}
		}
		if got := a.ids("/batches"); len(got) != 1 {
			t.Errorf("list = %v, want the batch", got)
		}
	})
}

// TestRedirect checks the answers of a server that redirects uploads and creates.
func TestRedirect(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		a.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		secure := strings.Replace(a.server.URL, "http://", "https://", 1)
		a.server.Control(batchtest.OpUpload, batchtest.Redirect(301, ""))
		if got := a.tryUpload(chatLines(1)); got.status != 301 || got.header.Get("Location") != secure+"/files" {
			t.Errorf("upload: %d, Location %q; want 301, %q", got.status, got.header.Get("Location"), secure+"/files")
		}
		a.server.Control(batchtest.OpCreate, batchtest.Redirect(308, "https://new.example/v1/batches"))
		if got := a.post("/batches", "{}"); got.status != 308 || got.header.Get("Location") != "https://new.example/v1/batches" {
			t.Errorf("create: %d, Location %q", got.status, got.header.Get("Location"))
		}
		if len(a.server.Uploads())+len(a.server.Batches()) != 0 {
			t.Error("a redirected request did its work")
		}
	})
}

// TestLimitBody puts a reverse proxy with a limit in front of the provider.
func TestLimitBody(t *testing.T) {
	onBothTransports(t, batchtest.Options{}, func(t *testing.T, a *api) {
		stop := a.server.Keep(batchtest.OpAny, batchtest.LimitBody(1<<20))
		big := a.tryUpload(strings.Repeat(chatLine("a", strings.Repeat("x", 60_000)), 30))
		if big.status != 413 || big.header.Get("Content-Type") != "text/html" || !strings.Contains(big.body, "Request Entity Too Large") {
			t.Errorf("large upload: %d %s %s; want a page with 413", big.status, big.header.Get("Content-Type"), big.body)
		}
		small := chatLine("a", strings.Repeat("x", 60_000))
		if got := a.tryUpload(small); got.status != 200 {
			t.Errorf("small upload: %d %s", got.status, got.body)
		}
		if got := a.get("/batches").status; got != 200 {
			t.Errorf("list: %d", got)
		}
		if ups := a.server.Uploads(); len(ups) != 1 || string(ups[0].Content) != small {
			t.Errorf("%d uploads, want the small one, whole", len(ups))
		}
		stop()
		if got := a.tryUpload(chatLine("a", strings.Repeat("x", 2<<20))); got.status != 200 {
			t.Errorf("large upload without the proxy: %d", got.status)
		}
	})
}

// TestLimitBodyAtTheLimit checks the exact size, with and without a length.
func TestLimitBodyAtTheLimit(t *testing.T) {
	a := newAPI(t, batchtest.Options{})
	a.server.Keep(batchtest.OpRealtime, batchtest.LimitBody(15))
	for body, want := range map[string]int{`{"model":"mmm"}`: 200, `{"model":"mmmm"}`: 413} {
		for _, reader := range []io.Reader{strings.NewReader(body), io.MultiReader(strings.NewReader(body))} {
			req := a.request("POST", "/chat/completions", reader)
			req.Header.Set("Content-Type", "application/json")
			if got := a.do(req).status; got != want {
				t.Errorf("%d bytes: %d, want %d", len(body), got, want)
			}
		}
	}
}

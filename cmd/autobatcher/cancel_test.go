//go:build unix

package main

import (
	"errors"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	api "github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/provider"
)

// A batch with waiting callers is cancelled only with --force. The callers get an
// error from the serve process that polls the batch.
func TestCancelByForce(t *testing.T) {
	s := step{provider: "openai", server: batchtest.Options{Turnaround: time.Hour}, flags: []string{"--resubmits", "-1"}}
	w := newWorld(t, s, filepath.Join(t.TempDir(), "journal.db"))
	p := w.serve(freePort(t), "0")
	answer := make(chan error, 1)
	go func() {
		_, _, err := new(callers).callOnce(p.url, []byte(`{"model":"m","messages":[{"role":"user","content":"hi"}]}`))
		answer <- err
	}()
	w.until(func() bool { return strings.Contains(p.log.String(), "batch submitted") })
	id := w.srv.Batches()[0].ID
	cancel := func(flags ...string) (string, error) {
		args := append([]string{"batches", "cancel", "--base-url", w.srv.URL, "--api-key", "key", "--journal", w.journal}, flags...)
		out, err := exec.Command("autobatcher", args...).CombinedOutput()
		return string(out), err
	}
	if out, err := cancel(id); err == nil || !strings.Contains(out, "callers of a running process wait for 1 line") {
		t.Errorf("without --force: %v, %s", err, out)
	}
	if w.srv.Batches()[0].CancelRequested {
		t.Fatal("the batch was cancelled without --force")
	}
	if out, err := cancel("--force", id); err != nil || out != "cancelling "+id+"\n" {
		t.Errorf("with --force: %v, %s", err, out)
	}
	if err := <-answer; err == nil || !strings.Contains(err.Error(), "batch_cancelled") {
		t.Errorf("the caller got: %v", err)
	}
	w.checkJournal()
	p.end()
}

// A call at the flex tier that runs in the background is a batch in the journal, and is
// cancelled like a batch.
func TestCancelFlex(t *testing.T) {
	s := step{provider: "openai", server: batchtest.Options{FlexDelay: time.Hour}, flags: []string{"--mode", "flex"}}
	w := newWorld(t, s, filepath.Join(t.TempDir(), "journal.db"))
	p := w.serve(freePort(t), "0")
	go func() { // the answer is lost with the process
		res, err := http.Post(p.url+"/responses", "application/json", strings.NewReader(`{"model":"m","input":"hi"}`))
		if err == nil {
			res.Body.Close()
		}
	}()
	w.until(func() bool { return strings.Contains(p.log.String(), "batch submitted") && len(w.srv.Responses()) == 1 })
	p.kill()
	out, err := exec.Command("autobatcher", "batches", "cancel", "--base-url", w.srv.URL, "--provider", "openai", "--api-key", "key", "--journal", w.journal, "--force", w.srv.Responses()[0].ID).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "cancelling resp_") {
		t.Errorf("%v, %s", err, out)
	}
	if !w.srv.Responses()[0].CancelRequested {
		t.Error("the provider was not asked to cancel the response")
	}
}

// An address is that of the last request. It answers none.
type address string

func (a *address) RoundTrip(r *http.Request) (*http.Response, error) {
	*a = address(r.URL.String())
	return nil, errors.New("no answer")
}

// A path of the base URL that is escaped stays escaped.
func TestEscapedBaseURL(t *testing.T) {
	u, err := url.Parse("https://a.example/x%2Fy/v1/?a=b")
	if err != nil {
		t.Fatal(err)
	}
	asked := new(address)
	_, _ = upstream{url: u, profile: provider.Generic()}.client("key", asked).Status(t.Context(), []api.Handle{{BatchID: "b"}})
	if want := "https://a.example/x%2Fy/v1/batches/b"; string(*asked) != want {
		t.Errorf("asked %s, want %s", *asked, want)
	}
}

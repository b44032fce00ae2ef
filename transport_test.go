package autobatcher_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// A baseFunc is an Options.Base made of a function.
type baseFunc func(*http.Request) (*http.Response, error)

func (f baseFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// A trial is a Transport in front of a server of its own, in virtual time.
type trial struct {
	*testing.T
	srv   *batchtest.Server
	tr    *autobatcher.Transport
	begun time.Time
}

// try runs f in a subtest of that name. Unless Options.Resubmits says more, calls are
// not resubmitted.
func try(t *testing.T, name string, server batchtest.Options, o autobatcher.Options, f func(t *trial)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := &trial{T: t, srv: batchtest.New(server), begun: time.Now()}
			o := o
			if o.Base == nil {
				o.Base = x.srv.Transport()
			}
			if o.Resubmits == 0 {
				o.Resubmits = -1
			}
			var err error
			o.QuietAfter = cmp.Or(o.QuietAfter, -1) // the times below are those of whole windows
			if x.tr, err = autobatcher.New(o); err != nil {
				t.Fatal(err)
			}
			defer x.tr.Close()
			f(x)
		})
	})
}

// An answer is how a call ended, and how long after the beginning of its trial.
type answer struct {
	res  *http.Response
	body string
	err  error
	at   time.Duration
}

// call makes a call to a path below the server's base URL. Header holds names and
// values in turn.
func (t *trial) call(path, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, t.srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer key")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	var a answer
	if a.res, a.err = t.tr.RoundTrip(req); a.err == nil {
		text, err := io.ReadAll(a.res.Body)
		a.body, a.err = string(text), err
		a.res.Body.Close()
	}
	a.at = time.Since(t.begun)
	return a
}

// start makes the call in the background, and returns when the call is queued.
func (t *trial) start(path, body string, header ...string) <-chan answer {
	t.Helper()
	ended := make(chan answer, 1)
	go func() { ended <- t.call(path, body, header...) }()
	synctest.Wait()
	return ended
}

func chat(text string) string {
	return `{"model":"m","messages":[{"role":"user","content":"` + text + `"}]}`
}

func TestNewRefusesOptionsOutOfBounds(t *testing.T) {
	refused, err := provider.ByName("xai")
	if err != nil {
		t.Fatal(err)
	}
	openAI := provider.OpenAI()
	many := map[string]string{}
	for i := range 17 {
		many[fmt.Sprint(i)] = "x"
	}
	tests := []struct {
		field, bound string // what the error names
		options      autobatcher.Options
	}{
		{"BatchSize", "1", autobatcher.Options{BatchSize: -1}},
		{"BatchWindow", "negative", autobatcher.Options{BatchWindow: -1}},
		{"BatchBytes", "negative", autobatcher.Options{BatchBytes: -1}},
		{"PollInterval", "negative", autobatcher.Options{PollInterval: -1}},
		{"EscalateMargin", "negative", autobatcher.Options{EscalateMargin: -1}},
		{"Escalate", "never, failed or deadline", autobatcher.Options{Escalate: "always"}},
		{"Files", "keep, expire or delete", autobatcher.Options{Files: "Keep"}},
		{"Files", "keep, expire or delete", autobatcher.Options{Files: "burn"}},
		{"Provider", "xai", autobatcher.Options{Provider: &refused}},
		{"Provider", "", autobatcher.Options{Provider: &provider.Profile{}}},
		{"CompletionWindow", "24h", autobatcher.Options{Provider: &openAI, CompletionWindow: "1h"}},
		{"Metadata", "16", autobatcher.Options{Provider: &openAI, Metadata: many}},
		{"Metadata", "64", autobatcher.Options{Provider: &openAI, Metadata: map[string]string{strings.Repeat("k", 65): "x"}}},
		{"Metadata", "512", autobatcher.Options{Provider: &openAI, Metadata: map[string]string{"k": strings.Repeat("é", 513)}}},
	}
	for _, test := range tests {
		tr, err := autobatcher.New(test.options)
		if err == nil {
			tr.Close()
			t.Errorf("%s: New accepts a value out of bounds (%s)", test.field, test.bound)
			continue
		}
		if text := err.Error(); !strings.Contains(text, "Options."+test.field) || !strings.Contains(text, test.bound) {
			t.Errorf("error %q; want it to name the field %s and the bound %s", text, test.field, test.bound)
		}
	}
}

func TestNewAcceptsOptionsInBounds(t *testing.T) {
	for _, o := range []autobatcher.Options{
		{},
		{Files: autobatcher.FilesKeep},
		{Files: autobatcher.FilesExpire},
		{Files: autobatcher.FilesDelete},
		{Escalate: autobatcher.EscalateDeadline, EscalateLimit: -1},
		{AbandonAfter: -1, KeepFor: -1, Resubmits: -1},
	} {
		tr, err := autobatcher.New(o)
		if err != nil {
			t.Errorf("%+v: %v", o, err)
			continue
		}
		tr.Close()
	}
}

// New copies the metadata.
func TestMetadataIsCopied(t *testing.T) {
	metadata := map[string]string{"a": "1"}
	try(t, "", batchtest.Options{}, autobatcher.Options{Metadata: metadata}, func(t *trial) {
		metadata["a"] = "2"
		t.call("/chat/completions", chat("text"))
		if got := t.srv.Batches()[0].Metadata["a"]; got != "1" {
			t.Errorf("metadata %q; want the value at the time of New", got)
		}
	})
}

type idleCloser struct{ closed int }

func (c *idleCloser) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("unused")
}
func (c *idleCloser) CloseIdleConnections() { c.closed++ }

func TestCloseIdleConnections(t *testing.T) {
	base := &idleCloser{}
	tr, err := autobatcher.New(autobatcher.Options{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if tr.Client().CloseIdleConnections(); base.closed != 1 {
		t.Errorf("Options.Base was asked %d times to close its connections, want once", base.closed)
	}
}

// A Transport works in any http.Client.
func TestClients(t *testing.T) {
	var _ http.RoundTripper = (*autobatcher.Transport)(nil)
	get := func(t *trial, c *http.Client) (status int, err error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, t.srv.URL+"/chat/completions", strings.NewReader(chat("text")))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer key")
		res, err := c.Do(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return res.StatusCode, err
	}
	try(t, "its own", batchtest.Options{}, autobatcher.Options{}, func(t *trial) {
		if status, err := get(t, t.tr.Client()); status != 200 || err != nil || t.tr.Client().Timeout != 0 {
			t.Errorf("status %d, error %v, timeout %v; want 200 and no timeout", status, err, t.tr.Client().Timeout)
		}
	})
	try(t, "with a timeout", batchtest.Options{Turnaround: time.Hour}, autobatcher.Options{}, func(t *trial) {
		_, err := get(t, &http.Client{Transport: t.tr, Timeout: 30 * time.Second})
		var timeout interface{ Timeout() bool }
		if at := time.Since(t.begun); !errors.As(err, &timeout) || !timeout.Timeout() || at != 30*time.Second {
			t.Errorf("%v at %v; want a timeout at 30s", err, at)
		}
	})
	try(t, "beside a client with a timeout", batchtest.Options{}, autobatcher.Options{}, func(t *trial) {
		timedOut := make(chan error, 1)
		go func() {
			_, err := get(t, &http.Client{Transport: t.tr, Timeout: 12 * time.Second})
			timedOut <- err
		}()
		synctest.Wait()
		if a := t.call("/chat/completions", chat("other")); a.err != nil || a.res.StatusCode != 200 {
			t.Errorf("%v, %v; the end of the first call is not the end of the batch", a.res, a.err)
		}
		if err := <-timedOut; err == nil {
			t.Error("the first call did not time out")
		}
	})
}

// Close and Shutdown may be called any number of times; afterwards every call fails
// with ErrClosed.
func TestAClosedTransport(t *testing.T) {
	for name, end := range map[string]func(*autobatcher.Transport) error{
		"Close":    (*autobatcher.Transport).Close,
		"Shutdown": func(tr *autobatcher.Transport) error { return tr.Shutdown(context.Background()) },
	} {
		try(t, name, batchtest.Options{}, autobatcher.Options{}, func(t *trial) {
			for range 3 {
				if err := end(t.tr); err != nil {
					t.Error(err)
				}
			}
			if a := t.call("/chat/completions", chat("text")); !errors.Is(a.err, autobatcher.ErrClosed) || a.at != 0 {
				t.Errorf("error %v at %v; want ErrClosed at once", a.err, a.at)
			}
		})
	}
}

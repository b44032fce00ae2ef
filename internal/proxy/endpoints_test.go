package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/provider"
)

// TestRoutesOfTheProfile checks that the proxy holds exactly the calls that the profile
// batches, and counts each as a model call.
func TestRoutesOfTheProfile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		metrics := prometheus.NewRegistry()
		client, p, upstream := newBatchingProxy(t, batchtest.Options{}, proxy.Options{Profile: provider.OpenAI(), Metrics: metrics})
		routes := provider.OpenAI().Suffixes()
		for _, suffix := range routes {
			res := post(t, client, "/v1"+suffix, `{"model":"m","prompt":"a","input":"a","messages":[]}`)
			if body := readAll(t, res); res.StatusCode != 200 || !strings.HasPrefix(res.Header.Get("Autobatcher-Batch-Id"), "batch_") {
				t.Errorf("%s: %s %v %s", suffix, res.Status, res.Header, body)
			}
		}
		if n := len(upstream.Batches()); n != len(routes) || p.Usage().Answered != int64(n) {
			t.Errorf("%d batches and %+v for %d routes", n, p.Usage(), len(routes))
		}
		families, err := metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		if text := fmt.Sprint(families); !strings.Contains(text, `"/images/generations"`) || !strings.Contains(text, `"/moderations"`) {
			t.Errorf("the metrics lack an endpoint: %s", text)
		}
	})
}

// TestNearMissesOfTheProfile checks that a path which resembles a route of the profile is
// refused, and that other endpoints pass.
func TestNearMissesOfTheProfile(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/completions/":          "/v1/completions",
		"/v1/Completion":            "/v1/completions",
		"/v1/engines/m/completions": "/v1/completions",
		"/v1/chat/completions/":     "/v1/chat/completions",
		"/v1/chat/completion":       "/v1/chat/completions",
		"/v1/moderation":            "/v1/moderations",
		"/v1/moderations;x":         "/v1/moderations",
		"/v1/images/generations/":   "/v1/images/generations",
		"/v1/image/generation":      "/v1/images/generations",
		"/v1/images%2Fgenerations":  "/v1/images/generations",
		"/v1/imagesgenerations":     "/v1/images/generations",
		"/v1/fim/completions":       "",
		"/v1/agents/completions":    "",
		"/v1/images/edits/":         "/v1/images/edits",
		"/v1/images/variations":     "",
		"/v1/audio/speech":          "",
	} {
		upstream, calls := counted()
		res := send(t, newProxy(t, proxy.Options{Transport: upstream, Profile: provider.OpenAI()}), "POST", path)
		if want == "" {
			if res.StatusCode != 200 || calls.Load() != 1 {
				t.Errorf("%s: %s, %d calls; want it passed on", path, res.Status, calls.Load())
			}
			continue
		}
		if code, message := apiError(t, res); res.StatusCode != 404 || code != "unknown_route" || !strings.Contains(message, "POST "+want+",") || calls.Load() > 0 {
			t.Errorf("%s: %s %s, want the route %s", path, res.Status, message, want)
		}
	}
}

// TestForms checks that a form passes through a proxy without a place in the queue and
// without the limit on a body, and is refused where clients may not choose the price.
func TestForms(t *testing.T) {
	const size = 3 << 20
	form := []string{"Content-Type", "multipart/form-data; boundary=x"}
	body := bytes.Repeat([]byte("x"), size)
	for _, test := range []struct {
		refuse bool
		length int
		want   int
	}{{false, size, 200}, {true, 10, 400}} {
		received := 0
		upstream := transport(func(r *http.Request) (*http.Response, error) {
			text, err := io.ReadAll(r.Body)
			received = len(text)
			r.Body.Close()
			if err != nil {
				return nil, err
			}
			return responseTo(r, 200, "application/json", `{}`), nil
		})
		o := proxy.Options{Profile: provider.OpenAI(), MaxBody: 1 << 20, RefuseClientHeaders: test.refuse}
		o.Transport = newTransport(t, upstream, o.Profile)
		client := serve(t, newProxy(t, o))
		res := post(t, client, "/v1/images/generations", string(body[:test.length]), form...)
		text := readAll(t, res)
		if res.StatusCode != test.want || !test.refuse && received != size || test.refuse && (received > 0 || gjson.Get(text, "error.code").Str != "multipart_closed") {
			t.Errorf("refuse %v: %s %s, %d bytes arrived", test.refuse, res.Status, text, received)
		}
	}
}

// TestLateStreamOfACompletion checks that known clients get events of a text completion
// while a call waits, and that the answer continues these events.
func TestLateStreamOfACompletion(t *testing.T) {
	for _, test := range []struct {
		name   string
		header []string
		events bool
	}{
		{"OpenAI's SDK", []string{"X-Stainless-Lang", "python"}, true},
		{"go-openai", goOpenAIHeaders, true},
		{"unknown client", nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, _, _ := newBatchingProxy(t, slowServer, proxy.Options{Profile: provider.OpenAI()})
				res := post(t, client, "/v1/completions", `{"model":"m","stream":true,"prompt":"Why?"}`, test.header...)
				pieces, err := readTimed(t, time.Now(), res)
				if err != nil {
					t.Fatal(err)
				}
				if early := strings.Contains(pieces[3], "data: {"); early != test.events {
					t.Errorf("the fourth piece is %q", pieces[3])
				}
				var stream strings.Builder
				for _, piece := range pieces {
					_, text, _ := strings.Cut(piece, " ")
					stream.WriteString(text)
				}
				data, text := eventData(stream.String()), ""
				for _, chunk := range data[:len(data)-1] {
					if gjson.Get(chunk, "object").Str != "text_completion" || gjson.Get(chunk, "id").Str != gjson.Get(data[0], "id").Str || gjson.Get(chunk, "created").Int() != gjson.Get(data[0], "created").Int() {
						t.Fatalf("chunk %s after %s", chunk, data[0])
					}
					text += gjson.Get(chunk, "choices.0.text").Str
				}
				if text != "You said: Why?" || data[len(data)-1] != "[DONE]" {
					t.Errorf("text %q, last event %s", text, data[len(data)-1])
				}
			})
		})
	}
}

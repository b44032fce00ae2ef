package proxy_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
)

// operatorKey has characters that JSON and URLs escape.
const operatorKey = "sk-operator-Zx81kQ/7+pLm3vB&9wTy2"

// leaks reports whether text holds eight characters in a row of the secret part of
// the operator's key.
func leaks(text string) bool {
	text = strings.NewReplacer(`\/`, "/", "%2F", "/", "%2B", "+", `\u0026`, "&", "%26", "&").Replace(text)
	for i := len("sk-operator-"); i+8 <= len(operatorKey); i++ {
		if strings.Contains(text, operatorKey[i:i+8]) {
			return true
		}
	}
	return false
}

// echoes are error messages that quote the key.
func echoes() map[string]string {
	inJSON, _ := json.Marshal(operatorKey)
	twice, _ := json.Marshal(string(inJSON))
	return map[string]string{
		"plain": "invalid key Bearer " + operatorKey, "in JSON": string(inJSON), "in JSON in JSON": string(twice),
		"slashes": strings.ReplaceAll(operatorKey, "/", `\/`), "URL": "?key=sk-operator-Zx81kQ%2F7%2BpLm3vB%269wTy2",
		"begins": operatorKey[:24] + "…", "ends": "…" + operatorKey[16:], "middle": operatorKey[14:26],
	}
}

// TestAnswersHideTheKey checks that no answer has the operator's key, where the
// provider repeats the key: in errors and successes, held or passed through, in
// bodies of all forms, in headers, and after heartbeats.
func TestAnswersHideTheKey(t *testing.T) {
	for name, echo := range echoes() {
		message, _ := json.Marshal(map[string]any{"error": map[string]string{"message": echo, "type": "t"}})
		for _, test := range []struct {
			name, path, contentType, body string
			status                        int
			delay                         time.Duration
		}{
			{"held error", "/v1/embeddings", "application/json", string(message), 400, 0},
			{"error after heartbeats", "/v1/embeddings", "application/json", string(message), 400, time.Hour},
			{"stream after heartbeats", "/v1/chat/completions", "application/json", string(message), 400, time.Hour},
			{"passed error", "/v1/moderations", "application/json", string(message), 401, 0},
			{"error page", "/v1/moderations", "text/plain", echo, 502, 0},
			{"error stream", "/v1/moderations", "text/event-stream", "data: " + string(message) + "\n\n", 400, 0},
			{"long error", "/v1/moderations", "application/json", strings.Repeat(" ", 70_000) + string(message), 400, 0},
		} {
			t.Run(name+", "+test.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newProxy(t, proxy.Options{APIKey: operatorKey, Transport: transport(func(r *http.Request) (*http.Response, error) {
						res, err := respondAfter(test.delay, test.status, test.contentType, test.body)(r)
						if err == nil {
							res.Header.Set("X-Debug", echo)
						}
						return res, err
					})})
					body := `{"model":"m"}`
					if strings.HasPrefix(test.name, "stream") {
						body = `{"model":"m","stream":true}`
					}
					res := post(t, serve(t, p), test.path, body)
					got, err := io.ReadAll(res.Body)
					if test.delay == 0 && (err != nil || res.StatusCode != test.status) {
						t.Errorf("%s, %v", res.Status, err)
					}
					if test.contentType == "application/json" && test.delay == 0 && (!json.Valid(got) || len(got) != len(test.body)) {
						t.Errorf("the body is not valid any more: %s", got)
					}
					if leaks(string(got)) || leaks(fmt.Sprint(res.Header)) {
						t.Errorf("%v\n%s", res.Header, got)
					}
				})
			})
		}
	}
}

// TestSuccessesHideTheKey checks that also a success does not show the key, and that
// other bytes do not change.
func TestSuccessesHideTheKey(t *testing.T) {
	body := `{"seen":"` + strings.ReplaceAll(operatorKey, "&", `\u0026`) + `","text":"sk-operator-"}`
	want := `{"seen":"` + strings.Repeat("*", len(operatorKey)+5) + `","text":"sk-operator-"}`
	for _, path := range []string{"/v1/embeddings", "/v1/moderations"} {
		for _, delay := range []time.Duration{0, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				p := newProxy(t, proxy.Options{APIKey: operatorKey, Transport: respondAfter(delay, 200, "application/json", body)})
				if got := strings.TrimSpace(readAll(t, post(t, serve(t, p), path, `{}`))); got != want {
					t.Errorf("%s after %v: %s", path, delay, got)
				}
			})
		}
	}
}

// TestCompressedErrors checks that an error that cannot be searched is replaced, and
// that the proxy does not ask for compression.
func TestCompressedErrors(t *testing.T) {
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	io.WriteString(w, operatorKey)
	w.Close()
	p := newProxy(t, proxy.Options{APIKey: operatorKey, Transport: transport(func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("Accept-Encoding: %s", r.Header.Get("Accept-Encoding"))
		}
		res := responseTo(r, 401, "application/json", zipped.String())
		res.Status = "401 Unauthorized"
		res.Header.Set("Content-Encoding", "gzip")
		return res, wait(r)
	})})
	res := post(t, serve(t, p), "/v1/moderations", `{}`, "Accept-Encoding", "gzip")
	if code, message := apiError(t, res); res.StatusCode != 401 || code != "upstream_error" || message != "the upstream answered 401 Unauthorized" {
		t.Errorf("%s %s %s", res.Status, code, message)
	}
}

// TestErrorsHideTheKey checks errors of the proxy itself that quote the upstream, and
// the log.
func TestErrorsHideTheKey(t *testing.T) {
	var log bytes.Buffer
	p := newProxy(t, proxy.Options{
		APIKey: operatorKey, Upstream: parse(t, "https://u.test/v1?subscription-key=0123456789abcdefghij"), Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Transport: failAfter(0, errors.New("proxyconnect: "+operatorKey+" 0123456789abcdefghij")),
	})
	for _, path := range []string{"/v1/embeddings", "/v1/moderations"} {
		if _, message := apiError(t, post(t, serve(t, p), path, `{}`)); leaks(message) || strings.Contains(message, "0123456789") {
			t.Errorf("%s: %s", path, message)
		}
	}
	if leaks(log.String()) || strings.Contains(log.String(), "0123456789") {
		t.Errorf("the log has the key: %s", &log)
	}
}

// TestLinesHideTheKey checks an error that the provider wrote into a result file, and
// a batch that the provider refused.
func TestLinesHideTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body, _ := json.Marshal(map[string]any{"error": map[string]string{"message": "bad key " + operatorKey, "type": "t"}})
		server := batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 401, Body: body} }}
		client, _, _ := newBatchingProxy(t, server, proxy.Options{APIKey: operatorKey})
		res := post(t, client, "/v1/embeddings", `{"model":"m","input":"a"}`)
		if got := readAll(t, res); res.StatusCode != 401 || leaks(got) || !strings.Contains(got, "bad key ***") {
			t.Errorf("%s %s", res.Status, got)
		}
	})
}

// TestTrailersHideTheKey checks trailers, announced or not, of a held and of a passed
// answer, and the headers of informational statuses.
func TestTrailersHideTheKey(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Link", operatorKey)
		h.Set("Access-Control-Allow-Origin", "*")
		w.WriteHeader(http.StatusEarlyHints)
		clear(h)
		h.Set("Trailer", "X-Announced")
		io.WriteString(w, "text")
		http.NewResponseController(w).Flush()
		h.Set("X-Announced", "Bearer "+operatorKey)
		if r.URL.Query().Has("unannounced") {
			h.Set(http.TrailerPrefix+"X-Unannounced", operatorKey)
			h.Set(http.TrailerPrefix+"Access-Control-Allow-Origin", "*")
		}
	}))
	defer upstream.Close()
	p := newProxy(t, proxy.Options{APIKey: operatorKey, Upstream: parse(t, upstream.URL), Transport: http.DefaultTransport})
	for _, path := range []string{"/v1/models", "/v1/models?unannounced"} {
		client := serve(t, p)
		var hints int
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			hints++
			if len(h) > 0 {
				t.Errorf("%s: headers of an informational status: %v", path, h)
			}
			return nil
		}})
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy"+path, http.NoBody)
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, res); got != "text" || hints != 1 {
			t.Errorf("%s: %q, %d informational statuses", path, got, hints)
		}
		if leaks(fmt.Sprint(res.Trailer)) || res.Trailer.Get("Access-Control-Allow-Origin") != "" || res.Trailer.Get("X-Announced") == "" {
			t.Errorf("%s: trailers %v", path, res.Trailer)
		}
	}
}

// TestLateTrailersHideTheKey checks the trailers of a late answer.
func TestLateTrailersHideTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, proxy.Options{APIKey: operatorKey, Transport: transport(func(r *http.Request) (*http.Response, error) {
			res, err := respondAfter(time.Hour, 200, "application/json", `{}`)(r)
			if err == nil {
				res.Header.Set("X-Request-Id", "req "+operatorKey)
			}
			return res, err
		})})
		res := post(t, serve(t, p), "/v1/embeddings", `{}`)
		readAll(t, res)
		if got := res.Trailer.Get("X-Request-Id"); leaks(got) || !strings.HasPrefix(got, "req **") {
			t.Errorf("%q", got)
		}
	})
}

// TestCookies checks that cookies pass the proxy in neither direction.
func TestCookies(t *testing.T) {
	for _, forward := range []bool{false, true} {
		for _, path := range []string{"/v1/embeddings", "/v1/moderations"} {
			p := newProxy(t, proxy.Options{ForwardKey: forward, Transport: transport(func(r *http.Request) (*http.Response, error) {
				if got := r.Header.Get("Cookie"); got != "" {
					t.Errorf("forwarded key: %t, %s: the upstream got the cookie %q", forward, path, got)
				}
				res, err := respondNow(r)
				res.Header.Set("Set-Cookie", "session=operator")
				return res, err
			})})
			res := post(t, serve(t, p), path, `{}`, "Authorization", "Bearer k", "Cookie", "session=other-server")
			readAll(t, res)
			if got := res.Header.Get("Set-Cookie"); got != "" {
				t.Errorf("forwarded key: %t, %s: the client got the cookie %q", forward, path, got)
			}
		}
	}
}

// TestRequestTrailers checks that trailers of a request, which may name headers that
// clients may not send, do not reach the upstream.
func TestRequestTrailers(t *testing.T) {
	var got http.Header
	upstream := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got = r.Trailer
	}))
	defer upstream.Close()
	conn := dial(t, newProxy(t, proxy.Options{Upstream: parse(t, upstream.URL), Transport: http.DefaultTransport}))
	io.WriteString(conn, "POST /v1/moderations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Http-Method-Override\r\n\r\n2\r\n{}\r\n0\r\nX-Http-Method-Override: DELETE\r\n\r\n")
	if res := readResponse(t, conn); res.StatusCode != 200 || len(got) > 0 {
		t.Errorf("%s, trailers %v", res.Status, got)
	}
}

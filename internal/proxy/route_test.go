package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/provider"
)

// send sends a request line as it stands, since clients clean paths.
func send(t testing.TB, h http.Handler, method, target string, header ...string) *http.Response {
	t.Helper()
	conn := dial(t, h)
	var request strings.Builder
	fmt.Fprintf(&request, "%s %s HTTP/1.1\r\nHost: proxy\r\nApi-Key: k\r\nContent-Length: 2\r\n", method, target)
	for i := 0; i < len(header); i += 2 {
		fmt.Fprintf(&request, "%s: %s\r\n", header[i], header[i+1])
	}
	go io.WriteString(conn, request.String()+"\r\n{}")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// TestPathsStayBelowBase checks that no path leaves the base path of the upstream,
// however the upstream decodes the path.
func TestPathsStayBelowBase(t *testing.T) {
	for _, path := range []string{
		"/v1/../../admin", "/v1/..", "/..", "/v1/./models", "/v1/%2e%2e/admin", "/v1/.%2E/admin", "/v1/..%2fadmin", "/v1/%2e%2e%2fadmin",
		"/v1/..%5cadmin", "/v1/..\\admin", "/v1\\..\\admin", "/v1/x%5c..%5cadmin", "/v1/%252e%252e/admin", "/v1/..%252fadmin", "/v1/%25252e%25252e/admin",
		"/v1/..;/admin", "/v1/..;a=b/admin", "/v1/%2e%2e%3b/admin", "/v1/%252e%252e/%25zz", "/v1/..%20/admin", "/v1/%c0%ae%c0%ae/admin",
		"/v1/files/a%00b", "/v1/models%0d%0aX: y", "/v1/%2525252525252e", "v1:models", "/v1/chat/completions/../../../admin",
	} {
		for _, method := range []string{"GET", "POST"} {
			for _, o := range []proxy.Options{{}, {ForwardKey: true}, {ClientKeys: []string{"k"}}, {ClientKeys: []string{"k"}, AllowAccountRoutes: true}} {
				upstream, calls := counted()
				o.Transport = upstream
				res := send(t, newProxy(t, o), method, path)
				if (res.StatusCode != 400 && res.StatusCode != 404) || calls.Load() > 0 {
					t.Errorf("%s %s: %s, %d calls", method, path, res.Status, calls.Load())
				}
			}
		}
	}
	for _, path := range []string{"/v1/models/gpt-4.1", "/v1/models/...", "/v1/models/org%2Fmodel", "/v1/models/a..b", "/v1/models/%25", "/v1/models/caf%C3%A9"} {
		upstream, calls := counted()
		if res := send(t, newProxy(t, proxy.Options{Transport: upstream}), "GET", path); res.StatusCode != 200 || calls.Load() != 1 {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
}

// TestWebSocketsOfBatchedRoutes checks that a WebSocket to a route that the proxy batches
// is opened only if the client says that the calls are for real time.
func TestWebSocketsOfBatchedRoutes(t *testing.T) {
	for _, test := range []struct {
		method, path, protocol, mode string
		status                       int
	}{
		{"GET", "/v1/responses", "websocket", "", 404},
		{"GET", "/v1/responses/", "WebSocket", "", 404},
		{"GET", "/v1/responses", "websocket", "batch", 404},
		{"GET", "/v1/responses", "websocket", "realtime", 200},
		{"GET", "/v1/realtime", "websocket", "", 200},
		{"POST", "/v1/responses", "h2c", "", 200}, // as Java's HttpClient sends each call
	} {
		upstream, calls := counted()
		header := []string{"Connection", "Upgrade", "Upgrade", test.protocol}
		if test.mode != "" {
			header = append(header, "Autobatcher-Mode", test.mode)
		}
		res := send(t, newProxy(t, proxy.Options{Transport: upstream}), test.method, test.path, header...)
		if res.StatusCode != test.status || (calls.Load() > 0) != (test.status == 200) {
			t.Errorf("%s, mode %q: %s, %d calls", test.path, test.mode, res.Status, calls.Load())
		}
	}
}

// TestNearMisses checks that a path that resembles a batched route never goes
// upstream, where it might be answered at full price.
func TestNearMisses(t *testing.T) {
	for path, route := range map[string]string{
		"/v1/chat/completions/":                 "/v1/chat/completions",
		"/v1/chat%2Fcompletions":                "/v1/chat/completions",
		"/v1/chat%252Fcompletions":              "/v1/chat/completions",
		"/v1/chat/completions;a=b":              "/v1/chat/completions",
		"/v1/chat;a=b/completions":              "/v1/chat/completions",
		"/v1/chat/completions%3Ba":              "/v1/chat/completions",
		"/v1//chat/completions":                 "/v1/chat/completions",
		"/v1/chat//completions":                 "/v1/chat/completions",
		"//v1/chat/completions":                 "/v1/chat/completions",
		"/V1/chat/completions":                  "/v1/chat/completions",
		"/v1/Chat/Completions":                  "/v1/chat/completions",
		"/v1/chat/completion":                   "/v1/chat/completions",
		"/v1/chats/completions":                 "/v1/chat/completions",
		"/v1/chat-completions":                  "/v1/chat/completions",
		"/v1/chat_completions":                  "/v1/chat/completions",
		"/v1/chat/completions.":                 "/v1/chat/completions",
		"/v1/chat/completions%20":               "/v1/chat/completions",
		"/v1/chat/completions%3Fx":              "/v1/chat/completions",
		"/v1/chat/completions%2523x":            "/v1/chat/completions",
		"/v1/chat/completions/%3Fx/y":           "/v1/chat/completions",
		"/v1/chat/completions.json":             "/v1/chat/completions",
		"/v1/chat/completions,x":                "/v1/chat/completions",
		"/v1/chat/completions:run":              "/v1/chat/completions",
		"/v1/chat/completions/;x/":              "/v1/chat/completions",
		"/v1/chat.completions":                  "/v1/chat/completions",
		"/v1/embeddings&x":                      "/v1/embeddings",
		"/v1/chat/%63ompletions":                "/v1/chat/completions",
		"/v1/v1/chat/completions":               "/v1/chat/completions",
		"/v2/chat/completions":                  "/v1/chat/completions",
		"/api/chat/completions":                 "/v1/chat/completions",
		"/openai/v1/chat/completions":           "/v1/chat/completions",
		"/v1/deployments/gpt/chat/completions":  "/v1/chat/completions",
		"/v1/embeddings/":                       "/v1/embeddings",
		"/v1/Embedding":                         "/v1/embeddings",
		"/v1/engines/ada/embeddings":            "/v1/embeddings",
		"/v1/responses/":                        "/v1/responses",
		"/v1/response":                          "/v1/responses",
		"/v1/RESPONSES;x":                       "/v1/responses",
		"/v1/chat/completions/?stream=true":     "/v1/chat/completions",
		"http://localhost/v1/chat/completions/": "/v1/chat/completions",
	} {
		for _, o := range []proxy.Options{{}, {ForwardKey: true}, {ClientKeys: []string{"k"}}, {ClientKeys: []string{"k"}, AllowAccountRoutes: true}} {
			upstream, calls := counted()
			o.Transport = upstream
			res := send(t, newProxy(t, o), "POST", path, "Autobatcher-Mode", "realtime")
			code, message := apiError(t, res)
			if res.StatusCode != 404 || code != "unknown_route" || !strings.Contains(message, "POST "+route+",") || calls.Load() > 0 {
				t.Errorf("%s: %s %s, %d calls", path, res.Status, message, calls.Load())
			}
			if res.Header.Get("X-Should-Retry") != "false" {
				t.Errorf("%s is retried", path)
			}
		}
	}
	for _, method := range []string{"PUT", "PATCH"} {
		upstream, calls := counted()
		res := send(t, newProxy(t, proxy.Options{Transport: upstream}), method, "/v1/chat/completions")
		if _, message := apiError(t, res); res.StatusCode != 404 || !strings.Contains(message, "use POST /v1/chat/completions") || calls.Load() > 0 {
			t.Errorf("%s: %s %s", method, res.Status, message)
		}
	}
	for _, path := range []string{"/v1/moderations", "/v1/responses/input_tokens", "/v1/responses/resp_1/cancel", "/v1/chat/completions/chatcmpl-1", "/v1/completions"} {
		upstream, calls := counted()
		if res := send(t, newProxy(t, proxy.Options{Transport: upstream}), "POST", path); res.StatusCode != 200 || calls.Load() != 1 {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
}

// TestDeployments checks the paths of Azure's SDKs: a path may name a deployment, and
// /openai may be in the path or in the base URL.
func TestDeployments(t *testing.T) {
	const origin = "https://u.test"
	for _, test := range []struct{ base, path, want string }{
		{"/openai", "/deployments/gpt/chat/completions?api-version=1", "/openai/deployments/gpt/chat/completions?api-version=1"},
		{"/openai", "/openai/deployments/gpt/chat/completions?api-version=1", "/openai/deployments/gpt/chat/completions?api-version=1"},
		{"", "/openai/deployments/gpt/chat/completions?api-version=1", "/openai/deployments/gpt/chat/completions?api-version=1"},
		{"/openai", "/v1/chat/completions?api-version=1&x=2", "/openai/chat/completions?api-version=1"},
		{"/openai", "/openai/responses?api-version=1", "/openai/responses?api-version=1"},
		{"", "/openai/v1/responses", "/openai/v1/responses"},
		{"/openai/deployments/gpt", "/v1/chat/completions", "/openai/deployments/gpt/chat/completions"},
		{"/openai", "/deployments/a/b/chat/completions", ""},
		{"/openai", "/deployments//chat/completions", ""},
		{"/openai", "/x/deployments/a/chat/completions", ""},
		{"/openai", "/openai/openai/responses", ""},
		{"/openai", "/openai/v1/responses", ""},
		{"/openai/v1", "/openai/v1/responses", ""},
	} {
		var got string
		p := newProxy(t, proxy.Options{Profile: provider.AzureLegacy(), AuthHeader: "api-key", Upstream: parse(t, origin+test.base), Transport: transport(func(r *http.Request) (*http.Response, error) {
			got = strings.TrimPrefix(r.URL.String(), origin)
			return respondNow(r)
		})})
		if res := send(t, p, "POST", test.path); got != test.want || (res.StatusCode == 404) != (test.want == "") {
			t.Errorf("%s at %s: %s, %q, want %q", test.path, test.base, res.Status, got, test.want)
		}
	}
}

// TestQueriesShareABatch checks that query parameters do not make a batch of each
// call.
func TestQueriesShareABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, upstream := newBatchingProxy(t, batchtest.Options{Turnaround: time.Minute}, proxy.Options{})
		done := make(chan int)
		for i := range 10 {
			go func() {
				res := post(t, client, fmt.Sprintf("/v1/chat/completions?x=%d&api-version=%d", i, i), `{"model":"m",`+question+`}`)
				readAll(t, res)
				done <- res.StatusCode
			}()
		}
		for range 10 {
			if status := <-done; status != 200 {
				t.Error(status)
			}
		}
		if n := len(upstream.Batches()); n != 1 {
			t.Errorf("%d batches, want 1", n)
		}
	})
}

// TestQueryOfBaseURL checks that a caller cannot change a parameter of the base URL.
func TestQueryOfBaseURL(t *testing.T) {
	var got string
	p := newProxy(t, proxy.Options{Profile: provider.Azure(), Upstream: parse(t, "https://u.test/v1?api-version=1"), Transport: transport(func(r *http.Request) (*http.Response, error) {
		got = r.URL.RawQuery
		return respondNow(r)
	})})
	readAll(t, send(t, p, "POST", "/v1/responses?api-version=2"))
	if got != "api-version=1" {
		t.Errorf("the query is %q", got)
	}
}

// TestAccountRoutes checks that a client key opens no route by which clients see or
// change what other clients have made.
func TestAccountRoutes(t *testing.T) {
	closed := []string{
		"GET /v1/files", "GET /v1/files/f/content", "DELETE /v1/files/f", "POST /v1/files", "GET /v1/batches", "POST /v1/batches",
		"POST /v1/batches/b/cancel", "GET /v1/organization/usage/completions", "POST /v1/organization/admin_api_keys", "GET /v1/fine_tuning/jobs",
		"POST /v1/uploads", "GET /v1/vector_stores", "POST /v1/assistants", "POST /v1/threads/t/messages", "GET /v1/containers", "GET /v1/evals",
		"GET /v1/responses/resp_1", "DELETE /v1/responses/resp_1", "GET /v1/responses/resp_1/input_items", "POST /v1/responses/resp_1/cancel",
		"GET /v1/chat/completions", "GET /v1/chat/completions/c", "POST /v1/chat/completions/c", "DELETE /v1/chat/completions/c",
		"DELETE /v1/models/ft:gpt", "POST /v1/models/m", "GET /v1/conversations/c", "POST /v1/realtime/client_secrets", "GET /v1/realtime?model=m",
		"POST /v1/videos", "GET /v1/Files", "GET /v1//files", "GET /v1/files/", "GET /v1/%66iles", "GET /files", "GET /v1/models/../files",
		"GET /v1/key/info", "GET /v1/modelsx", "POST /v1/messages", "PUT /v1/files/f", "GET /admin",
	}
	open := []string{
		"POST /v1/chat/completions", "POST /chat/completions", "POST /v1/embeddings", "POST /v1/responses", "POST /v1/completions", "POST /v1/moderations",
		"POST /v1/images/generations", "POST /v1/audio/speech", "POST /v1/audio/transcriptions", "POST /v1/rerank", "POST /v1/responses/input_tokens",
		"GET /v1/models", "HEAD /v1/models", "GET /v1/models/gpt-4.1", "GET /v1/models/org/model",
	}
	check := func(o proxy.Options, route string, want bool) {
		t.Helper()
		upstream, calls := counted()
		o.Transport = upstream
		method, path, _ := strings.Cut(route, " ")
		res := send(t, newProxy(t, o), method, path)
		if (calls.Load() == 1) != want || (res.StatusCode == 200) != want {
			t.Errorf("%s: %s, %d calls", route, res.Status, calls.Load())
		}
		if want || res.StatusCode == 400 {
			return
		}
		if code, message := apiError(t, res); res.StatusCode != 403 || code != "route_closed" || !strings.Contains(message, "--allow-account-routes") {
			t.Errorf("%s: %s %s", route, res.Status, message)
		}
	}
	for _, route := range closed {
		check(proxy.Options{ClientKeys: []string{"k"}}, route, false)
		if strings.Contains(route, "..") {
			continue
		}
		check(proxy.Options{ClientKeys: []string{"k"}, AllowAccountRoutes: true}, route, true)
		check(proxy.Options{ClientKeys: []string{"k"}, ForwardKey: true}, route, true)
		check(proxy.Options{}, route, true)
	}
	for _, route := range open {
		check(proxy.Options{ClientKeys: []string{"k"}}, route, true)
	}
}

// TestOverrideHeaders checks that no header makes the upstream answer another path or
// method than the proxy has checked.
func TestOverrideHeaders(t *testing.T) {
	names := []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix"}
	for _, path := range []string{"/v1/embeddings", "/v1/moderations"} {
		var got http.Header
		p := newProxy(t, proxy.Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
			got = r.Header.Clone()
			return respondNow(r)
		})})
		var header []string
		for _, name := range names {
			header = append(header, name, "/admin")
		}
		send(t, p, "POST", path, header...)
		for _, name := range names {
			if got.Get(name) != "" {
				t.Errorf("%s: %s is forwarded", path, name)
			}
		}
	}
}

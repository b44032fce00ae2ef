//go:build unix

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
)

// With client keys, a call that the provider does not batch is refused, since the call
// would cost the full price, unless the operator has chosen that price for all calls.
func TestCallsWithoutBatchesByMode(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"data":[]}`)
	}))
	t.Cleanup(upstream.Close)
	for mode, want := range map[string]int{"batch": http.StatusNotFound, "realtime": http.StatusOK} {
		port := freePort(t)
		cmd := exec.Command("autobatcher", "serve", "--base-url", upstream.URL+"/openai/v1", "--provider", "groq", "--api-key", "provider-key",
			"--client-key", "client-key", "--mode", mode, "--port", fmt.Sprint(port), "--journal", "off")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // "signal: killed"
		})
		root := fmt.Sprintf("http://127.0.0.1:%d", port)
		awaitServer(t, root)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, root+"/v1/embeddings", strings.NewReader(`{"model":"m","input":"a"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer client-key")
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(res.Body); res.StatusCode != want {
			t.Errorf("--mode %s: %s %s, want %d", mode, res.Status, body, want)
		}
		res.Body.Close()
	}
}

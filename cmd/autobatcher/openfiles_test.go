//go:build unix

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// 300 clients with a connection each call a serve process that may open 256 files.
// Each call must be answered or get 503, apart from a few, and half must be answered.
func TestTooManyClientsForOpenFiles(t *testing.T) {
	upstream := batchtest.NewServer(batchtest.Options{Turnaround: 200 * time.Millisecond})
	t.Cleanup(upstream.Close)
	port := freePort(t)
	root := fmt.Sprintf("http://127.0.0.1:%d", port)
	cmd := exec.Command("sh", "-c", `ulimit -n 256 && exec autobatcher "$@"`, "sh", "serve", "--base-url", upstream.URL, "--api-key", "key",
		"--port", fmt.Sprint(port), "--batch-window", "0.1", "--poll-interval", "0.1", "--journal", t.TempDir()+"/journal.db")
	cmd.Env = append(cmd.Environ(), "GORACE="+raceOptions)
	var log lockedBuffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // "signal: killed"
		if t.Failed() {
			t.Log(log.String())
		}
	})
	awaitServer(t, root)
	var answered, refused, failed atomic.Int64
	var clients sync.WaitGroup
	for i := range 300 {
		clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: 2 * testTimeout} // a connection of its own
			defer client.CloseIdleConnections()
			res, err := client.Post(root+"/v1/chat/completions", "application/json", bytes.NewReader(chatBody(fmt.Sprint(i))))
			if err != nil {
				t.Log(err)
				failed.Add(1)
				return
			}
			defer res.Body.Close()
			switch {
			case res.StatusCode == http.StatusOK:
				answered.Add(1)
			case res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") != "":
				refused.Add(1)
			default:
				t.Error(res.Status)
			}
		})
	}
	clients.Wait()
	// On a busy machine, a client that needs long to send its request counts as silent.
	if answered.Load() < 128 || answered.Load()+refused.Load() < 285 {
		t.Errorf("%d calls were answered, %d got 503, %d got nothing", answered.Load(), refused.Load(), failed.Load())
	}
	if !strings.Contains(log.String(), "limit on open files is low") {
		t.Error("serve does not warn about the limit")
	}
}

// awaitServer waits until a server listens.
func awaitServer(t *testing.T, root string) {
	t.Helper()
	for deadline := time.Now().Add(testTimeout); ; time.Sleep(20 * time.Millisecond) {
		res, err := http.Get(root + "/health")
		if err == nil {
			res.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

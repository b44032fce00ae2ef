package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// The whole shutdown ends within 30 s, even if the requests do not end.
func TestStopWithStuckRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, release := time.Now(), make(chan struct{})
		err := stop(&http.Server{}, func() { <-release })
		if got := time.Since(start); got > 30*time.Second-flushTimeout || !errors.Is(err, errEndTimeout) {
			t.Errorf("after %v: %v", got, err)
		}
		close(release)
	})
}

// net/http's own messages must be records of the log, like all other messages.
func TestServerLogIsJSON(t *testing.T) {
	var out bytes.Buffer
	newServer(http.NotFoundHandler(), slog.New(slog.NewJSONHandler(&out, nil))).ErrorLog.Print("http: panic serving")
	var record struct{ Level, Msg string }
	if err := json.Unmarshal(out.Bytes(), &record); err != nil || record.Level != "WARN" || record.Msg != "http: panic serving" {
		t.Errorf("%v: %s", err, out.String())
	}
}

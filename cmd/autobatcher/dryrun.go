package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/dustin/go-humanize"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/provider"
)

// rehearseRun runs the program and sends nothing.
func (s *settings) rehearseRun(ctx context.Context, p process, log *slog.Logger, key string, program []string) error {
	up, err := s.upstream()
	if err != nil {
		return err
	}
	if _, err := s.batching(up); err != nil { // what it refuses now, it would refuse then
		return err
	}
	d := &dryRun{key: key, size: s.batchSize, profile: up.profile, tallies: map[share]*tally{}}
	code, err := s.beside(ctx, p, log, d, key, program, func() {})
	if err == nil {
		fmt.Fprint(p.stderr, d.summary())
	}
	return exitAs(code, err)
}

// A dryRun counts calls and answers each with an error.
type dryRun struct {
	key     string
	size    int // of a batch
	profile provider.Profile

	mu      sync.Mutex
	tallies map[share]*tally
	passing int // calls that would have passed through
}

// A share is what one batch may hold: calls to one endpoint and of one model,
// where the provider wants that.
type share struct{ endpoint, model string }

// A tally counts the calls of a share.
type tally struct {
	calls, bytes int64
}

// maxDryBody bounds what is read of one call.
const maxDryBody = 256 << 20

// dryAnswer tells a program's author, who reads it in the program's log. It is
// a 400, which no client tries again.
const dryAnswer = "autobatcher run --dry-run: nothing is sent, so this call gets no answer"

func (d *dryRun) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+d.key && r.Header.Get("Api-Key") != d.key {
		refuse(w, http.StatusUnauthorized, "the API key is not the one that autobatcher run gave to its program")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxDryBody))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "the request body could not be read: "+err.Error())
		return
	}
	d.count(r.Method, r.URL.Path, body)
	refuse(w, http.StatusBadRequest, dryAnswer)
}

func refuse(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Should-Retry", "false")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"message": message, "type": "invalid_request_error", "param": nil, "code": "dry_run",
	}})
}

// count notes a call.
func (d *dryRun) count(method, path string, body []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.IndexFunc(dryEndpoints, func(e string) bool { return strings.HasSuffix(path, e) })
	if method != http.MethodPost || i < 0 || !d.profile.Batches(dryEndpoints[i]) || gjson.GetBytes(body, "background").Bool() {
		d.passing++
		return
	}
	s := share{dryEndpoints[i], gjson.GetBytes(body, "model").String()}
	t := d.tallies[s]
	if t == nil {
		t = &tally{}
		d.tallies[s] = t
	}
	t.calls++
	t.bytes += int64(len(body))
}

var dryEndpoints = []string{"/chat/completions", "/embeddings", "/responses"}

// batches is how few batches would do, were all calls made side by side.
func (d *dryRun) batches(t tally) int64 {
	size := int64(d.size)
	if limit := int64(d.profile.MaxLines); limit > 0 {
		size = min(size, limit)
	}
	n := ceil(t.calls, size)
	if limit := d.profile.MaxBytes; limit > 0 {
		n = max(n, ceil(t.bytes, limit))
	}
	return n
}

func ceil(n, by int64) int64 { return (n + by - 1) / by }

// summary says what there would have been, per model.
func (d *dryRun) summary() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	b.WriteString("autobatcher: dry run, nothing was sent. There would have been:\n")
	order := slices.SortedFunc(maps.Keys(d.tallies), func(x, y share) int {
		return strings.Compare(x.model+" "+x.endpoint, y.model+" "+y.endpoint)
	})
	var total tally
	for _, s := range order {
		t := *d.tallies[s]
		total.calls, total.bytes = total.calls+t.calls, total.bytes+t.bytes
		fmt.Fprintf(&b, "  %s %s: %s\n", s.model, s.endpoint, d.describe(t, d.batches(t)))
	}
	fmt.Fprintf(&b, "  altogether: %s\n", d.describe(total, d.allBatches()))
	if d.passing > 0 {
		fmt.Fprintf(&b, "  and %s passed through unbatched\n", plural(int64(d.passing), "call", "calls"))
	}
	b.WriteString("Batches are as few as can be, with all calls made side by side; a token is taken to be four bytes of the request.\n")
	return b.String()
}

func (d *dryRun) describe(t tally, batches int64) string {
	return fmt.Sprintf("%s, %s, %s, about %s prompt tokens", plural(t.calls, "call", "calls"),
		plural(batches, "batch", "batches"), humanize.IBytes(uint64(t.bytes)), comma(ceil(t.bytes, 4)))
}

// allBatches adds up the batches of all shares that may not ride together.
func (d *dryRun) allBatches() int64 {
	groups := map[share]tally{}
	for s, t := range d.tallies {
		if !d.profile.OneModel {
			s.model = ""
		}
		if !d.profile.OneEndpoint {
			s.endpoint = ""
		}
		g := groups[s]
		groups[s] = tally{g.calls + t.calls, g.bytes + t.bytes}
	}
	var n int64
	for _, t := range groups {
		n += d.batches(t)
	}
	return n
}

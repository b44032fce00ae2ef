package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/endpoint"
	"github.com/autobatcher/autobatcher/internal/price"
	"github.com/autobatcher/autobatcher/internal/requestbody"
	"github.com/autobatcher/autobatcher/internal/usage"
	"github.com/autobatcher/autobatcher/provider"
)

// dryWindow and dryPoll make the sandbox answer a call at once.
const (
	dryWindow = 20 * time.Millisecond
	dryPoll   = 20 * time.Millisecond
)

// runDry runs the program and sends no calls to the provider: the sandbox answers.
func (s *settings) runDry(ctx context.Context, p process, log *slog.Logger, key string, program []string) error {
	up, err := s.upstream()
	if err != nil {
		return err
	}
	o, err := s.batching(up)
	if err != nil { // refuse the settings that run would refuse
		return err
	}
	prices, err := price.NewMeter(o.Prices, nil, log)
	if err != nil {
		return usagef("--prices: %w", err)
	}
	d := &dryRun{size: s.batchSize, mode: o.Mode, profile: up.profile, prices: prices, file: s.prices, tallies: map[share]*tally{}}
	s.sandbox, s.journal, s.required, s.notifyURL = true, noJournal, unset, ""
	s.batchWindow, s.pollInterval, s.turnaround = seconds(dryWindow), seconds(dryPoll), 0
	b, err := s.newBackend(ctx, p, log, func(autobatcher.Event) {})
	if err != nil {
		return err
	}
	d.next, d.key = b.proxy, key
	counter := &callCounter{Handler: d}
	code, err := s.runWithProxy(ctx, p, log, answerer{b, counter, b.close}, key, program)
	if err == nil {
		fmt.Fprint(p.stderr, d.summary())
		switch hint := counter.hint(b.batches.count()); {
		case d.empty():
			fmt.Fprintln(p.stderr, noCalls)
		case hint != "":
			fmt.Fprintln(p.stderr, "autobatcher: hint: "+hint)
		}
	}
	return exitAs(code, err)
}

// A dryRun counts calls, and passes the calls on to the proxy in front of the sandbox.
type dryRun struct {
	next    http.Handler
	key     string
	size    int // of a batch
	mode    autobatcher.Mode
	profile provider.Profile
	prices  *price.Meter
	file    string // of --prices

	mu      sync.Mutex
	tallies map[share]*tally
	passing int // calls that would pass through
}

// teeBody is a request body that is copied to a buffer while it is read.
type teeBody struct {
	io.Reader
	io.Closer
}

func (d *dryRun) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") == "Bearer "+d.key || r.Header.Get("Api-Key") == d.key {
		var body bytes.Buffer
		path := r.URL.Path
		if requestbody.IsForm(r.Header) {
			path = "" // passes through, for every path
		}
		if d.profile.Suffix(path) != "" { // the proxy reads the whole body before it answers
			r.Body = teeBody{io.TeeReader(r.Body, &body), r.Body}
		}
		defer func() { d.count(r.Method, path, body.Bytes()) }()
	}
	d.next.ServeHTTP(w, r)
}

// A share is the key of calls that can share a batch: an endpoint and a model, if
// the provider requires equal endpoints and models.
type share struct{ endpoint, model string }

// A tally counts the calls of a share.
type tally struct {
	calls, bytes int64
	answers      int64 // tokens that the answers may have
}

// count counts a call.
func (d *dryRun) count(method, path string, body []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	suffix := d.profile.Suffix(path)
	kind := endpoint.KindOf(&d.profile, suffix)
	asked := requestbody.Call{NoModel: kind.NoModel}
	parsed := asked.Parse(body, "") == nil
	member, _ := kind.Realtime(&asked)
	if method != http.MethodPost || d.mode == autobatcher.ModeRealtime || !d.profile.Batches(suffix) || parsed && member != "" {
		d.passing++
		return
	}
	s := share{suffix, cmp.Or(gjson.GetBytes(body, "model").String(), kind.DefaultModel)}
	t := d.tallies[s]
	if t == nil {
		t = &tally{}
		d.tallies[s] = t
	}
	t.calls++
	t.bytes += int64(len(body))
	if parsed {
		t.answers += price.MostOutput(asked.MaxOutput, asked.Answers, kind.NoText)
	}
}

// empty reports whether the program has made no call.
func (d *dryRun) empty() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.tallies) == 0 && d.passing == 0
}

// batches returns the minimum number of batches, if all calls are made concurrently.
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

// ceil returns n/by, rounded up.
func ceil(n, by int64) int64 { return (n + by - 1) / by }

// summary describes the calls and batches per model.
func (d *dryRun) summary() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	b.WriteString("autobatcher: dry run: no calls were sent to the provider; " + fromSandbox + ". Without --dry-run:\n")
	order := slices.SortedFunc(maps.Keys(d.tallies), func(x, y share) int {
		return strings.Compare(x.model+" "+x.endpoint, y.model+" "+y.endpoint)
	})
	var total tally
	var cost dryCost
	for _, s := range order {
		t := *d.tallies[s]
		total.calls, total.bytes, total.answers = total.calls+t.calls, total.bytes+t.bytes, total.answers+t.answers
		c := d.cost(s, t)
		cost = cost.plus(c)
		fmt.Fprintf(&b, "  %s %s: %s%s\n", printableLine(s.model), s.endpoint, d.describe(t, d.sent(s.endpoint, t)), c)
	}
	fmt.Fprintf(&b, "  total: %s%s\n", d.describe(total, count(d.allBatches(), "batch", "batches")), cost)
	if d.passing > 0 {
		fmt.Fprintf(&b, "  and %s passed through without a batch, at a cost that is not estimated\n", count(int64(d.passing), "call", "calls"))
	}
	b.WriteString("The number of batches is the minimum, for calls that are all made concurrently. The number of tokens assumes four bytes of the request per token. " +
		"Costs are estimates with prices of " + namePrices(price.BuiltIn().Date, d.file) + ".")
	if total.answers > 0 {
		fmt.Fprintf(&b, " Answers may be as long as the calls allow (max_tokens), and have %s tokens at most where a call names no limit.", comma(price.AssumedOutput))
	}
	b.WriteByte('\n')
	return b.String()
}

// An amounts is what tokens cost in batches and in real time, in US dollars.
type amounts struct{ batch, realtime float64 }

func (a amounts) plus(other amounts) amounts {
	return amounts{a.batch + other.batch, a.realtime + other.realtime}
}

func (a amounts) String() string {
	return fmt.Sprintf("%s, in real time %s", dollars(a.batch), dollars(a.realtime))
}

// A dryCost is what calls may cost.
type dryCost struct {
	prompts amounts
	whole   amounts // with the longest answers
	answers int64   // tokens of the longest answers
	unknown int64   // calls whose price is not known
}

// cost returns what the calls of a share may cost.
func (d *dryRun) cost(s share, t tally) dryCost {
	estimate := func(u usage.Tokens) (a amounts, known bool) {
		a.batch, a.realtime, known = d.prices.Estimate(price.Call{Profile: &d.profile, Model: s.model}, u)
		return a, known
	}
	prompts, known := estimate(usage.Tokens{Input: ceil(t.bytes, 4)})
	if !known {
		return dryCost{unknown: t.calls}
	}
	whole, _ := estimate(usage.Tokens{Input: ceil(t.bytes, 4), Output: t.answers})
	return dryCost{prompts, whole, t.answers, 0}
}

func (c dryCost) plus(other dryCost) dryCost {
	return dryCost{c.prompts.plus(other.prompts), c.whole.plus(other.whole), c.answers + other.answers, c.unknown + other.unknown}
}

// String continues the description of a tally; "" without calls.
func (c dryCost) String() string {
	text := ""
	if c.prompts.realtime > 0 {
		text = " for about " + c.prompts.String()
	}
	if c.answers > 0 {
		text += fmt.Sprintf("; with answers of %s tokens, at most about %s", comma(c.answers), c.whole)
	}
	if c.unknown > 0 {
		text += fmt.Sprintf("; the price of %s is not known", count(c.unknown, "call", "calls"))
	}
	return text
}

// flex reports whether calls to an endpoint would be sent at the flex tier.
func (d *dryRun) flex(suffix string) bool {
	return d.mode == autobatcher.ModeFlex && d.profile.Flex(suffix)
}

// sent describes how the calls of a tally would be sent.
func (d *dryRun) sent(suffix string, t tally) string {
	if d.flex(suffix) {
		return "each at the flex tier"
	}
	return count(d.batches(t), "batch", "batches")
}

// describe formats a tally.
func (d *dryRun) describe(t tally, sent string) string {
	return fmt.Sprintf("%s, %s, %s, about %s prompt tokens", count(t.calls, "call", "calls"),
		sent, humanize.IBytes(uint64(t.bytes)), comma(ceil(t.bytes, 4)))
}

// allBatches returns the number of batches for all calls. Shares that the provider
// accepts in the same batch are added up first.
func (d *dryRun) allBatches() int64 {
	groups := map[share]tally{}
	for s, t := range d.tallies {
		if d.flex(s.endpoint) {
			continue
		}
		if !d.profile.OneModel {
			s.model = ""
		}
		if !d.profile.OneEndpoint {
			s.endpoint = ""
		}
		g := groups[s]
		groups[s] = tally{calls: g.calls + t.calls, bytes: g.bytes + t.bytes}
	}
	var n int64
	for _, t := range groups {
		n += d.batches(t)
	}
	return n
}

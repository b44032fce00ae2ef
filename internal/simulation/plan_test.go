package simulation

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// dice are the random numbers of one actor.
type dice struct{ *rand.Rand }

func newDice(seed uint64, actor ...any) dice {
	h := fnv.New64a()
	fmt.Fprint(h, actor...)
	return dice{rand.New(rand.NewPCG(seed, h.Sum64()))}
}

func (d dice) chance(p float64) bool { return d.Float64() < p }

// between is a duration between two others. The duration is never a round number,
// so that two events happen at the same instant only if one causes the other.
func (d dice) between(low, high time.Duration) time.Duration {
	return low + time.Duration(d.Int64N(int64(high-low)+1))
}

func (d dice) of(lengths ...time.Duration) time.Duration { return lengths[d.IntN(len(lengths))] }

// A plan holds what a seed decides beforehand.
type plan struct {
	seed           uint64
	providerName   string
	maxLines       int
	length         time.Duration // in which calls are made and processes die
	replicas       int
	journal        bool
	required       bool
	trouble        float64 // how likely a request to the journal fails
	journalCuts    bool    // a process may not reach the journal for longer than a lease
	providerFaults bool    // requests to the provider fail, and batches end early
	nights         bool    // no process is up for hours
	recovers       bool    // a process knows all keys when it starts
	flawChance     float64 // how likely a line fails
	never          bool    // some lines never finish
	crashChance    float64 // how likely a crashPoint ends a process
	latency        time.Duration
	server         batchtest.Options
	options        autobatcher.Options
	clients        int
	callsEach      int
	keys           []string
	prompts        []prompt

	// What the draws of draws_test.go decide.
	drawn            []string // names of the draws that this schedule has
	clockSkew        time.Duration
	sendsDate        bool // the provider's responses have a Date header
	list             listing
	gatewayErrors    bool // a gateway answers 502 or 504 for what the provider carried out
	downloadFaults   []downloadFault
	duplicates       bool // result files repeat lines
	longRetryAfter   bool
	refusals         bool // the provider refuses a key for a while
	handler          handlerFault
	journalDelay     time.Duration // a request to the journal takes up to that long
	burst            int           // how many calls a client makes at once
	partitions       bool
	rotation         bool // the credentials of keys change
	noDelete, noList bool // the keys may not delete files, or list batches
	lanes            laneSet
	background       backgroundSet
	webhooks         webhookSet
}

// A prompt is a body that calls share. No other body contains the prompt's text.
type prompt struct {
	path, text, body string
	stream           bool
}

func newPlan(seed uint64) plan {
	d := newDice(seed, "plan")
	p := plan{seed: seed, length: d.between(10*time.Minute, 3*time.Hour), replicas: 1 + d.IntN(3), journal: true}
	if d.chance(0.1) {
		p.journal, p.replicas = false, 1 // without a journal nothing outlives the process
	} else if d.chance(0.25) {
		p.trouble, p.required = 0.05*d.Float64(), d.chance(0.5)
	}
	p.journalCuts = p.trouble > 0 && d.chance(0.3)
	p.providerFaults, p.nights, p.recovers = d.chance(0.8), d.chance(0.1), d.chance(0.5)
	p.crashChance = d.Float64()
	if d.chance(0.5) {
		p.flawChance = 0.1 * d.Float64()
	}
	p.never = d.chance(0.03)
	p.latency = d.of(0, 10*time.Millisecond, time.Second, 4*time.Second)
	p.drawOptions(d)
	p.clients, p.callsEach = 2+d.IntN(8), 1+d.IntN(4)
	for i := range 1 + d.IntN(3) {
		p.keys = append(p.keys, fmt.Sprintf("key-%d", i))
	}
	for i := range 1 + d.IntN(6) {
		p.prompts = append(p.prompts, newPrompt(d, i))
	}
	p.drawMore()
	return p
}

// drawOptions decides the provider's behavior and the Options of all processes.
func (p *plan) drawOptions(d dice) {
	turnaround := d.between(time.Minute, p.length/2)
	p.server.Turnaround = turnaround
	p.server.Validating = d.of(0, 0, time.Minute)
	p.server.Finalizing = d.of(0, 0, time.Minute)
	profile := provider.OpenAI()
	switch p.providerName = []string{"openai", "openai", "doubleword", "doubleword", "llm-d"}[d.IntN(5)]; p.providerName {
	case "openai":
		p.server.Behavior = batchtest.OpenAI()
	case "doubleword":
		p.server.Behavior, profile = batchtest.Doubleword(), provider.Doubleword()
	case "llm-d":
		p.server.Behavior, profile = batchtest.LLMD(), provider.LLMD()
	}
	if d.chance(0.3) {
		p.maxLines = 1 + d.IntN(4)
		p.server.Behavior.MaxLines, profile.MaxLines = int64(p.maxLines), p.maxLines
	}
	if d.chance(0.3) {
		p.server.Behavior.VisibleAfter = d.between(0, 4*time.Second)
	}
	p.options = autobatcher.Options{
		Provider:      &profile,
		PollInterval:  max(turnaround/6, 20*time.Second),
		BatchWindow:   d.between(time.Second, time.Minute),
		BatchSize:     1 + d.IntN(10),
		CancelOnClose: d.chance(0.2),
		Files:         []autobatcher.FilePolicy{"", "", autobatcher.FilesDelete, autobatcher.FilesExpire}[d.IntN(4)],
	}
	p.options.JournalRequired = p.required
	p.options.Prices, p.options.Budget = []byte(modelPrices), autobatcher.Budget{USD: 1e9}
	if d.chance(0.15) {
		p.options.Escalate = []autobatcher.Escalation{autobatcher.EscalateFailed, autobatcher.EscalateDeadline}[d.IntN(2)]
		p.options.EscalateMargin = d.between(time.Second, turnaround)
		p.options.EscalateLimit = []int{-1, 1, 2 + d.IntN(20)}[d.IntN(3)]
	}
	if d.chance(0.2) {
		p.options.AbandonAfter = -1
	}
	if d.chance(0.1) {
		p.server.MaxEnqueuedTokens = 60 + d.Int64N(200)
	}
	if d.chance(0.1) {
		p.server.RequestsPerMinute = 5 + d.IntN(30)
	}
	p.server.Logf = func(string, ...any) {}
}

func newPrompt(d dice, i int) prompt {
	model, text := fmt.Sprintf("m%d", d.IntN(2)), fmt.Sprintf("prompt %d", i)
	stream := ""
	if d.chance(0.3) {
		stream = `"stream":true,`
	}
	p := prompt{path: "/chat/completions", text: text, stream: stream != ""}
	switch d.IntN(4) {
	default:
		p.body = `{"model":"` + model + `",` + stream + `"messages":[{"role":"user","content":"` + text + `"}]}`
	case 0:
		p.path, p.stream = "/embeddings", false
		p.body = `{"model":"` + model + `","input":"` + text + `"}`
	case 1:
		p.path = "/responses"
		p.body = `{"model":"` + model + `",` + stream + `"input":"` + text + `"}`
	}
	return p
}

// textOf finds the prompt's text in a line's body.
func textOf(body []byte) string {
	if text := gjson.GetBytes(body, "messages.0.content"); text.Exists() {
		return text.String()
	}
	return gjson.GetBytes(body, "input").String()
}

// modelPrices are the prices of the models that clients name.
const modelPrices = `{"m0": {"input_cost_per_token": 0.1, "output_cost_per_token": 0.2}, "m1": {"input_cost_per_token": 0.3, "output_cost_per_token": 0.4}}`

package simulation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// A draw is a kind of trouble, or of configuration, that some schedules have
// beyond the basic faults. Each draw has a generator of its own, so that a
// schedule stays the same when another draw is switched off by the flag -draws.
type draw struct {
	name   string
	chance float64 // that a schedule has the draw
	apply  func(*plan, dice)
}

var draws = []draw{
	{"lanes", 0.15, drawLanes},
	{"climbs", 0.06, drawClimbs},
	{"background", 0.15, drawBackground},
	{"webhooks", 0.15, drawWebhooks},
	{"window", 0.15, func(p *plan, d dice) {
		p.options.BatchWindow = d.between(time.Minute, 12*time.Minute)
	}},
	{"quiet", 0.15, func(p *plan, d dice) {
		p.options.QuietAfter = d.between(time.Second, max(time.Second, p.options.BatchWindow))
	}},
	{"idle", 0.2, func(p *plan, d dice) {
		p.options.AbandonAfter = d.of(30*time.Second, d.between(time.Minute, 10*time.Minute), time.Hour)
	}},
	{"creations", 0.1, func(p *plan, d dice) {
		limit := 4 + d.IntN(10)
		p.options.BatchSize += 4 // else calls would wait for days
		p.options.Provider.CreationsPerHour, p.server.Behavior.CreationsPerHour = limit, limit
	}},
	{"clock", 0.2, func(p *plan, d dice) {
		p.sendsDate = d.chance(0.7)
		limit := 5 * time.Minute
		if p.sendsDate {
			limit = 3 * time.Hour
		}
		p.clockSkew = d.between(-limit, limit)
	}},
	{"list", 0.25, func(p *plan, d dice) {
		p.list.order = []listOrder{newestFirst, oldestFirst, randomOrder}[d.IntN(3)]
		p.list.page = []int{3, 10, 100}[d.IntN(3)]
		p.list.ignoresAfter = d.chance(0.25)
	}},
	{"gateway", 0.2, func(p *plan, _ dice) { p.gatewayErrors = true }},
	{"truncate", 0.15, func(p *plan, _ dice) { p.downloadFaults = append(p.downloadFaults, truncated) }},
	{"page", 0.1, func(p *plan, _ dice) { p.downloadFaults = append(p.downloadFaults, webPage) }},
	{"duplicates", 0.1, func(p *plan, _ dice) { p.duplicates = true }},
	{"retryafter", 0.15, func(p *plan, _ dice) { p.longRetryAfter = true }},
	{"refusals", 0.1, func(p *plan, _ dice) { p.refusals = true }},
	{"restricted", 0.1, func(p *plan, d dice) {
		p.noDelete, p.noList = d.chance(0.7), d.chance(0.5)
	}},
	{"handlers", 0.1, func(p *plan, d dice) {
		p.handler = []handlerFault{handlerFlushes, handlerExits, handlerSleeps}[d.IntN(3)]
	}},
	{"slowjournal", 0.1, func(p *plan, d dice) { p.journalDelay = d.of(20*time.Millisecond, 200*time.Millisecond, time.Second) }},
	{"burst", 0.04, drawBurst},
	{"partition", 0.1, func(p *plan, _ dice) { p.partitions = true }},
	{"rotation", 0.2, func(p *plan, _ dice) { p.rotation = true }},
}

// A handlerFault is what an event handler does beyond its work.
type handlerFault string

const (
	handlerFlushes handlerFault = "flushes"
	handlerExits   handlerFault = "exits"
	handlerSleeps  handlerFault = "sleeps"
)

// drawBurst plans hundreds of calls at once. Limits of a few lines or tokens are
// lifted, since a batch of each line would take the simulation minutes.
func drawBurst(p *plan, d dice) {
	p.burst = 100 + d.IntN(300)
	p.options.BatchSize = 50 + d.IntN(400)
	p.server.MaxEnqueuedTokens, p.server.RequestsPerMinute = 0, 0
	lines := int(batchtest.OpenAI().MaxLines)
	p.maxLines, p.server.Behavior.MaxLines, p.options.Provider.MaxLines = 0, int64(lines), lines
}

// checkDraws returns an error if the flag -draws names an unknown draw.
func checkDraws(list string) error {
	if list == "all" || list == "old" || list == "batches" {
		return nil
	}
	for name := range strings.SplitSeq(list, ",") {
		if !slices.ContainsFunc(draws, func(d draw) bool { return d.name == name }) {
			return fmt.Errorf("-draws names %q; known are all, batches, old and %s", name, drawNames())
		}
	}
	return nil
}

func drawNames() string {
	names := make([]string, len(draws))
	for i, d := range draws {
		names[i] = d.name
	}
	return strings.Join(names, ",")
}

// enabled reports whether the flag -draws allows the draw.
func (d *draw) enabled(list string) bool {
	newer := []string{"lanes", "climbs", "quiet", "background", "webhooks"} // than the name "batches"
	return list == "all" || list == "batches" && !slices.Contains(newer, d.name) || slices.Contains(strings.Split(list, ","), d.name)
}

// drawMore adds to the plan what the flag -draws allows. A draw that is named in
// the flag happens in every schedule.
func (p *plan) drawMore() {
	for _, d := range draws {
		own := newDice(p.seed, "draw", d.name)
		happens := own.chance(d.chance)
		if d.enabled(*drawn) && (happens || *drawn != "all" && *drawn != "batches") {
			p.drawn = append(p.drawn, d.name)
			d.apply(p, own)
		}
	}
}

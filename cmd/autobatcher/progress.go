package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/price"
)

// A status is a snapshot of the progress.
type status struct {
	Waiting, InFlight              int
	Answered, Failed               int64    // a failed call was answered with an error
	Batches, Flex                  int64    // Flex: calls sent at the flex tier
	Resumed                        int64    // batches of an earlier process
	Asked                          int64    // questions for answers of calls in the background
	Passed                         int64    // of Answered: in real time, without an estimate of the cost
	Realtime                       bool     // every call is sent in real time
	Running                        []string // ids of batches
	PromptTokens, CompletionTokens int64
	Done                           int64 // lines of running batches that are finished at the provider
	Cost                           autobatcher.Cost
	Costs                          []autobatcher.CostPart
	Prices                         string // file of --prices
	Refused                        int64  // calls that the budget refused
	Sandbox                        bool   // the answers cost nothing
	Elapsed                        time.Duration
	Left                           time.Duration // an estimate for the running batches; 0: not known
}

// calls returns the number of calls so far.
func (s status) calls() int64 {
	return int64(s.Waiting) + int64(s.InFlight) + s.Answered + s.Failed
}

// text describes the status without the elapsed time.
func (s status) text() string {
	text := fmt.Sprintf("%s waiting, %s in flight", comma(int64(s.Waiting)), comma(int64(s.InFlight)))
	if s.Done > 0 {
		text += fmt.Sprintf(" (%s finished at the provider)", comma(s.Done))
	}
	text += fmt.Sprintf(", %s answered", comma(s.Answered))
	if s.Failed > 0 {
		text += fmt.Sprintf(", %s failed", comma(s.Failed))
	}
	text += "; " + s.sent()
	if len(s.Running) > 0 {
		text += " (" + printableLine(strings.Join(s.Running[:min(len(s.Running), maxShown)], ", "))
		if more := len(s.Running) - maxShown; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
		text += ")"
	}
	if s.Cost.Priced > 0 {
		text += fmt.Sprintf("; about %s, saved %s", dollars(s.Cost.USD), dollars(s.Cost.Savings))
		if s.Sandbox {
			text += " (made up)"
		}
	}
	return text
}

// sent describes in what the calls were sent.
func (s status) sent() string {
	if s.Batches+s.Resumed+s.Flex == 0 && (s.Realtime || s.Passed > 0) {
		return "real time"
	}
	var lanes []string
	if s.Batches > 0 || s.Flex+s.Resumed == 0 {
		lanes = append(lanes, count(s.Batches, "batch", "batches"))
	}
	if s.Resumed > 0 {
		lanes = append(lanes, count(s.Resumed, "batch", "batches")+" of an earlier run")
	}
	if s.Flex > 0 {
		lanes = append(lanes, count(s.Flex, "call", "calls")+" at the flex tier")
	}
	if s.Passed > 0 {
		lanes = append(lanes, count(s.Passed, "call", "calls")+" in real time")
	}
	return strings.Join(lanes, " and ")
}

// maxShown is the number of ids of running batches in a line of output.
const maxShown = 2

// line returns the status as a line of output.
func (s status) line() string { return fmt.Sprintf("autobatcher: %s; %s", s.text(), s.times()) }

// times describes how long the program runs, and how long the running batches will
// still take.
func (s status) times() string {
	text := s.Elapsed.Round(time.Second).String()
	if left := s.Left.Round(time.Second); left > 0 {
		text += fmt.Sprintf(", about %s left", left)
	}
	return text
}

// noCalls is the summary of a program that made no call.
const noCalls = "autobatcher: the program made no call through autobatcher. The program must read OPENAI_BASE_URL and OPENAI_API_KEY; " +
	"a base URL in the program, or in another variable, must be replaced by the value of OPENAI_BASE_URL"

// summary returns the last line of output, after the program has ended.
func (s status) summary() string {
	switch {
	case s.calls() == 0 && s.Asked > 0:
		return fmt.Sprintf("autobatcher: %s for answers of calls in the background; %s", count(s.Asked, "question", "questions"), s.Elapsed.Round(100*time.Millisecond))
	case s.calls() == 0:
		return noCalls
	}
	text := fmt.Sprintf("autobatcher: %s (%s answered, %s failed) in %s",
		count(s.calls(), "call", "calls"), comma(s.Answered), comma(s.Failed+int64(s.Waiting+s.InFlight)), s.sent())
	text = fmt.Sprintf("%s; %s prompt and %s completion tokens; %s", text, comma(s.PromptTokens), comma(s.CompletionTokens), s.Elapsed.Round(100*time.Millisecond))
	return text + s.costs()
}

// costs describes the cost of the answers, and what the budget refused, as further lines
// of output, or returns "" without an answer.
func (s status) costs() string {
	c, format := s.Cost, "\nautobatcher: the answers cost about %s, and saved about %s (estimates with prices of %s"
	if s.Sandbox {
		format = "\nautobatcher: at the provider, the answers would cost about %s, and save about %s (estimates with prices of %s"
	}
	var text string
	switch {
	case c.Priced == 0 && c.Unpriced == 0:
	case c.Priced == 0:
		text = "\nautobatcher: the cost is not known: the built-in prices do not have the models, or not at this tier (--prices reads further prices)"
	default:
		text = fmt.Sprintf(format, dollars(c.USD), dollars(c.Savings), namePrices(c.PricesDate, s.Prices))
		if c.Unpriced > 0 {
			text += "; without " + count(c.Unpriced, "answer", "answers") + " whose price is not known"
		}
		text += ")" + s.costByLane()
	}
	if c.OtherTier > 0 {
		text += "\nautobatcher: the provider billed " + count(c.OtherTier, "call", "calls") + " at the flex tier at another tier, whose price may be higher; a warning in the log names the model, and --mode batch sends its calls in batches"
	}
	if s.Refused > 0 {
		text += "\nautobatcher: the budget refused " + count(s.Refused, "call", "calls") + " with 402, whose message says why"
	}
	if s.Passed > 0 {
		text += "\nautobatcher: the cost of " + count(s.Passed, "answer", "answers") + " in real time is not estimated: real time is the full price, and saves nothing"
	}
	return text
}

// costByLane describes the cost of the answers of each lane as a further line of output,
// or returns "" if all answers are of one lane.
func (s status) costByLane() string {
	sums := make(map[autobatcher.Mode]price.Total)
	for _, p := range s.Costs {
		sum, part := sums[p.Lane], price.Total(p.Cost)
		sum.Add(&part)
		sums[p.Lane] = sum
	}
	if len(sums) < 2 {
		return ""
	}
	var lanes []string
	for _, lane := range []struct {
		mode autobatcher.Mode
		name string
	}{
		{autobatcher.ModeBatch, "in batches"},
		{autobatcher.ModeFlex, "at the flex tier"},
		{autobatcher.ModeRealtime, "in real time after another lane"},
		{"", "in lanes that are not known"},
	} {
		switch sum, used := sums[lane.mode]; {
		case !used:
		case sum.Priced == 0:
			lanes = append(lanes, lane.name+" not known")
		default:
			lanes = append(lanes, fmt.Sprintf("%s %s (savings %s)", lane.name, dollars(sum.USD), dollars(sum.Savings)))
		}
	}
	return "\nautobatcher: of this cost, by lane: " + strings.Join(lanes, ", ")
}

// namePrices names the built-in prices by their date, and the file with prices of the
// user, if there is one.
func namePrices(date, file string) string {
	if file == "" {
		return date
	}
	return printableLine(file) + " and of " + date
}

// dollars formats an amount: with four decimal places, and a small amount with two
// significant digits.
func dollars(usd float64) string {
	switch {
	case usd < 0:
		return "-" + dollars(-usd)
	case usd == 0:
		return "$0"
	case usd < 0.001:
		return fmt.Sprintf("$%.*f", min(1-int(math.Floor(math.Log10(usd))), 10), usd)
	}
	return fmt.Sprintf("$%.4f", usd)
}

// comma formats n with thousands separators.
func comma(n int64) string { return humanize.Comma(n) }

// count formats n with the singular or the plural of a noun.
func count(n int64, singular, plural string) string {
	if n == 1 {
		return "1 " + singular
	}
	return comma(n) + " " + plural
}

// A progress shows the status until stop is called.
type progress struct {
	once sync.Once
	quit chan struct{}
	work sync.WaitGroup
}

const (
	// refreshInterval is the time between two snapshots of the status.
	refreshInterval = 200 * time.Millisecond
	// lineInterval is the minimum time between two lines of output.
	lineInterval = 2 * time.Second
	// maxLineInterval is the maximum time between two lines of output, for logs of CI
	// systems, which end a job without output.
	maxLineInterval = 5 * time.Minute
)

// showProgress shows the status that read returns on w: as a bar on a terminal, as
// lines elsewhere. read must be safe for concurrent use.
func showProgress(w io.Writer, read func() status) *progress {
	p := &progress{quit: make(chan struct{})}
	if isTerminal(w) {
		if out := newStatusLine(w); out.fits() {
			p.work.Go(func() { p.bar(out, read) })
			return p
		}
	}
	p.work.Go(func() { p.lines(w, read) })
	return p
}

// stop ends the output. After stop returns, p writes nothing more.
func (p *progress) stop() {
	p.once.Do(func() { close(p.quit) })
	p.work.Wait()
}

// lines writes the status after each change, at most once per lineInterval, and
// without a change once per maxLineInterval.
func (p *progress) lines(w io.Writer, read func() status) {
	ticker := time.NewTicker(refreshInterval)
	defer ticker.Stop()
	written, at := status{}.text(), time.Now().Add(-lineInterval)
	for {
		select {
		case now := <-ticker.C:
			s := read()
			if changed := s.text() != written; changed && now.Sub(at) >= lineInterval || now.Sub(at) >= maxLineInterval {
				fmt.Fprintln(w, s.line())
				written, at = s.text(), now
			}
		case <-p.quit:
			return
		}
	}
}

// bar shows a progress bar in the last line of the terminal.
func (p *progress) bar(out *statusLine, read func() status) {
	defer out.close()
	container := mpb.New(mpb.WithConsoleWriter(out), mpb.WithRefreshRate(refreshInterval))
	current := func(decor.Statistics) string { return " " + read().text() + " " }
	elapsed := func(decor.Statistics) string { return " " + read().times() }
	bar := container.New(0, mpb.BarStyle(), mpb.PrependDecorators(decor.Any(current)), mpb.AppendDecorators(decor.Any(elapsed)))
	ticker := time.NewTicker(refreshInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s := read()
			bar.SetTotal(max(s.calls(), 1), false)
			bar.SetCurrent(s.Answered + s.Failed)
		case <-p.quit:
			bar.Abort(true)
			container.Wait()
			return
		}
	}
}

// oneLine returns the first line of a frame.
func oneLine(frame string) string {
	line, _, _ := strings.Cut(frame, "\n")
	return strings.TrimRight(line, "\r")
}

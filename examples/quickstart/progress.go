package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/autobatcher/autobatcher"
)

// A progress shows the progress of the batches on stderr: as a bar on a terminal, as
// lines of text elsewhere. A progress also prints the answers, since on a terminal
// the answers must not mix with the bar.
type progress struct {
	total   int
	began   time.Time
	answers io.Writer
	stderr  io.Writer
	bars    *mpb.Progress // nil: stderr is not a terminal
	bar     *mpb.Bar

	mu    sync.Mutex
	order []string // batch ids in the order of submission
	last  map[string]autobatcher.Event
	shown status    // in the last line
	when  time.Time // of the last line
}

// A status is the progress of all batches together.
type status struct{ batches, done int }

func newProgress(total int, stdout, stderr io.Writer) *progress {
	p := &progress{total: total, began: time.Now(), answers: stdout, stderr: stderr, last: make(map[string]autobatcher.Event)}
	if !isTerminal(stderr) {
		return p
	}
	p.bars = mpb.New(mpb.WithOutput(stderr), mpb.WithWidth(78))
	p.bar = p.bars.AddBar(0,
		mpb.PrependDecorators(decor.Any(p.caption)),
		mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO)))
	p.bar.SetTotal(int64(total), false) // a full bar must stay, since answers may still be printed above
	if isTerminal(stdout) {
		p.answers = p.bars // p.bars prints above the bar
	}
	return p
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// onEvent records an event of a batch. onEvent is safe for concurrent use.
func (p *progress) onEvent(e autobatcher.Event) {
	if e.BatchID == "" {
		return
	}
	now := p.record(e)
	if p.bar != nil {
		p.bar.SetCurrent(int64(now.done)) // without p.mu, which caption locks while the bar is locked
	}
}

// record returns the status after the event.
func (p *progress) record(e autobatcher.Event) status {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.last[e.BatchID]; !known {
		p.order = append(p.order, e.BatchID)
	}
	p.last[e.BatchID] = e
	now := p.statusLocked()
	if p.bar == nil {
		p.lineLocked(now)
	}
	return now
}

// statusLocked adds up the batches. The caller holds p.mu.
func (p *progress) statusLocked() status {
	s := status{batches: len(p.order)}
	for _, e := range p.last {
		s.done += e.Counts.Completed + e.Counts.Failed
	}
	return s
}

// lineLocked prints a new status: at once after a new batch or the last call,
// otherwise at most once a second. The caller holds p.mu.
func (p *progress) lineLocked(now status) {
	urgent := now.batches != p.shown.batches || now.done == p.total
	if now == p.shown || !urgent && time.Since(p.when) < time.Second {
		return
	}
	p.shown, p.when = now, time.Now()
	fmt.Fprintf(p.stderr, "%5.1fs  %s\n", time.Since(p.began).Seconds(), p.describe(now))
}

func (p *progress) describe(s status) string {
	if s.batches == 0 {
		return "collecting calls"
	}
	return fmt.Sprintf("%s, %d of %d calls done", count(s.batches, "batch", "batches"), s.done, p.total)
}

// caption returns the text in front of the bar.
func (p *progress) caption(decor.Statistics) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.describe(p.statusLocked()) + " "
}

func (p *progress) print(a answer) { fmt.Fprintln(p.answers, a) }

// Write prints lines of the Transport's log. On a terminal the lines appear above
// the bar.
func (p *progress) Write(lines []byte) (int, error) {
	if p.bars != nil {
		if n, err := p.bars.Write(lines); err == nil {
			return n, nil
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.Write(lines)
}

// stop removes the bar. A second stop has no effect.
func (p *progress) stop() {
	if p.bars != nil {
		p.bar.Abort(true)
		p.bars.Wait()
	}
}

// batches returns the number of batches.
func (p *progress) batches() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.order)
}

// report lists the batches, one line per batch.
func (p *progress) report() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, id := range p.order {
		e := p.last[id]
		fmt.Fprintf(table, "%4d\t%s\t%s\t%v\t%s\n", e.RequestCount, e.Endpoint,
			strings.Join(e.Models, ", "), e.Elapsed.Round(100*time.Millisecond), id)
	}
	table.Flush() // writing to memory cannot fail
	return b.String()
}

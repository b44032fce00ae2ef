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

// A progress shows how far the batches are, on stderr: as a bar on a terminal,
// otherwise as lines of text. It prints the answers too, since on a terminal
// they must not run into the bar.
type progress struct {
	total   int
	began   time.Time
	answers io.Writer
	stderr  io.Writer
	bars    *mpb.Progress // nil: stderr is no terminal
	bar     *mpb.Bar

	mu    sync.Mutex
	order []string // of batch ids, as they were submitted
	last  map[string]autobatcher.Event
	said  status // by the last line
	when  time.Time
}

// A status is how far all batches together are.
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
	p.bar.SetTotal(int64(total), false) // a full bar stays: answers are still to be printed above it
	if isTerminal(stdout) {
		p.answers = p.bars // prints above the bar
	}
	return p
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// onEvent notes what happened to a batch. Batches tell concurrently.
func (p *progress) onEvent(e autobatcher.Event) {
	if e.BatchID == "" {
		return
	}
	now := p.note(e)
	if p.bar != nil {
		p.bar.SetCurrent(int64(now.done)) // not under p.mu: the bar may be waiting for it in caption
	}
}

func (p *progress) note(e autobatcher.Event) status {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.last[e.BatchID]; !known {
		p.order = append(p.order, e.BatchID)
	}
	p.last[e.BatchID] = e
	now := p.status()
	if p.bar == nil {
		p.line(now)
	}
	return now
}

// status sums the batches up. The caller holds p.mu.
func (p *progress) status() status {
	s := status{batches: len(p.order)}
	for _, e := range p.last {
		s.done += e.Counts.Completed + e.Counts.Failed
	}
	return s
}

// line prints a status that is new: at once if there is another batch or all
// is done, otherwise at most one a second. The caller holds p.mu.
func (p *progress) line(now status) {
	urgent := now.batches != p.said.batches || now.done == p.total
	if now == p.said || !urgent && time.Since(p.when) < time.Second {
		return
	}
	p.said, p.when = now, time.Now()
	fmt.Fprintf(p.stderr, "%5.1fs  %s\n", time.Since(p.began).Seconds(), p.describe(now))
}

func (p *progress) describe(s status) string {
	if s.batches == 0 {
		return "collecting calls"
	}
	return fmt.Sprintf("%s, %d of %d calls done", count(s.batches, "batch", "batches"), s.done, p.total)
}

// caption stands before the bar.
func (p *progress) caption(decor.Statistics) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.describe(p.status()) + " "
}

func (p *progress) print(a answer) { fmt.Fprintln(p.answers, a) }

// Write prints lines of the Transport's log, above the bar while there is one.
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

// stop takes the bar away. It may be called again.
func (p *progress) stop() {
	if p.bars != nil {
		p.bar.Abort(true)
		p.bars.Wait()
	}
}

// batches is how many batches there were.
func (p *progress) batches() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.order)
}

// report lists the batches, a line each.
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

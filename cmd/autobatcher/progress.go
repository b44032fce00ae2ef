package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// A status is how far everything is at one moment.
type status struct {
	Waiting, InFlight              int
	Answered, Failed               int64 // a failed call was answered too, with an error
	Batches                        int64
	PromptTokens, CompletionTokens int64
	Elapsed                        time.Duration
}

// calls are all there were.
func (s status) calls() int64 {
	return int64(s.Waiting) + int64(s.InFlight) + s.Answered + s.Failed
}

// text says what changes, without the time.
func (s status) text() string {
	text := fmt.Sprintf("%s waiting, %s in flight, %s answered", comma(int64(s.Waiting)), comma(int64(s.InFlight)), comma(s.Answered))
	if s.Failed > 0 {
		text += fmt.Sprintf(", %s failed", comma(s.Failed))
	}
	return text + "; " + plural(s.Batches, "batch", "batches")
}

// line is the status as a line of its own.
func (s status) line() string {
	return fmt.Sprintf("autobatcher: %s; %s", s.text(), s.Elapsed.Round(time.Second))
}

// summary is what there is to say at the end.
func (s status) summary() string {
	text := fmt.Sprintf("autobatcher: %s (%s answered, %s failed) in %s",
		plural(s.calls(), "call", "calls"), comma(s.Answered), comma(s.Failed+int64(s.Waiting+s.InFlight)), plural(s.Batches, "batch", "batches"))
	return fmt.Sprintf("%s; %s prompt and %s completion tokens; %s", text, comma(s.PromptTokens), comma(s.CompletionTokens), s.Elapsed.Round(100*time.Millisecond))
}

func comma(n int64) string { return humanize.Comma(n) }

func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return comma(n) + " " + many
}

// progress is shown until it is stopped.
type progress struct {
	once sync.Once
	quit chan struct{}
	work sync.WaitGroup
}

const (
	// glance is how often the status is looked at.
	glance = 200 * time.Millisecond
	// lineInterval is the least time between two lines of it.
	lineInterval = 2 * time.Second
)

// showProgress shows what look returns on w: as a bar where a person watches, as
// lines elsewhere.
func showProgress(w io.Writer, look func() status) *progress {
	p := &progress{quit: make(chan struct{})}
	if f, ok := w.(*os.File); ok && isTerminal(f) {
		if out := newFooter(f); out.fits() {
			p.work.Go(func() { p.bar(out, look) })
			return p
		}
	}
	p.work.Go(func() { p.lines(w, look) })
	return p
}

// stop ends the showing; nothing more is written.
func (p *progress) stop() {
	p.once.Do(func() { close(p.quit) })
	p.work.Wait()
}

// lines writes the status whenever it changed, but not too often.
func (p *progress) lines(w io.Writer, look func() status) {
	ticker := time.NewTicker(glance)
	defer ticker.Stop()
	said, at := status{}.text(), time.Time{}
	for {
		select {
		case now := <-ticker.C:
			if s := look(); s.text() != said && now.Sub(at) >= lineInterval {
				fmt.Fprintln(w, s.line())
				said, at = s.text(), now
			}
		case <-p.quit:
			return
		}
	}
}

// bar draws a bar in the last line of the terminal.
func (p *progress) bar(out *footer, look func() status) {
	defer out.close()
	container := mpb.New(mpb.WithConsoleWriter(out), mpb.WithRefreshRate(glance))
	current := func(decor.Statistics) string { return " " + look().text() + " " }
	elapsed := func(decor.Statistics) string { return " " + look().Elapsed.Round(time.Second).String() }
	bar := container.New(0, mpb.BarStyle(), mpb.PrependDecorators(decor.Any(current)), mpb.AppendDecorators(decor.Any(elapsed)))
	ticker := time.NewTicker(glance)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s := look()
			bar.SetTotal(max(s.calls(), 1), false)
			bar.SetCurrent(s.Answered + s.Failed)
		case <-p.quit:
			bar.Abort(true)
			container.Wait()
			return
		}
	}
}

// oneLine is the first line of a frame.
func oneLine(frame string) string {
	line, _, _ := strings.Cut(frame, "\n")
	return strings.TrimRight(line, "\r")
}

package main

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"github.com/autobatcher/autobatcher"
)

// logger returns the logger for stderr.
func (s *settings) logger(p process) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.logLevel)); err != nil {
		return nil, usagef("--log-level is %q; it must be debug, info, warn or error", s.logLevel)
	}
	text := false
	switch s.logFormat {
	case "auto":
		text = isTerminal(p.stderr)
	case "text":
		text = true
	case "json":
	default:
		return nil, usagef("--log-format is %q; it must be auto, text or json", s.logFormat)
	}
	var handler slog.Handler = slog.NewJSONHandler(forTerminal(p.stderr), &slog.HandlerOptions{Level: level, ReplaceAttr: readable})
	if text {
		handler = tint.NewTextHandler(p.stderr, &tint.Options{
			Level: level, TimeFormat: time.TimeOnly, ReplaceAttr: readable, NoColor: p.getenv("NO_COLOR") != "" || !isTerminal(p.stderr),
		})
	}
	log := slog.New(handler)
	for _, o := range p.outputs() {
		o.log.Store(log)
	}
	p.warnAboutVariables(log)
	return log, nil
}

// readable writes durations as text with at most four digits, such as 953ms, 2.5s or
// 1m30s.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() != slog.KindDuration {
		return a
	}
	d := a.Value.Duration()
	switch {
	case d >= time.Minute:
		d = d.Round(time.Second)
	case d >= time.Second:
		d = d.Round(10 * time.Millisecond)
	case d >= time.Millisecond:
		d = d.Round(time.Millisecond)
	}
	return slog.String(a.Key, d.String())
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f := fileOf(w)
	return f != nil && term.IsTerminal(int(f.Fd()))
}

// eventLines returns a handler that writes each event to w as one line of JSON, in
// one Write.
func eventLines(w io.Writer, log *slog.Logger) func(autobatcher.Event) {
	w = forTerminal(w)
	return func(e autobatcher.Event) {
		line, err := json.Marshal(e)
		if err == nil {
			_, err = w.Write(append(line, '\n'))
		}
		if err != nil && !errors.Is(err, errDropped) { // dropped records are counted and reported by the output
			log.Error("an event could not be written to stdout", "event", e.Name, "error", err)
		}
	}
}

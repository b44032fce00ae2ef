package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"github.com/autobatcher/autobatcher"
)

// logger makes the log that goes to stderr.
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
	if !text {
		return slog.New(slog.NewJSONHandler(p.stderr, &slog.HandlerOptions{Level: level})), nil
	}
	return slog.New(tint.NewTextHandler(p.stderr, &tint.Options{
		Level: level, TimeFormat: time.TimeOnly, NoColor: p.getenv("NO_COLOR") != "" || !isTerminal(p.stderr),
	})), nil
}

// isTerminal reports whether a person reads what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// eventLines returns a handler that writes each event to w as one line of
// JSON. Batches tell of themselves concurrently; their lines never mix.
func eventLines(w io.Writer, log *slog.Logger) func(autobatcher.Event) {
	var mu sync.Mutex
	return func(e autobatcher.Event) {
		line, err := json.Marshal(e)
		if err == nil {
			mu.Lock()
			_, err = w.Write(append(line, '\n'))
			mu.Unlock()
		}
		if err != nil {
			log.Error("an event could not be written to stdout", "event", e.Name, "error", err)
		}
	}
}

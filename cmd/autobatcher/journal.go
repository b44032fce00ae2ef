package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/postgres"
	"github.com/autobatcher/autobatcher/journal/sqlite"
)

// journalSettings are the values of the journal flags.
type journalSettings struct {
	journal  string // "" for the default place, "off", a path or a URL
	required choice
	keepFor  seconds
}

const noJournal = "off"

// journalFlag returns the flag for the place of the journal.
func (s *journalSettings) journalFlag(p process) cli.Flag {
	return &cli.StringFlag{
		Name: "journal", Destination: &s.journal, Category: aboutJournal,
		DefaultText: "a file in the user's state directory; off with --sandbox",
		Sources:     p.source("AUTOBATCHER_JOURNAL"),
		Usage: "record in `PLACE` which lines were paid for, so that a call that is retried after a crash or a deploy finds its line: " +
			"the path of a file, for processes on one machine; postgres://… for several machines; or off",
	}
}

func (s *journalSettings) journalFlags(p process) []cli.Flag {
	return []cli.Flag{
		s.journalFlag(p),
		&cli.GenericFlag{
			Name: "journal-required", Value: &s.required, Category: aboutJournal,
			DefaultText: "if --journal is given, the journal must work at start",
			Sources:     p.source("AUTOBATCHER_JOURNAL_REQUIRED"),
			Usage:       "while the journal fails, do not start, or fail calls with 503, instead of continuing without the journal; =false always continues",
		},
		&cli.GenericFlag{
			Name: "keep-for", Value: &s.keepFor, Category: aboutJournal,
			Sources: p.source("AUTOBATCHER_KEEP_FOR"),
			Usage:   "keep a batch with undelivered results for `SECONDS`, or a duration, after the end of the batch, for callers that retry, and answers of calls in the background for callers that ask",
		},
	}
}

// openJournal opens the journal, or returns nil if the journal is off. A journal
// that cannot be opened is an error if the journal is required. Unless
// --journal-required says so, a journal of --journal is required, and the default
// journal is not.
func (s *settings) openJournal(ctx context.Context, p process, log *slog.Logger) (journal.Store, error) {
	if s.journal == noJournal || s.journal == "" && s.sandbox {
		if s.required == yes {
			return nil, usagef("--journal-required needs a --journal")
		}
		return nil, nil
	}
	if err := checkPlace(s.journal); err != nil {
		return nil, err
	}
	store, err := p.openStore(ctx, s.journal)
	switch {
	case err == nil:
		p.warnAboutMode(log, s.journal)
		return store, nil
	case s.required == yes, s.required == unset && s.journal != "":
		return nil, &failure{exitFailure, err}
	}
	log.Warn("continuing without a journal: calls whose batches a crash or a restart interrupts will be paid for again", "error", err)
	return nil, nil
}

// checkPlace returns an error for a place that is neither a path nor a URL of
// PostgreSQL. The error does not contain the place, which may contain a password.
func checkPlace(place string) error {
	scheme, _, isURL := strings.Cut(place, "://")
	switch {
	case isURL && !isPostgres(place):
		return usagef("--journal begins with %s://; --journal must be a path, postgres://user@host/database, or off", scheme)
	case !isURL && connectionWords.MatchString(place):
		return usagef("--journal looks like a PostgreSQL connection string; such a place must begin with postgres://")
	}
	return nil
}

// connectionWords matches the keyword form of connection strings, "host=…
// password=…", and URLs with a missing slash.
var connectionWords = regexp.MustCompile(`(?i)^postgres(ql)?:|\b(host|dbname|user|password)=`)

func isPostgres(place string) bool {
	return strings.HasPrefix(place, "postgres://") || strings.HasPrefix(place, "postgresql://")
}

// journalKind names the kind of the journal for the page, without its place.
func (s *settings) journalKind(open bool) string {
	switch {
	case !open:
		return "off"
	case isPostgres(s.journal):
		return "PostgreSQL"
	}
	return "SQLite"
}

// openTimeout limits how long openStore waits for a database server.
const openTimeout = 15 * time.Second

// openStore opens a journal and checks that the journal can be written.
func (p process) openStore(ctx context.Context, place string) (journal.Store, error) {
	if isPostgres(place) {
		ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errors.New("the server does not answer"))
		defer cancel()
		store, err := postgres.Open(ctx, place)
		if err != nil {
			return nil, p.explainOpen(ctx, place, err)
		}
		return store, nil
	}
	path, err := p.journalPath(place)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, unreadable("--journal", path, err)
	}
	store, err := sqlite.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	return writable(ctx, store)
}

// explainOpen names the database if the database did not answer in time.
func (p process) explainOpen(ctx context.Context, place string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("journal %s: %w", p.placeName(place), context.Cause(ctx))
	}
	return err
}

// writable checks that store can be written, by ending the lease of an owner that
// does not exist. If the write fails, writable closes store.
func writable(ctx context.Context, store journal.Store) (journal.Store, error) {
	if _, err := store.Heartbeat(ctx, "nobody", 0); err != nil {
		_ = store.Close() // store has no changes
		return nil, err
	}
	return store, nil
}

// placeName returns the place of a journal without the password.
func (p process) placeName(place string) string {
	if !isPostgres(place) {
		path, _ := p.journalPath(place) // "" without a home directory
		return path
	}
	u, err := url.Parse(place)
	if err != nil {
		return "postgres://…"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// journalPath returns the path of the journal file. The place "" means the default
// path.
func (p process) journalPath(place string) (string, error) {
	if place != "" {
		return place, nil
	}
	folder := p.stateFolder(runtime.GOOS)
	if folder == "" {
		return "", errors.New("the journal has no default place, since this user has no home directory; give --journal PATH, or --journal off")
	}
	return filepath.Join(folder, "autobatcher", "journal.db"), nil
}

// stateFolder returns the user's directory for the persistent state of programs, or
// "" if the environment does not name the directory.
func (p process) stateFolder(goos string) string {
	home := p.getenv("HOME")
	switch {
	case goos == "windows":
		return p.getenv("LocalAppData")
	case goos == "darwin" && home != "":
		return filepath.Join(home, "Library", "Application Support")
	case filepath.IsAbs(p.getenv("XDG_STATE_HOME")): // the XDG specification calls relative paths invalid
		return p.getenv("XDG_STATE_HOME")
	case home != "":
		return filepath.Join(home, ".local", "state")
	}
	return ""
}

// A choice is yes, no, or unset.
type choice int

const (
	unset choice = iota
	yes
	no
)

func (c *choice) Set(text string) error {
	value, err := strconv.ParseBool(text)
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", text)
	}
	*c = map[bool]choice{true: yes, false: no}[value]
	return nil
}

func (c *choice) Get() any { return *c }

func (c *choice) String() string { return [...]string{"", "true", "false"}[*c] }

func (c *choice) IsBoolFlag() bool { return true }

// orNegative returns n, or -1 for 0. On the command line 0 means none. In the
// library 0 means the default, and a negative value means none.
func orNegative[T time.Duration | int](n T) T { return cmp.Or(n, -1) }

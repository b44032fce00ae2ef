package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
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

// journalSettings are what the flags say of the journal.
type journalSettings struct {
	journal  string // "" for the default, "off", a path or a URL
	required choice
	keepFor  seconds
}

const noJournal = "off"

func (s *journalSettings) journalFlag(p process) cli.Flag {
	return &cli.StringFlag{
		Name: "journal", Destination: &s.journal, Category: aboutJournal,
		DefaultText: "a file among this user's own; with --sandbox off",
		Sources:     p.source("AUTOBATCHER_JOURNAL"),
		Usage: "remember in `PLACE` what was paid for, so that a call made again after a crash or a deploy finds its line: " +
			"the path of a file, for the processes of one machine; postgres://… for a fleet; or off",
	}
}

func (s *journalSettings) journalFlags(p process) []cli.Flag {
	return []cli.Flag{
		s.journalFlag(p),
		&cli.GenericFlag{
			Name: "journal-required", Value: &s.required, Category: aboutJournal,
			DefaultText: "a --journal that is given must work at the start",
			Sources:     p.source("AUTOBATCHER_JOURNAL_REQUIRED"),
			Usage:       "end, or fail calls with 503, rather than go on without the journal; =false goes on in any case",
		},
		&cli.GenericFlag{
			Name: "keep-for", Value: &s.keepFor, Category: aboutJournal,
			Sources: p.source("AUTOBATCHER_KEEP_FOR"),
			Usage:   "forget a batch that nobody came back for `SECONDS`, or a duration, after its end",
		},
	}
}

// openJournal opens the journal, nil if there is to be none. One that was asked
// for must open, unless it is said to be dispensable; a default is dispensable
// unless it is said to be required.
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
		return store, nil
	case s.required == yes, s.required == unsaid && s.journal != "":
		return nil, &failure{exitFailure, err}
	}
	log.Warn("going on without a journal: batches that a crash or a restart leaves behind will be paid for again", "error", err)
	return nil, nil
}

// checkPlace refuses what is neither a path nor a URL of PostgreSQL's. It says
// nothing of what it refuses: there may be a password in it.
func checkPlace(place string) error {
	scheme, _, isURL := strings.Cut(place, "://")
	switch {
	case isURL && !isPostgres(place):
		return usagef("--journal begins with %s://; it must be a path, postgres://user@host/database, or off", scheme)
	case !isURL && connectionWords.MatchString(place):
		return usagef("--journal looks like PostgreSQL, but it must begin with postgres://")
	}
	return nil
}

// connectionWords tell libpq's other spelling, "host=… password=…", and URLs
// with a slash too few.
var connectionWords = regexp.MustCompile(`(?i)^postgres(ql)?:|\b(host|dbname|user|password)=`)

func isPostgres(place string) bool {
	return strings.HasPrefix(place, "postgres://") || strings.HasPrefix(place, "postgresql://")
}

// openPatience is how long a database may take to answer.
const openPatience = 15 * time.Second

// openStore opens a journal and makes sure that it can be written.
func (p process) openStore(ctx context.Context, place string) (journal.Store, error) {
	if isPostgres(place) {
		ctx, cancel := context.WithTimeoutCause(ctx, openPatience, errors.New("it does not answer"))
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
	store, err := sqlite.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	return writable(ctx, store)
}

// explainOpen says which database did not answer in time.
func (p process) explainOpen(ctx context.Context, place string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("journal %s: %w", p.placeName(place), context.Cause(ctx))
	}
	return err
}

// writable ends the lease of an owner that there is not, which takes what any
// change takes.
func writable(ctx context.Context, store journal.Store) (journal.Store, error) {
	if _, err := store.Heartbeat(ctx, "nobody", 0); err != nil {
		_ = store.Close() // nothing was written
		return nil, err
	}
	return store, nil
}

// placeName names a journal without its password.
func (p process) placeName(place string) string {
	if !isPostgres(place) {
		path, _ := p.journalPath(place) // without a home there is none to name
		return path
	}
	u, err := url.Parse(place)
	if err != nil {
		return "postgres://…"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// journalPath is the file that is meant: "" is the default.
func (p process) journalPath(place string) (string, error) {
	if place != "" {
		return place, nil
	}
	folder := p.stateFolder(runtime.GOOS)
	if folder == "" {
		return "", errors.New("there is no place for a journal: this user has no home directory; give --journal PATH, or --journal off")
	}
	return filepath.Join(folder, "autobatcher", "journal.db"), nil
}

// stateFolder is where programs of this user keep what must outlive them, ""
// if nobody says.
func (p process) stateFolder(goos string) string {
	home := p.getenv("HOME")
	switch {
	case goos == "windows":
		return p.getenv("LocalAppData")
	case goos == "darwin" && home != "":
		return filepath.Join(home, "Library", "Application Support")
	case filepath.IsAbs(p.getenv("XDG_STATE_HOME")): // others are invalid, says its specification
		return p.getenv("XDG_STATE_HOME")
	case home != "":
		return filepath.Join(home, ".local", "state")
	}
	return ""
}

// A choice is yes, no, or left open.
type choice int

const (
	unsaid choice = iota
	yes
	no
)

func (c *choice) Set(text string) error {
	said, err := strconv.ParseBool(text)
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", text)
	}
	*c = map[bool]choice{true: yes, false: no}[said]
	return nil
}

func (c *choice) Get() any { return *c }

func (c *choice) String() string { return [...]string{"", "true", "false"}[*c] }

func (c *choice) IsBoolFlag() bool { return true }

// orNegative is n, or -1 where there is to be none: to the library 0 means its
// default.
func orNegative[T time.Duration | int](n T) T { return cmp.Or(n, -1) }

//go:build unix

package postgres

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/journaltest"
)

// A pooler gives a connection to a different client after each transaction. Old
// poolers have no prepared statements.
func TestBehindPooler(t *testing.T) {
	journaltest.Run(t, func(t *testing.T) func() journal.Store {
		url := newDatabase(t) + "&default_query_exec_mode=exec"
		return func() journal.Store { return mustOpen(t, url) }
	})
}

// Every error of Open wraps its sentinel, and says what to do.
func TestTroubleAtOpen(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil string // run as the superuser
		kind  error
		says  string
	}{
		{
			"newer", `insert into autobatcher.schema_version values (99)`,
			journal.ErrNewer, "version 99, and this program knows 3 (run the newer version",
		},
		{
			"read-only, and nothing there", `drop schema autobatcher cascade; alter database %s set default_transaction_read_only = on`,
			journal.ErrReadOnly, "primary server",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			url := newDatabase(t)
			mustOpen(t, url).Close()
			execute(t, url, strings.ReplaceAll(test.spoil, "%s", databaseOf(t, url)))
			s, err := Open(t.Context(), url)
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			if !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), databaseOf(t, url)) {
				t.Errorf("got %q, want %q and %q", err, test.kind, test.says)
			}
		})
	}
}

func databaseOf(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

// Errors of later requests wrap their sentinels.
func TestTroubleLater(t *testing.T) {
	url := newDatabase(t)
	s := mustOpen(t, url)
	execute(t, url, `drop table autobatcher.lines`)
	if err := beat(t.Context(), s, "a", time.Hour); err != nil {
		t.Fatal(err)
	}
	err := s.Begin(t.Context(), journal.Batch{Ref: "one", Owner: "a"}, []journal.Line{{}})
	if !errors.Is(err, journal.ErrDamaged) {
		t.Errorf("Begin: %v, want ErrDamaged", err)
	}
	if err := s.Advance(t.Context(), "a", "one", journal.Step{State: journal.Creating}); !errors.Is(err, journal.ErrNoBatch) {
		t.Errorf("Advance: %v, want ErrNoBatch", err)
	}
}

// No error contains the password.
func TestErrorsHideThePassword(t *testing.T) {
	for _, address := range []string{
		"postgres://someone:hunter2@127.0.0.1:1/journal?connect_timeout=1",
		"postgres://someone:hunter2@127.0.0.1:1/journal?sslmode=nonsense",
		"host=127.0.0.1 port=nonsense user=someone password=hunter2",
	} {
		s, err := Open(t.Context(), address)
		if err == nil {
			s.Close()
			t.Fatal("opened")
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error %q", err)
		}
	}
}

// Replicas starting at the same time make a single journal.
func TestOpenAtOnce(t *testing.T) {
	url := newDatabase(t)
	var mu sync.Mutex
	keys := make(map[journal.Hash]bool)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := Open(t.Context(), url)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			key, err := s.Key(t.Context())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			keys[key] = true
		})
	}
	wg.Wait()
	if len(keys) != 1 {
		t.Errorf("%d journals were made", len(keys))
	}
}

// A role with permission to read and write the tables can use the journal.
func TestHumbleRole(t *testing.T) {
	address := newDatabase(t)
	mustOpen(t, address).Close()
	role := "humble_" + databaseOf(t, address)
	execute(t, address, fmt.Sprintf(`
		create role %[1]s login;
		grant usage on schema autobatcher to %[1]s;
		grant select, insert, update, delete on all tables in schema autobatcher to %[1]s`, role))
	s := mustOpen(t, strings.Replace(address, "user=postgres", "user="+role, 1))
	if err := beat(t.Context(), s, "a", time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := s.Begin(t.Context(), journal.Batch{Ref: "one", Owner: "a"}, []journal.Line{{}}); err != nil {
		t.Fatal(err)
	}
}

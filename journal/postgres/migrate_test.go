//go:build unix

package postgres

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/autobatcher/autobatcher/journal"
)

var testAccount = journal.Hash{9}

// oldRows are rows as the first version of the schema had them, with a batch of four
// lines. One line was released, and one was delivered.
const oldRows = `
	create schema autobatcher;
	create table autobatcher.schema_version (version integer primary key, since timestamptz not null default clock_timestamp());
	insert into autobatcher.schema_version values (1);
	set search_path to autobatcher, pg_catalog;
	%[1]s;
	insert into owners (name, heard, until) values ('old', now(), now() + %[2]s);
	insert into batches (ref, owner, payer, upstream, provider, endpoint, "window", models, state, input_file, batch_id, lines)
		values ('one', 1, '\x%[3]x', 'https://api.example.com/v1', 'example', '/v1/embeddings', '24h', '{m}', 'running', 'file-1', 'batch-1', 4),
			('two', null, '\x%[3]x', 'https://api.example.com/v1', 'example', '/v1/embeddings', '24h', '{m}', 'ended', 'file-2', 'batch-2', 1);
	insert into lines values
		(1, 0, 1, '\x01000000000000000000000000000000', 'id0'),
		(1, 1, null, '\x01000000000000000000000000000000', 'id1'),
		(1, 3, 1, '\x02000000000000000000000000000000', 'id3')`

// oldJournal makes a journal of the first version, whose owner's lease ends after an
// interval.
func oldJournal(t *testing.T, lease string) (url string) {
	t.Helper()
	url = newDatabase(t)
	first, err := schema.ReadFile("schema/001.sql")
	if err != nil {
		t.Fatal(err)
	}
	execute(t, url, fmt.Sprintf(oldRows, first, lease, testAccount[:]))
	return url
}

// A journal of the first version is migrated: every line that was not delivered is
// open, and nothing else is lost.
func TestMigration(t *testing.T) {
	s := mustOpen(t, oldJournal(t, "interval '-1 second'"))
	if err := beat(t.Context(), s, "new", time.Hour); err != nil {
		t.Fatal(err)
	}
	want := []journal.Batch{{
		Ref: "one", Account: testAccount, Upstream: "https://api.example.com/v1", Provider: "example", Endpoint: "/v1/embeddings",
		Window: "24h", Models: []string{"m"}, State: journal.Running, InputFileID: "file-1", BatchID: "batch-1", Lines: 4, Delivered: 1, Open: 3,
	}, {
		Ref: "two", Account: testAccount, Upstream: "https://api.example.com/v1", Provider: "example", Endpoint: "/v1/embeddings",
		Window: "24h", Models: []string{"m"}, State: journal.Ended, InputFileID: "file-2", BatchID: "batch-2", Lines: 1, Delivered: 1,
	}}
	got, err := s.Batches(t.Context(), journal.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(journal.Batch{}, "Began")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	taken, err := s.TakeOver(t.Context(), "new", testAccount, []journal.Hash{{1}, {2}, {1}, {1}})
	if err != nil || len(taken) != 1 || len(taken[0].Lines) != 3 {
		t.Fatalf("took %v, %v, want three lines of one batch", taken, err)
	}
	if claimed, err := s.Claim(t.Context(), "new", "one"); !claimed || err != nil {
		t.Errorf("Claim = %v, %v", claimed, err)
	}
	if err := s.Deliver(t.Context(), "new", "one", []int{0, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Forget(t.Context(), time.Hour, 0); n != 1 || err != nil {
		t.Errorf("Forget = %d, %v, want 1", n, err)
	}
}

// While a process of the old version has a lease, the journal is left as it is.
func TestMigrationWaits(t *testing.T) {
	url := oldJournal(t, "interval '1 hour'")
	s, err := Open(t.Context(), url)
	if err == nil {
		s.Close()
	}
	if !errors.Is(err, journal.ErrOlderInUse) || !strings.Contains(err.Error(), "stop the other processes") {
		t.Errorf("Open: %v, want ErrOlderInUse", err)
	}
	execute(t, url, `update autobatcher.owners set until = now()`) // fails if the owners are gone
	mustOpen(t, url)
}

// Ids of owners of the old version are not used again.
func TestMigrationKeepsIDs(t *testing.T) {
	s := mustOpen(t, oldJournal(t, "interval '-1 second'"))
	if err := beat(t.Context(), s, "new", time.Hour); err != nil {
		t.Fatal(err)
	}
	held, err := s.Held(t.Context(), "new", testAccount, []journal.Hash{{1}})
	if len(held) != 0 || err != nil {
		t.Errorf("a new owner holds %v, %v", held, err)
	}
}

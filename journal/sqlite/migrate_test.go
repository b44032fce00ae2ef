package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/journal"
)

// oldRows are rows as the first version of the schema had them: of owner 1, which is
// dead, with a batch of four lines. One line was released, and one was delivered.
const oldRows = `
insert into owners values (1, 'old', %[1]d, %[2]d);
insert into batches values (7, 'one', 1, x'%[3]x', 'https://api.example.com/v1', 'example', '/v1/embeddings', '24h', '["m"]',
	'running', 'file-1', 'batch-1', '', 1000000, 2000000, 0, 4);
insert into batches values (8, 'two', null, x'%[3]x', 'https://api.example.com/v1', 'example', '/v1/embeddings', '24h', '["m"]',
	'ended', 'file-2', 'batch-2', 'completed', 1000000, 2000000, 3000000, 1);
insert into lines values (7, 0, 1, x'01000000000000000000000000000000', 'id0');
insert into lines values (7, 1, null, x'01000000000000000000000000000000', 'id1');
insert into lines values (7, 3, 1, x'02000000000000000000000000000000', 'id3');
pragma user_version = 1;
pragma application_id = 0x61626a72;`

// oldJournal makes a journal of the first version, whose owner's lease ends at until.
func oldJournal(t *testing.T, until time.Time) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "journal")
	first, err := schema.ReadFile("schema/001.sql")
	if err != nil {
		t.Fatal(err)
	}
	edit(t, path, "pragma journal_mode = wal")
	edit(t, path, string(first)+fmt.Sprintf(oldRows, now(), until.UnixMicro(), testAccount[:]))
	return path
}

// A journal of the first version is migrated: every line that was not delivered is
// open, and nothing else is lost.
func TestMigration(t *testing.T) {
	path := oldJournal(t, time.Now().Add(time.Hour)) // the process was killed
	s := mustOpen(t, path)
	mustBeat(t, s, "parent")
	ignored := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Began" }, cmp.Ignore())
	want := []journal.Batch{{
		Ref: "one", Account: testAccount, Upstream: "https://api.example.com/v1", Provider: "example", Endpoint: "/v1/embeddings",
		Window: "24h", Models: []string{"m"}, State: journal.Running, InputFileID: "file-1", BatchID: "batch-1",
		Created: time.Unix(2, 0).UTC(), Lines: 4, Delivered: 1, Open: 3,
	}, {
		Ref: "two", Account: testAccount, Upstream: "https://api.example.com/v1", Provider: "example", Endpoint: "/v1/embeddings",
		Window: "24h", Models: []string{"m"}, State: journal.Ended, InputFileID: "file-2", BatchID: "batch-2", Status: "completed",
		Created: time.Unix(2, 0).UTC(), Ended: time.Unix(3, 0).UTC(), Lines: 1, Delivered: 1,
	}}
	got, err := s.Batches(t.Context(), journal.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, ignored); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := take(t, s, 5); got != 2 {
		t.Errorf("took %d lines, want 2", got)
	}
	if claimed, err := s.Claim(t.Context(), "parent", "one"); !claimed || err != nil {
		t.Errorf("Claim = %v, %v", claimed, err)
	}
	if err := s.Deliver(t.Context(), "parent", "one", []int{0, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Forget(t.Context(), 0, time.Hour); n != 1 || err != nil {
		t.Errorf("Forget = %d, %v, want 1", n, err)
	}
	if b := only(t, s); b.Delivered != 4 {
		t.Errorf("%d lines are delivered, want 4", b.Delivered)
	}
	checkSound(t, path)
}

// While a process of the old version is alive, the journal is left as it is, also
// after the lease of the process has run out.
func TestMigrationWaits(t *testing.T) {
	for name, until := range map[string]time.Time{"leased": time.Now().Add(time.Hour), "lapsed": time.Now().Add(-time.Hour)} {
		t.Run(name, func(t *testing.T) {
			path := oldJournal(t, until)
			lock, err := lockFile(path + "-owner-1")
			if err != nil {
				t.Fatal(err)
			}
			_, err = Open(t.Context(), path)
			if !errors.Is(err, journal.ErrOlderInUse) || !strings.Contains(err.Error(), "stop the other processes") {
				t.Errorf("Open: %v, want ErrOlderInUse", err)
			}
			if v := userVersion(t, path); v != 1 {
				t.Errorf("the schema has version %d, want 1", v)
			}
			lock.Close()
			mustOpen(t, path)
			if v := userVersion(t, path); v != version {
				t.Errorf("the schema has version %d, want %d", v, version)
			}
		})
	}
}

// Ids of owners of the old version are not used again.
func TestMigrationKeepsIDs(t *testing.T) {
	path := oldJournal(t, time.Now())
	s := mustOpen(t, path)
	mustBeat(t, s, "new")
	if _, err := os.Stat(path + "-owner-2"); err != nil {
		t.Error(err)
	}
	held, err := s.Held(t.Context(), "new", testAccount, []journal.Hash{{1}})
	if len(held) != 0 || err != nil {
		t.Errorf("a new owner holds %v, %v", held, err)
	}
}

func userVersion(t *testing.T, path string) (v int) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(context.Background(), `pragma user_version`).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

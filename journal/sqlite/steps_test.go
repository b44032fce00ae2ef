package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// number reads one number from the file.
func number(t *testing.T, s *Store, query string) (n int) {
	t.Helper()
	if err := s.reads.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A death changes the owners table and nothing else.
func TestDeathRewritesNothing(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	mustBeat(t, s, "dead")
	mustBeat(t, s, "parent")
	for _, lines := range []int{10, 1000} {
		if err := s.Begin(t.Context(), testBatch("dead", string(rune('a'+lines%7))), testLines(lines)); err != nil {
			t.Fatal(err)
		}
	}
	if err := beat(t.Context(), s, "dead", 0); err != nil {
		t.Fatal(err)
	}
	if got := take(t, s, 15); got != 15 {
		t.Errorf("took %d lines, want 15", got)
	}
	if got := number(t, s, `select count(*) from lines where owner = 1`); got != 995 {
		t.Errorf("%d lines have the id of the dead owner, want 995", got)
	}
	if got := number(t, s, `select count(*) from batches where owner = 1`); got != 2 {
		t.Errorf("%d batches have the id of the dead owner, want 2", got)
	}
}

// A batch that is begun in steps appears when its last step is done.
func TestBeginInSteps(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	mustBeat(t, s, "a")
	mustBeat(t, s, "parent")
	if err := s.begin(t.Context(), testBatch("a", "one"), testLines(1000), 100); err != nil {
		t.Fatal(err)
	}
	if b := only(t, s); b.Lines != 1000 || b.Held != 1000 {
		t.Errorf("%d lines, %d held, want 1000", b.Lines, b.Held)
	}
	if err := s.begin(t.Context(), testBatch("a", "one"), testLines(1000), 100); !errors.Is(err, journal.ErrExists) {
		t.Errorf("Begin again: %v, want ErrExists", err)
	}
	if err := beat(t.Context(), s, "a", 0); err != nil {
		t.Fatal(err)
	}
	if got := take(t, s, 2000); got != 1000 {
		t.Errorf("took %d lines, want 1000", got)
	}
}

// A take-over in steps takes the same lines as in a single step, in the same order.
func TestTakeOverInSteps(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	mustBeat(t, s, "a")
	mustBeat(t, s, "parent")
	for _, ref := range []string{"one", "two"} {
		if err := s.Begin(t.Context(), testBatch("a", ref), testLines(600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := beat(t.Context(), s, "a", 0); err != nil {
		t.Fatal(err)
	}
	taken, err := s.takeOver(t.Context(), "parent", testAccount, slices.Repeat([]journal.Hash{{1}, {2}}, 700), 100)
	if err != nil || len(taken) != 2 || len(taken[0].Lines) != 600 || len(taken[1].Lines) != 100 {
		t.Fatalf("took %d batches, %v, want 600 lines of the first and 100 of the second", len(taken), err)
	}
	for n, l := range taken[1].Lines {
		if l.N != n {
			t.Errorf("line %d is at %d", l.N, n)
		}
	}
}

// A Begin that ends in the middle leaves nothing that is visible, and Forget removes
// its lines: at once if the Begin failed, and after the death of the owner if the
// process ended.
func TestBeginInterrupted(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	mustBeat(t, s, "parent")
	for _, test := range []struct {
		name      string
		interrupt func(n *newBatch)
		left      int // after a Forget while the owner is alive
	}{
		{"failed", func(n *newBatch) { s.giveUp(n.id) }, 0},
		{"killed", func(*newBatch) {}, 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			mustBeat(t, s, "a")
			n := &newBatch{Batch: testBatch("a", "one"), lines: testLines(1000)}
			err := errors.Join(
				s.update(t.Context(), "a", func(tx *sql.Tx) error { return n.insert(t.Context(), tx) }),
				s.transact(t.Context(), func(tx *sql.Tx) error { return n.insertLines(t.Context(), tx, 0, 200) }))
			if err != nil {
				t.Fatal(err)
			}
			if got := take(t, s, 10); got != 0 {
				t.Errorf("took %d lines of a batch that is not begun", got)
			}
			if all, err := s.Batches(t.Context(), journal.Filter{}); len(all) != 0 || err != nil {
				t.Errorf("batches %v, %v, want none", all, err)
			}
			test.interrupt(n)
			forget(t, s)
			if got := number(t, s, `select count(*) from lines`); got != test.left {
				t.Errorf("%d lines are left, want %d", got, test.left)
			}
			if err := beat(t.Context(), s, "a", 0); err != nil {
				t.Fatal(err)
			}
			if err := s.update(t.Context(), "a", func(tx *sql.Tx) error { return n.finish(t.Context(), tx) }); !errors.Is(err, journal.ErrLapsed) {
				t.Errorf("the rest of Begin: %v, want ErrLapsed", err)
			}
			forget(t, s)
			if got := number(t, s, `select (select count(*) from lines) + (select count(*) from batches)`); got != 0 {
				t.Errorf("%d rows are left, want none", got)
			}
			if err := s.update(t.Context(), "a", func(tx *sql.Tx) error { return n.finish(t.Context(), tx) }); !errors.Is(err, journal.ErrLapsed) {
				t.Errorf("the rest of Begin after Forget: %v, want ErrLapsed", err)
			}
		})
	}
}

func forget(t *testing.T, s *Store) {
	t.Helper()
	if _, err := s.Forget(t.Context(), time.Hour, time.Hour); err != nil {
		t.Fatal(err)
	}
}

// Forget marks more batches than one transaction does, and deletes batches that an
// interrupted Forget has marked.
func TestForgetMarks(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	mustBeat(t, s, "a")
	mustBeat(t, s, "parent")
	for _, ref := range []string{"one", "two", "three", "four", "five"} {
		err := errors.Join(
			s.Begin(t.Context(), testBatch("a", ref), testLines(3)),
			s.Advance(t.Context(), "a", ref, journal.Step{State: journal.Ended}),
			s.Release(t.Context(), "a", ref, []int{0, 1, 2}))
		if err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.markOld(t.Context(), 0, time.Hour, 2); n != 2 || err != nil {
		t.Errorf("marked %d, %v, want 2", n, err)
	}
	if got := take(t, s, 100); got != 9 {
		t.Errorf("took %d lines, want 9: two batches are being deleted", got)
	}
	if err := s.Release(t.Context(), "parent", "three", []int{0, 1, 2}); err != nil {
		t.Fatal(err)
	}
	if err := beat(t.Context(), s, "parent", 0); err != nil {
		t.Fatal(err)
	}
	if n, err := s.forget(t.Context(), 0, time.Hour, 2); n != 5 || err != nil {
		t.Errorf("forgot %d, %v, want 5", n, err)
	}
	if got := number(t, s, `select count(*) from lines`); got != 0 {
		t.Errorf("%d lines are left", got)
	}
}

// A Forget that was overtaken by another Forget deletes nothing of a batch that was begun
// meanwhile: SQLite gives a new batch the id of the last deleted batch.
func TestForgetOfAnIDUsedAgain(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	mustBeat(t, s, "a")
	for _, test := range []struct {
		name  string
		begin func(n *newBatch) error
	}{
		{"begun", func(n *newBatch) error { return s.Begin(t.Context(), n.Batch, n.lines) }},
		{"being begun in steps", func(n *newBatch) error {
			return errors.Join(
				s.update(t.Context(), "a", func(tx *sql.Tx) error { return n.insert(t.Context(), tx) }),
				s.transact(t.Context(), func(tx *sql.Tx) error { return n.insertLines(t.Context(), tx, 0, 3) }))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := number(t, s, `select count(*) from lines`)
			if err := test.begin(&newBatch{Batch: testBatch("a", test.name), lines: testLines(3)}); err != nil {
				t.Fatal(err)
			}
			id := number(t, s, `select max(id) from batches`)
			if deleted, err := s.delete(t.Context(), int64(id)); deleted || err != nil {
				t.Errorf("deleted: %v, %v, want false", deleted, err)
			}
			if got := number(t, s, `select count(*) from lines`); got != before+3 {
				t.Errorf("%d of 3 new lines are left", got-before)
			}
		})
	}
}

// A withdrawal in steps withdraws the same lines as in a single step, and leaves nothing.
func TestWithdrawInSteps(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	mustBeat(t, s, "a")
	mustBeat(t, s, "parent")
	for _, lines := range []int{600, 10} {
		if err := s.Begin(t.Context(), testBatch("a", fmt.Sprint(lines)), testLines(lines)); err != nil {
			t.Fatal(err)
		}
	}
	n, err := s.withdraw(t.Context(), testAccount, []journal.Hash{{1}, {9}, {}, {2}}, 3, 100)
	if n != 610 || err != nil {
		t.Errorf("withdrew %d lines, %v, want 610", n, err)
	}
	for _, table := range []string{"lines", "holds", "runs"} {
		if got := number(t, s, `select count(*) from `+table); got != 0 {
			t.Errorf("%d rows of %s are left", got, table)
		}
	}
}

// After a large deletion the file and its log are small again.
func TestForgetShrinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	s := mustOpen(t, path)
	mustBeat(t, s, "a")
	if err := s.Begin(t.Context(), testBatch("a", "one"), testLines(20_000)); err != nil {
		t.Fatal(err)
	}
	if err := s.Advance(t.Context(), "a", "one", journal.Step{State: journal.Ended}); err != nil {
		t.Fatal(err)
	}
	if err := beat(t.Context(), s, "a", 0); err != nil {
		t.Fatal(err)
	}
	s.shrink(t.Context()) // the log goes into the file
	before := sizeOf(t, path)
	if n, err := s.Forget(t.Context(), 0, time.Hour); n != 1 || err != nil {
		t.Fatalf("Forget = %d, %v", n, err)
	}
	if after := sizeOf(t, path); after > before/10 {
		t.Errorf("the file has %d bytes, and had %d", after, before)
	}
	if log := sizeOf(t, path+"-wal"); log != 0 {
		t.Errorf("the log has %d bytes, want none", log)
	}
}

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// Heartbeats do not wait for lists: a list in progress occupies none of what a
// heartbeat needs.
func TestHeartbeatBesideLists(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	mustBeat(t, s, "a")
	err := s.view(t.Context(), func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(t.Context(), `select * from owners`)
		if err != nil {
			return err
		}
		defer rows.Close()
		rows.Next()
		return beat(t.Context(), s, "a", time.Hour)
	})
	if err != nil {
		t.Error(err)
	}
}

// A request with a deadline waits for another writer until the deadline, whatever
// the writeTimeout of the Store is.
func TestDeadlineIsTheOnlyLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	s, err := open(t.Context(), path, time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	unlock := holdLock(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = beat(ctx, s, "a", time.Hour)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, journal.ErrBusy) {
		t.Errorf("Heartbeat: %v, want DeadlineExceeded and ErrBusy", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	time.AfterFunc(20*time.Millisecond, unlock)
	if err := beat(ctx, s, "a", time.Hour); err != nil {
		t.Errorf("Heartbeat: %v, want none", err)
	}
}

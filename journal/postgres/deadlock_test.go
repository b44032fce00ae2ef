//go:build unix

package postgres

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

// Withdraw meets no other request in a deadlock, although each request counts lines of
// several holders. A deadlock would not fail a request, since requests are repeated.
func TestWithdrawWithoutDeadlocks(t *testing.T) {
	url := newDatabase(t)
	own := []journal.Hash{{1}, {2}}
	done, began := make(chan struct{}), time.Now()
	var wg sync.WaitGroup
	var all []*Store
	for i := range 3 {
		s, owner := mustOpen(t, url), fmt.Sprint("owner", i)
		all = append(all, s)
		if err := beat(t.Context(), s, owner, time.Hour); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-done:
					return
				default:
				}
				if err := passOn(t.Context(), s, owner, fmt.Sprint(owner, "-", round), own); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	withdrawn, s := 0, mustOpen(t, url)
	for withdrawn < 100 && time.Since(began) < time.Minute {
		n, err := s.Withdraw(t.Context(), testAccount, own)
		if err != nil {
			t.Error(err)
			break
		}
		withdrawn += n
	}
	close(done)
	wg.Wait()
	for _, s := range append(all, s) {
		s.Close() // sends the server's counts
	}
	if n := deadlocks(t, url); n != 0 || withdrawn == 0 {
		t.Errorf("%d deadlocks, and %d lines were withdrawn", n, withdrawn)
	}
}

// passOn begins a batch, takes over and releases lines of all owners, delivers lines,
// and deletes the ended batches. Of each batch, Withdraw withdraws a released line and
// lines of the owner. No request waits for another at these lines: the owner changes the
// other lines of the batch.
func passOn(ctx context.Context, s *Store, owner, ref string, withdrawn []journal.Hash) error {
	other := journal.Hash{9}
	lines := []journal.Line{{Fingerprint: withdrawn[0]}, {Fingerprint: withdrawn[1]}}
	for range 20 {
		lines = append(lines, journal.Line{Fingerprint: other})
	}
	err := inOrder(
		func() error { return s.Begin(ctx, journal.Batch{Ref: ref, Owner: owner, Account: testAccount}, lines) },
		func() error { return s.Advance(ctx, owner, ref, journal.Step{State: journal.Running}) },
		func() error { return s.Release(ctx, owner, ref, []int{0}) })
	for n := 2; n < len(lines) && err == nil; n += 2 {
		err = inOrder(
			func() error { return s.Release(ctx, owner, ref, []int{n, n + 1}) },
			func() error { _, err := s.TakeOver(ctx, owner, testAccount, []journal.Hash{other}); return err },
			func() error { return s.Deliver(ctx, owner, ref, []int{n, n + 1}) })
	}
	if err != nil {
		return err
	}
	return inOrder(
		func() error { return s.Release(ctx, owner, ref, []int{1}) },
		func() error { _, err := s.Abandon(ctx, owner, ref); return err },
		func() error { return s.Advance(ctx, owner, ref, journal.Step{State: journal.Ended}) },
		func() error { _, err := s.Forget(ctx, 0, time.Hour); return err })
}

func deadlocks(t *testing.T, url string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	err = conn.QueryRow(t.Context(), `select deadlocks from pg_stat_database where datname = current_database()`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// Heartbeat implements journal.Store.
func (s *Store) Heartbeat(ctx context.Context, owner string, lease time.Duration) (fresh bool, err error) {
	var id int64
	var lock *os.File // of an owner that is new
	err = s.transact(ctx, func(tx *sql.Tx) (err error) {
		id, err = idOf(ctx, tx, owner)
		fresh = id == 0 || lease <= 0
		switch {
		case err != nil:
			return err
		case lease <= 0:
			return end(ctx, tx, id)
		case id == 0:
			id, lock, err = s.join(ctx, tx, owner, lease)
			return err
		}
		_, err = tx.ExecContext(ctx, `update owners set heard = ?, until = ? where id = ?`,
			now(), now()+lease.Microseconds(), id)
		return err
	})
	if lease <= 0 && err == nil {
		s.unlock(id)
	}
	if lock == nil {
		return fresh, err
	}
	if err != nil {
		lock.Close()
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for old, o := range s.alive {
		if o.name == owner { // another process has buried it
			o.lock.Close()
			delete(s.alive, old)
		}
	}
	s.alive[id] = living{owner, lock}
	return fresh, nil
}

// A living owner keeps a file locked.
type living struct {
	name string
	lock *os.File
}

// join makes the owner known, and locks the file that shows it lives.
func (s *Store) join(ctx context.Context, tx *sql.Tx, owner string, lease time.Duration) (id int64, lock *os.File, err error) {
	err = tx.QueryRowContext(ctx, `insert into owners (name, heard, until) values (?, ?, ?) returning id`,
		owner, now(), now()+lease.Microseconds()).Scan(&id)
	if err == nil {
		lock, err = lockFile(s.lockPath(id))
	}
	return id, lock, err
}

// end ends an owner's lease and opens all it holds. When that is committed its
// lock is to be opened, too.
func end(ctx context.Context, tx *sql.Tx, id int64) error {
	for _, change := range []string{
		`delete from owners where id = ?`,
		`update batches set owner = null where owner = ?`,
		`update lines set owner = null where owner = ?`,
	} {
		if _, err := tx.ExecContext(ctx, change, id); err != nil {
			return err
		}
	}
	return nil
}

// unlock opens the locks of owners whose leases have ended, and removes them.
func (s *Store) unlock(owners ...int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range owners {
		if o, here := s.alive[id]; here {
			o.lock.Close()
			delete(s.alive, id)
		}
		os.Remove(s.lockPath(id))
	}
}

// lockPath is the file that an owner keeps locked as long as it lives.
func (s *Store) lockPath(id int64) string { return fmt.Sprintf("%s-owner-%d", s.path, id) }

// bury ends the leases of owners that died, or were not heard of for too long,
// and returns who they were.
func (s *Store) bury(ctx context.Context, tx *sql.Tx) ([]int64, error) {
	dead, err := s.dead(ctx, tx)
	for _, id := range dead {
		if err := end(ctx, tx, id); err != nil {
			return nil, err
		}
	}
	return dead, err
}

func (s *Store) dead(ctx context.Context, tx *sql.Tx) (dead []int64, err error) {
	rows, err := tx.QueryContext(ctx, `select id, until <= ? from owners`, now())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var lapsed bool
		if err := rows.Scan(&id, &lapsed); err != nil {
			return nil, err
		}
		if lapsed || !s.lives(id) {
			dead = append(dead, id)
		}
	}
	return dead, rows.Err()
}

// lives reports whether an owner's process still runs, as far as one can know.
func (s *Store) lives(id int64) bool {
	s.mu.Lock()
	_, here := s.alive[id]
	s.mu.Unlock()
	return here || locked(s.lockPath(id))
}

// idOf finds an owner, 0 if there is none of this name.
func idOf(ctx context.Context, tx *sql.Tx, owner string) (id int64, err error) {
	err = tx.QueryRowContext(ctx, `select id from owners where name = ?`, owner).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return id, err
}

// leased finds an owner that must have a lease. The dead are buried already.
func leased(ctx context.Context, tx *sql.Tx, owner string) (id int64, err error) {
	id, err = idOf(ctx, tx, owner)
	if err == nil && id == 0 {
		err = journal.ErrLapsed
	}
	return id, err
}

// Owners implements journal.Store.
func (s *Store) Owners(ctx context.Context) (all []journal.Owner, err error) {
	err = s.update(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `select name, ?1 - heard, until - ?1 from owners order by name`, now())
		if err != nil {
			return err
		}
		defer rows.Close()
		all = nil
		for rows.Next() {
			var o journal.Owner
			var silent, left int64
			if err := rows.Scan(&o.Name, &silent, &left); err != nil {
				return err
			}
			o.Silent, o.Left = time.Duration(silent)*time.Microsecond, time.Duration(left)*time.Microsecond
			all = append(all, o)
		}
		return rows.Err()
	})
	return all, err
}

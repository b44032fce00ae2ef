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

// renew renews the lease of an owner.
const renew = `update owners set heard = ?, until = ? where id = ?`

// Heartbeat implements journal.Store.
func (s *Store) Heartbeat(ctx context.Context, owner string, lease time.Duration) (expired bool, err error) {
	if lease <= 0 {
		return true, s.leave(ctx, owner)
	}
	var id int64
	var lock *os.File // of an owner that is new
	err = s.transact(ctx, func(tx *sql.Tx) (err error) {
		if id, err = idOf(ctx, tx, owner); err != nil {
			return err
		}
		if id == 0 {
			id, lock, err = s.join(ctx, tx, owner, lease)
			return err
		}
		_, err = tx.ExecContext(ctx, renew, now(), now()+lease.Microseconds(), id)
		return err
	})
	if lock == nil {
		return false, err
	}
	if err != nil {
		lock.Close()
		return false, err
	}
	s.joined(id, living{owner, lock})
	return true, nil
}

// leave removes an owner. All lines and batches of the owner are open.
func (s *Store) leave(ctx context.Context, owner string) error {
	var id int64
	err := s.transact(ctx, func(tx *sql.Tx) (err error) {
		if id, err = idOf(ctx, tx, owner); err != nil || id == 0 {
			return err
		}
		return remove(ctx, tx, id)
	})
	if err == nil && id != 0 {
		s.unlock(id)
	}
	return err
}

// A living owner keeps a file locked.
type living struct {
	name string
	lock *os.File
}

// join adds an owner, and locks the file of the owner.
func (s *Store) join(ctx context.Context, tx *sql.Tx, owner string, lease time.Duration) (id int64, lock *os.File, err error) {
	err = tx.QueryRowContext(ctx, `insert into owners (name, heard, until) values (?, ?, ?) returning id`,
		owner, now(), now()+lease.Microseconds()).Scan(&id)
	if err == nil {
		lock, err = lockFile(s.lockPath(id))
	}
	return id, lock, err
}

// joined keeps the lock of an owner, and closes the lock from before the death of an
// owner of the same name.
func (s *Store) joined(id int64, o living) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for old, before := range s.alive {
		if before.name == o.name {
			before.lock.Close()
			delete(s.alive, old)
		}
	}
	s.alive[id] = o
}

// remove deletes an owner. The lines and batches of the owner do not change: they are
// open because no owner of the id exists. The caller must unlock after the commit.
func remove(ctx context.Context, tx *sql.Tx, id int64) error {
	_, err := tx.ExecContext(ctx, `delete from owners where id = ?`, id)
	return err
}

// unlock unlocks and removes the files of removed owners.
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

// lockPath is the file locked by an owner's process.
func (s *Store) lockPath(id int64) string { return fmt.Sprintf("%s-owner-%d", s.path, id) }

// removeDead removes the expired owners and the owners of ended processes, except for the
// owner of the request, and returns the ids.
func (s *Store) removeDead(ctx context.Context, tx *sql.Tx, except string) ([]int64, error) {
	dead, err := s.dead(ctx, tx, except)
	for _, id := range dead {
		if err := remove(ctx, tx, id); err != nil {
			return nil, err
		}
	}
	return dead, err
}

func (s *Store) dead(ctx context.Context, tx *sql.Tx, except string) (dead []int64, err error) {
	rows, err := tx.QueryContext(ctx, `select id, until <= ? from owners where name <> ?`, now(), except)
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

// removeDeadBeforeReading removes dead owners before a list shows their lines as open. It
// writes only if an owner is dead.
func (s *Store) removeDeadBeforeReading(ctx context.Context) error {
	var dead []int64
	err := s.view(ctx, func(tx *sql.Tx) (err error) {
		dead, err = s.dead(ctx, tx, "")
		return err
	})
	if err != nil || len(dead) == 0 {
		return err
	}
	return s.update(ctx, "", func(*sql.Tx) error { return nil })
}

// lives reports whether the process of an owner runs, as far as is known.
func (s *Store) lives(id int64) bool {
	s.mu.Lock()
	_, here := s.alive[id]
	s.mu.Unlock()
	return here || locked(s.lockPath(id))
}

// idOf finds an owner, 0 if the name is unknown.
func idOf(ctx context.Context, tx *sql.Tx, owner string) (id int64, err error) {
	err = tx.QueryRowContext(ctx, `select id from owners where name = ?`, owner).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return id, err
}

// leased finds an owner with a running lease.
func leased(ctx context.Context, tx *sql.Tx, owner string) (id int64, err error) {
	err = tx.QueryRowContext(ctx, `select id from owners where name = ? and until > ?`, owner, now()).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = journal.ErrLapsed
	}
	return id, err
}

// Owners implements journal.Store.
func (s *Store) Owners(ctx context.Context) (all []journal.Owner, err error) {
	if err := s.removeDeadBeforeReading(ctx); err != nil {
		return nil, err
	}
	err = s.view(ctx, func(tx *sql.Tx) error {
		all = nil
		rows, err := tx.QueryContext(ctx, `
			select name, ?1 - heard, until - ?1 from owners where until > ?1 order by name`, now())
		if err != nil {
			return err
		}
		defer rows.Close()
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

package postgres

import (
	"errors"
	"net"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/internal/trouble"
)

// advice says what to do about each of package journal's sentinel errors.
var advice = trouble.Advice{
	journal.ErrNewer:      "run the newer version, or give this one a database of its own",
	journal.ErrOlderInUse: "stop the other processes that use the journal, then start this one: it changes the tables",
	journal.ErrDamaged:    "restore the database, or drop its schema autobatcher; batches that run upstream are then unknown here, and their calls would be paid for again",
	journal.ErrFull:       "make room on the server's disk",
	journal.ErrReadOnly:   "use the primary server, and a role that owns the schema autobatcher or may create it",
	journal.ErrBusy:       "see in pg_stat_activity who holds the lock",
}

func (s *Store) explain(err error) error { return advice.Explain(s.name, err, kindOf(err)) }

// kindOf returns the sentinel error of package journal that describes err, nil if
// none does.
func kindOf(err error) error {
	if kind := advice.Kind(err); kind != nil {
		return kind
	}
	var failed *pgconn.PgError
	if !errors.As(err, &failed) {
		return nil
	}
	switch failed.Code {
	case "53100": // disk_full
		return journal.ErrFull
	case "25006", "42501": // read_only_sql_transaction, insufficient_privilege
		return journal.ErrReadOnly
	case "55P03", "40P01": // lock_not_available, deadlock_detected
		return journal.ErrBusy
	case "XX001", "XX002", "42P01", "42703": // data or index corrupted, table or column missing
		return journal.ErrDamaged
	}
	return nil
}

// nameOf names the database, without the password.
func nameOf(c *pgx.ConnConfig) string {
	return "postgres://" + net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))) + "/" + c.Database
}

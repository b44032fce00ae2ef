//go:build unix && !nodatabase

package simulation

import (
	"context"
	"flag"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/internal/pgtest"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/postgres"
)

func init() {
	inPostgres := flag.Bool("postgres", false, "keep each schedule's journal in a PostgreSQL database, to which each process connects, instead of in memory")
	var server *pgtest.Server
	prepareJournal = func(t *testing.T) {
		if *inPostgres {
			server = pgtest.Run(t)
		}
	}
	otherwise := newJournal
	newJournal = func(w *world) func() journal.Store {
		if *inPostgres {
			return postgresJournal(w, server)
		}
		return otherwise(w)
	}
}

// simulatedClock makes the database's clock a row of a table, which the
// simulation sets. PostgreSQL finds these functions before its own if the search
// path names their schema first.
const simulatedClock = `
	create schema autobatcher;
	create table autobatcher.simulated_clock (at timestamptz not null);
	insert into autobatcher.simulated_clock values ('2000-01-01');
	create function autobatcher.clock_timestamp() returns timestamptz language sql volatile as
		'select at from autobatcher.simulated_clock';
	create function autobatcher.now() returns timestamptz language sql volatile as
		'select at from autobatcher.simulated_clock';
	create function autobatcher.statement_timestamp() returns timestamptz language sql volatile as
		'select at from autobatcher.simulated_clock';`

// postgresJournal makes a database whose clock is the schedule's.
func postgresJournal(w *world, server *pgtest.Server) func() journal.Store {
	ctx := context.Background()
	url, err := server.NewDatabase(ctx)
	if err != nil {
		w.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { conn.Close(ctx) })
	if _, err := conn.Exec(ctx, simulatedClock); err != nil {
		w.Fatal(err)
	}
	w.setJournalClock = clockSetter(w, conn)
	return func() journal.Store {
		w.setJournalClock()
		store, err := postgres.Open(ctx, url+"&search_path=autobatcher,pg_catalog&pool_max_conns=2")
		if err != nil {
			w.failf("journal: %v", err)
		}
		return store
	}
}

// clockSetter returns a function that sets the database's clock to the time of
// the schedule. The function may be called concurrently.
func clockSetter(w *world, conn *pgx.Conn) func() {
	var mu sync.Mutex
	var last time.Time
	return func() {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if now.Equal(last) {
			return
		}
		last = now
		if _, err := conn.Exec(context.Background(), "update autobatcher.simulated_clock set at = $1", now); err != nil {
			w.failf("journal: the clock could not be set: %v", err)
		}
	}
}

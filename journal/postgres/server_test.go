//go:build unix

package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/internal/pgtest"
)

// server is the PostgreSQL of all tests; nil if there is none.
var server *pgtest.Server

// TestMain starts a PostgreSQL server for all tests. Without one they are
// skipped, or fail where the environment says AUTOBATCHER_POSTGRES=required.
func TestMain(m *testing.M) {
	if os.Getenv(asChild) != "" {
		playChild(os.Args[1])
		return
	}
	os.Exit(runWithServer(m))
}

func runWithServer(m *testing.M) int {
	var err error
	server, err = pgtest.Start()
	switch {
	case errors.Is(err, pgtest.ErrNotInstalled) && os.Getenv("AUTOBATCHER_POSTGRES") != "required":
		return m.Run()
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	return m.Run()
}

// newDatabase makes an empty database and returns its URL. It goes with the
// server.
func newDatabase(t testing.TB) string {
	t.Helper()
	if server == nil {
		t.Skip(pgtest.ErrNotInstalled)
	}
	url, err := server.NewDatabase(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// execute runs statements.
func execute(t testing.TB, url string, statements ...string) {
	t.Helper()
	ctx := context.Background() // a test's own has ended when it cleans up
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, strings.Join(statements, ";")); err != nil {
		t.Fatal(err)
	}
}

//go:build unix

package postgres

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// socketDir is where the server listens; "" if there is none.
var socketDir string

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
	bin := serverPrograms()
	if bin == "" {
		if os.Getenv("AUTOBATCHER_POSTGRES") == "required" {
			fmt.Fprintln(os.Stderr, "AUTOBATCHER_POSTGRES=required, but there is no initdb")
			return 1
		}
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "autobatcher-postgres-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := startServer(bin, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer stopServer(bin, dir)
	socketDir = dir
	return m.Run()
}

// serverPrograms finds the folder that initdb and pg_ctl are in.
func serverPrograms() string {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil && exists(filepath.Join(filepath.Dir(path), "pg_ctl")) {
			return filepath.Dir(path)
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // where Debian has it
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[len(found)-1])
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// startServer starts a server that listens on a socket in dir, and nowhere
// else. It keeps fsync on: the benchmarks measure what users get.
func startServer(bin, dir string) error {
	data := filepath.Join(dir, "data")
	if err := asServer(dir, bin+"/initdb", "--pgdata", data, "--auth", "trust", "--username", "postgres", "--encoding", "UTF8", "--locale", "C"); err != nil {
		return err
	}
	options := "-c listen_addresses='' -c max_connections=200 -k " + dir
	return asServer(dir, bin+"/pg_ctl", "start", "--wait", "--pgdata", data, "--log", filepath.Join(dir, "log"), "--options", options)
}

func stopServer(bin, dir string) {
	if err := asServer(dir, bin+"/pg_ctl", "stop", "--wait", "--mode", "immediate", "--pgdata", filepath.Join(dir, "data")); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// asServer runs a program as the user whose the server is: PostgreSQL refuses
// to run as root.
func asServer(dir, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	if os.Getuid() == 0 {
		uid, gid, err := serverUser()
		if err != nil {
			return err
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			return err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	// Not a pipe: the server inherits it and would keep it open.
	out, err := os.CreateTemp("", "autobatcher-postgres-out-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s: %w\n%s", filepath.Base(program), err, said)
	}
	return nil
}

func serverUser() (uid, gid int, err error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return 0, 0, err
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}

var databases atomic.Int64

// newDatabase makes an empty database and returns its URL. It goes with the
// server.
func newDatabase(t testing.TB) string {
	t.Helper()
	if socketDir == "" {
		t.Skip("there is no initdb: install PostgreSQL to run this test")
	}
	name := fmt.Sprintf("journal%d", databases.Add(1))
	execute(t, databaseURL("postgres"), "create database "+name)
	return databaseURL(name)
}

func databaseURL(name string) string {
	return "postgres:///" + name + "?" + url.Values{"host": {socketDir}, "user": {"postgres"}}.Encode()
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

//go:build unix

// Package pgtest starts PostgreSQL servers for tests and benchmarks.
//
// A test calls Run, which also stops the server at the end of the test. A program
// without a testing.TB, such as a TestMain, calls Start and Stop. NewDatabase
// creates a database on the server and returns the URL. Down and Up simulate a
// crash and the restart of the server.
//
// The installed PostgreSQL is used: initdb from PATH, else the last by name
// below /usr/lib/postgresql. A root user needs the user "postgres" on the machine,
// because PostgreSQL refuses to run as root.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// ErrNotInstalled is the error of Start if PostgreSQL is not installed.
var ErrNotInstalled = errors.New("initdb not found: install PostgreSQL to run this test")

// A Server is a PostgreSQL server with a temporary data directory. The server
// listens only on a Unix socket in that directory. NewDatabase may be called
// concurrently; the other methods must not be called concurrently.
type Server struct {
	bin, dir  string
	databases atomic.Int64
}

// Run starts a server and stops the server at the end of the test. If PostgreSQL
// is not installed, Run skips the test; with AUTOBATCHER_POSTGRES=required in the
// environment, Run fails the test instead.
func Run(t testing.TB) *Server {
	t.Helper()
	s, err := Start()
	switch {
	case errors.Is(err, ErrNotInstalled) && os.Getenv("AUTOBATCHER_POSTGRES") != "required":
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Start starts a server. fsync stays on, so that benchmarks measure the speed of a
// durable database. The caller must call Stop.
func Start() (*Server, error) {
	bin := findBinDir()
	if bin == "" {
		return nil, ErrNotInstalled
	}
	dir, err := os.MkdirTemp("", "autobatcher-postgres-")
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: dir}
	if err := s.start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

func (s *Server) start() error {
	err := s.run("initdb", "--pgdata", s.data(), "--auth", "trust", "--username", "postgres", "--encoding", "UTF8", "--locale", "C")
	if err != nil {
		return err
	}
	return s.Up()
}

// Up starts the server after Down.
func (s *Server) Up() error {
	options := "-c listen_addresses='' -c max_connections=200 -k " + s.dir
	return s.run("pg_ctl", "start", "--wait", "--pgdata", s.data(), "--log", filepath.Join(s.dir, "log"), "--options", options)
}

// Down stops the server immediately, like a crash, and keeps the data.
func (s *Server) Down() error {
	return s.run("pg_ctl", "stop", "--wait", "--mode", "immediate", "--pgdata", s.data())
}

// Stop stops the server and removes the data.
func (s *Server) Stop() error { return errors.Join(s.Down(), os.RemoveAll(s.dir)) }

// NewDatabase creates an empty database and returns the URL of the database.
func (s *Server) NewDatabase(ctx context.Context) (string, error) {
	conn, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	if _, err := conn.Exec(ctx, "create database "+name); err != nil {
		return "", err
	}
	return s.url(name), nil
}

func (s *Server) url(database string) string {
	return "postgres:///" + database + "?" + url.Values{"host": {s.dir}, "user": {"postgres"}}.Encode()
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// findBinDir returns the directory of initdb and pg_ctl, or "" if PostgreSQL is not
// installed.
func findBinDir() string {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil && exists(filepath.Join(filepath.Dir(path), "pg_ctl")) {
			return filepath.Dir(path)
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // on Debian
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[len(found)-1])
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// run runs initdb or pg_ctl. As root, run uses the user "postgres", because
// PostgreSQL refuses to run as root.
func (s *Server) run(program string, args ...string) error {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = s.dir
	if os.Getuid() == 0 {
		uid, gid, err := postgresUser()
		if err != nil {
			return err
		}
		if err := os.Chown(s.dir, uid, gid); err != nil {
			return err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	// The output goes to a file. The server inherits the output of pg_ctl and would
	// keep a pipe open, so that cmd.Run would not return.
	out, err := os.CreateTemp("", "autobatcher-postgres-out-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		output, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s: %w\n%s", program, err, output)
	}
	return nil
}

func postgresUser() (uid, gid int, err error) {
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

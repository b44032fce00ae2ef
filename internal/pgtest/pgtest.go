//go:build unix

// Package pgtest starts PostgreSQL servers for tests.
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

// ErrNone is returned by Start where PostgreSQL is not installed.
var ErrNone = errors.New("there is no initdb: install PostgreSQL to run this test")

// A Server listens on a socket in a folder of its own, and nowhere else. It is
// safe for concurrent use.
type Server struct {
	bin, dir  string
	databases atomic.Int64
}

// Run starts a server that ends with the test. Without PostgreSQL the test is
// skipped, or fails where the environment says AUTOBATCHER_POSTGRES=required.
func Run(t testing.TB) *Server {
	t.Helper()
	s, err := Start()
	switch {
	case errors.Is(err, ErrNone) && os.Getenv("AUTOBATCHER_POSTGRES") != "required":
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

// Start starts a server. It keeps fsync on: benchmarks measure what users get.
func Start() (*Server, error) {
	bin := programs()
	if bin == "" {
		return nil, ErrNone
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

// Up starts a server that is down.
func (s *Server) Up() error {
	options := "-c listen_addresses='' -c max_connections=200 -k " + s.dir
	return s.run("pg_ctl", "start", "--wait", "--pgdata", s.data(), "--log", filepath.Join(s.dir, "log"), "--options", options)
}

// Down ends the server at once, as a crash does. It keeps what it has.
func (s *Server) Down() error {
	return s.run("pg_ctl", "stop", "--wait", "--mode", "immediate", "--pgdata", s.data())
}

// Stop ends the server and removes all it kept.
func (s *Server) Stop() error { return errors.Join(s.Down(), os.RemoveAll(s.dir)) }

// NewDatabase makes an empty database and returns its URL.
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

// programs finds the folder that initdb and pg_ctl are in.
func programs() string {
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

// run runs one of the server's programs as the user whose the server is:
// PostgreSQL refuses to run as root.
func (s *Server) run(program string, args ...string) error {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = s.dir
	if os.Getuid() == 0 {
		uid, gid, err := owner()
		if err != nil {
			return err
		}
		if err := os.Chown(s.dir, uid, gid); err != nil {
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
		return fmt.Errorf("%s: %w\n%s", program, err, said)
	}
	return nil
}

func owner() (uid, gid int, err error) {
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

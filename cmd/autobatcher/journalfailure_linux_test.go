package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Some failures need a kernel that allows mounting or tracing. Otherwise the test is
// skipped, or fails if this variable is "required".
const kernelVariable = "AUTOBATCHER_KERNEL"

// skipWithout skips the test because the kernel refused an operation.
func skipWithout(t *testing.T, operation string, err error) {
	t.Helper()
	if os.Getenv(kernelVariable) == "required" {
		t.Fatalf("%s: %v", operation, err)
	}
	t.Skipf("%s: %v", operation, err)
}

// newDisk mounts a disk of 1 MB.
func newDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		skipWithout(t, "mount", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes a file that uses all free space of the disk.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{4096, 1} { // whole blocks, then the rest of the last block
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestDiskFillsUp(t *testing.T) {
	testJournalFailure(t, func(t *testing.T) journalFailure {
		dir := newDisk(t)
		filler := filepath.Join(dir, "filler")
		return journalFailure{
			journal: filepath.Join(dir, "journal.db"),
			fail:    func() { fill(t, filler) }, repair: func() { remove(t, filler) },
			logged: "make room on its disk", code: "journal_failed",
		}
	})
}

func TestDiskIsFull(t *testing.T) {
	dir := newDisk(t)
	fill(t, filepath.Join(dir, "filler"))
	refusesJournal(t, filepath.Join(dir, "journal.db"), "no space left", "make room on its disk")
}

// refusesJournal checks that serve does not start with a failing journal, that run
// continues without the journal if the journal is not required, and that the
// messages on stderr contain each of messages.
func refusesJournal(t *testing.T, path string, messages ...string) {
	t.Helper()
	refusesJournalUnder(t, nil, path, messages...)
}

// refusesJournalUnder is like refusesJournal, but runs autobatcher with the program
// runner.
func refusesJournalUnder(t *testing.T, runner []string, path string, messages ...string) {
	t.Helper()
	for _, test := range []struct {
		args  []string
		fails bool
	}{
		{[]string{"autobatcher", "serve", "--api-key", "key", "--port", "0", "--journal", path}, true},
		{[]string{"autobatcher", "run", "--api-key", "key", "--journal", path, "--journal-required=false", "--", "true"}, false},
	} {
		args := append(append([]string(nil), runner...), test.args...)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "GORACE="+raceOptions)
		cmd.Stdout = io.Discard
		var stderr lockedBuffer
		cmd.Stderr = &stderr
		err := cmd.Run()
		if failed := err != nil; failed != test.fails {
			t.Errorf("%q: %v\n%s", test.args, err, stderr.String())
		}
		for _, want := range append(messages, path) {
			if !strings.Contains(stderr.String(), want) {
				t.Errorf("the output of %q does not contain %q:\n%s", test.args, want, stderr.String())
			}
		}
		if !test.fails && !strings.Contains(stderr.String(), "continuing without a journal") {
			t.Errorf("%q does not report that run continues without a journal:\n%s", test.args, stderr.String())
		}
	}
}

// strace changes the results of system calls, so that the test needs no network file
// system, no read-only disk and no second user.
func TestJournalSystemCallFails(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err == nil {
		err = exec.Command(strace, "-qq", "-o", "/dev/null", "-e", "trace=none", "true").Run()
	}
	if err != nil {
		skipWithout(t, "strace", err)
	}
	const nfs = "6969000000000000" // the first word of the result of statfs(2)
	for _, test := range []struct {
		name, call, inject string
		messages           []string
	}{
		{"network file system", "statfs", "poke_exit=@arg2=" + nfs, []string{"on a network file system (NFS)", "keep the journal on a local disk, or in PostgreSQL"}},
		{"read-only disk", "openat", "error=EROFS", []string{"read-only", "let this user write the file"}},
		{"file of another user", "openat", "error=EACCES", []string{"read-only", "permission denied", "let this user write the file"}},
		{"broken disk", "pwrite64", "error=EIO", []string{"disk I/O error"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "journal.db")
			runner := []string{strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + test.call, "-e", "inject=" + test.call + ":" + test.inject}
			if test.call != "statfs" { // statfs is also called for the directory
				runner = append(runner, "-P", path, "-P", path+"-wal")
			}
			refusesJournalUnder(t, runner, path, test.messages...)
		})
	}
}

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

// Some troubles need the kernel's help. Where it refuses that, the test is
// skipped, or fails if this variable says "required".
const kernelHelp = "AUTOBATCHER_KERNEL"

func skipWithout(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv(kernelHelp) == "required" {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

// newDisk mounts a disk of a megabyte.
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

// fill writes a file that leaves no room for anything else.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{4096, 1} { // the disk's blocks, and what the last one has left
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
	failsWhileServing(t, func(t *testing.T) trouble {
		dir := newDisk(t)
		filler := filepath.Join(dir, "filler")
		return trouble{
			journal: filepath.Join(dir, "journal.db"),
			spoil:   func() { fill(t, filler) }, mend: func() { remove(t, filler) },
			says: "make room on its disk", required: "journal_failed",
		}
	})
}

func TestDiskIsFull(t *testing.T) {
	dir := newDisk(t)
	fill(t, filepath.Join(dir, "filler"))
	refusesJournal(t, filepath.Join(dir, "journal.db"), "no space left", "make room on its disk")
}

// refusesJournal checks that serve does not start with a journal that was asked
// for, and that run goes on without it where that is allowed; and what they say.
func refusesJournal(t *testing.T, path string, says ...string) {
	t.Helper()
	refusesUnder(t, nil, path, says...)
}

// refusesUnder is refusesJournal with both run by another program.
func refusesUnder(t *testing.T, runner []string, path string, says ...string) {
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
		cmd.Env = append(os.Environ(), "GORACE="+promptly)
		cmd.Stdout = io.Discard
		var stderr lockedBuffer
		cmd.Stderr = &stderr
		err := cmd.Run()
		if failed := err != nil; failed != test.fails {
			t.Errorf("%q: %v\n%s", test.args, err, stderr.String())
		}
		for _, want := range append(says, path) {
			if !strings.Contains(stderr.String(), want) {
				t.Errorf("%q does not say %q:\n%s", test.args, want, stderr.String())
			}
		}
		if !test.fails && !strings.Contains(stderr.String(), "going on without a journal") {
			t.Errorf("%q does not say that it goes on without:\n%s", test.args, stderr.String())
		}
	}
}

// What the kernel says of a file is changed on its way to the program, so that
// no network file system, no read-only disk and no second user is needed.
func TestKernelSays(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err == nil {
		err = exec.Command(strace, "-qq", "-o", "/dev/null", "-e", "trace=none", "true").Run()
	}
	if err != nil {
		skipWithout(t, "strace", err)
	}
	const nfs = "6969000000000000" // the first word of what statfs(2) tells
	for _, test := range []struct {
		name, call, inject string
		says               []string
	}{
		{"a network file system", "statfs", "poke_exit=@arg2=" + nfs, []string{"on a network file system (NFS)", "keep the journal on a local disk, or in PostgreSQL"}},
		{"a read-only disk", "openat", "error=EROFS", []string{"read-only", "let this user write the file"}},
		{"a file of another user", "openat", "error=EACCES", []string{"read-only", "permission denied", "let this user write the file"}},
		{"a disk that breaks", "pwrite64", "error=EIO", []string{"disk I/O error"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "journal.db")
			runner := []string{strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + test.call, "-e", "inject=" + test.call + ":" + test.inject}
			if test.call != "statfs" { // it is asked of the folder, too
				runner = append(runner, "-P", path, "-P", path+"-wal")
			}
			refusesUnder(t, runner, path, test.says...)
		})
	}
}

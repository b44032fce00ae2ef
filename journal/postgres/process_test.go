//go:build unix

package postgres

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// asChild in the environment makes the test binary a replica, which begins batches
// until the kill.
const asChild = "AUTOBATCHER_TEST_CHILD"

const childLines = 3000

func playChild(url string) {
	if err := child(context.Background(), url, fmt.Sprint("child", os.Getpid())); err != nil {
		fmt.Println("error:", err)
	}
}

// child prints the names of its batches.
func child(ctx context.Context, url, owner string) error {
	s, err := Open(ctx, url)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		ref := fmt.Sprint(owner, "-", i)
		err := errors.Join(
			beat(ctx, s, owner, 2*time.Second),
			s.Begin(ctx, journal.Batch{Ref: ref, Owner: owner}, make([]journal.Line, childLines)))
		if err != nil {
			return err
		}
		fmt.Println(ref)
	}
}

// A replica killed while writing leaves whole batches, loses no confirmed batch, and
// the batches are open after the end of its lease.
func TestKilledReplica(t *testing.T) {
	url := newDatabase(t)
	s := mustOpen(t, url)
	if err := beat(t.Context(), s, "survivor", time.Hour); err != nil {
		t.Fatal(err)
	}
	begun := runAndKill(t, url, 5)
	eventually(t, func() bool {
		claimed, err := s.Claim(t.Context(), "survivor", begun[0])
		if err != nil {
			t.Fatal(err)
		}
		return claimed
	})
	all, err := s.Batches(t.Context(), journal.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, b := range all {
		found[b.Ref] = true
		if b.Lines != childLines || b.Open != childLines {
			t.Errorf("%s: %d lines, %d open, want %d", b.Ref, b.Lines, b.Open, childLines)
		}
	}
	for _, ref := range begun {
		if !found[ref] {
			t.Errorf("%s is lost", ref)
		}
	}
}

// runAndKill kills a replica after a number of batches, and returns the names of all
// batches in its output.
func runAndKill(t *testing.T, url string, batches int) (begun []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], url)
	cmd.Env = append(os.Environ(), asChild+"=yes")
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // "signal: killed"
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return begun
		}
		if strings.HasPrefix(line, "error:") {
			t.Error(line)
		}
		begun = append(begun, strings.TrimSuffix(line, "\n"))
		if len(begun) == batches {
			cmd.Process.Kill() //nolint:errcheck // it may have ended
		}
	}
}

// eventually waits for a condition that depends on the clock of the database.
func eventually(t *testing.T, happened func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !happened() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatal("timed out")
		}
	}
}

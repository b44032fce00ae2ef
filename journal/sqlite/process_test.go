package sqlite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/journal"
)

// asChild in the environment makes the test binary a child process, see children.
const asChild = "AUTOBATCHER_TEST_CHILD"

func TestMain(m *testing.M) {
	play, ok := children[os.Getenv(asChild)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := play(context.Background(), os.Args[1], os.Args[2]); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// children are the programs of child processes. A child opens the journal at a path
// as an owner. The test reads the output.
var children = map[string]func(ctx context.Context, path, owner string) error{
	// begins holds a batch in state Creating until the kill.
	"begins": func(ctx context.Context, path, owner string) error {
		s, err := openAs(ctx, path, owner)
		if err != nil {
			return err
		}
		if err := s.Begin(ctx, testBatch(owner, "one"), testLines(100)); err != nil {
			return err
		}
		if err := s.Advance(ctx, owner, "one", journal.Step{State: journal.Creating, InputFileID: "file-1"}); err != nil {
			return err
		}
		fmt.Println("ready")
		return forEver(nil)
	},
	// writes begins and delivers batches until the kill, and prints their names.
	"writes": func(ctx context.Context, path, owner string) error {
		s, err := openAs(ctx, path, owner)
		if err != nil {
			return err
		}
		for i := 0; ; i++ {
			ref := fmt.Sprint(owner, "-", i)
			if err := s.Begin(ctx, testBatch(owner, ref), testLines(500)); err != nil {
				return err
			}
			fmt.Println(ref)
			if err := s.Deliver(ctx, owner, ref, []int{0, 1, 2}); err != nil {
				return err
			}
		}
	},
	// takes takes over all open lines, a few at a time, and prints their names.
	"takes": func(ctx context.Context, path, owner string) error {
		s, err := openAs(ctx, path, owner)
		if err != nil {
			return err
		}
		fmt.Println("ready")
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
			return err
		}
		for {
			taken, err := s.TakeOver(ctx, owner, testAccount, slices.Repeat([]journal.Hash{{1}}, 7))
			if err != nil || len(taken) == 0 {
				fmt.Println("done")
				return errors.Join(err, forEver(err))
			}
			for _, t := range taken {
				for _, l := range t.Lines {
					fmt.Printf("%s/%d\n", t.Batch.Ref, l.N)
				}
			}
		}
	},
	// opens only opens the journal.
	"opens": func(ctx context.Context, path, owner string) error {
		s, err := openAs(ctx, path, owner)
		if err != nil {
			return err
		}
		fmt.Println("done")
		return s.Close()
	},
}

// forEver waits for the kill, unless err is an error: lines of an owner are open
// after the end of the process.
func forEver(err error) error {
	if err == nil {
		select {}
	}
	return err
}

func openAs(ctx context.Context, path, owner string) (*Store, error) {
	s, err := Open(ctx, path)
	if err != nil {
		return nil, err
	}
	return s, beat(ctx, s, owner, time.Hour)
}

var testAccount = journal.Hash{9}

func testBatch(owner, ref string) journal.Batch {
	return journal.Batch{Ref: ref, Owner: owner, Account: testAccount}
}

// testLines are lines of equal print.
func testLines(n int) []journal.Line {
	return slices.Repeat([]journal.Line{{CustomID: "id", Fingerprint: journal.Hash{1}}}, n)
}

// A child is a child process.
type child struct {
	*testing.T
	cmd   *exec.Cmd
	lines *bufio.Reader
	stdin io.WriteCloser
}

func start(t *testing.T, part, path, owner string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], path, owner)
	cmd.Env = append(os.Environ(), asChild+"="+part)
	return startCommand(t, cmd)
}

func startCommand(t *testing.T, cmd *exec.Cmd) *child {
	t.Helper()
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{T: t, cmd: cmd, lines: bufio.NewReader(stdout), stdin: stdin}
	t.Cleanup(c.kill)
	return c
}

// says returns the next line that the child prints, "" after the last. What it
// was killed in the middle of does not count.
func (c *child) says() string {
	line, err := c.lines.ReadString('\n')
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(line, "\n")
}

// kill is kill -9. It may be called again.
func (c *child) kill() {
	c.cmd.Process.Kill() //nolint:errcheck // it may have ended
	c.cmd.Wait()         //nolint:errcheck // with "signal: killed"
}

// After the kill of a process its lines and its batch are open at once, although the
// lease runs for an hour.
func TestKilledOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	c := start(t, "begins", path, "child")
	if got := c.says(); got != "ready" {
		t.Fatal(got)
	}
	s := mustOpen(t, path)
	mustBeat(t, s, "parent")
	if got := take(t, s, 1); got != 0 {
		t.Errorf("took %d lines of a living owner", got)
	}
	if claimed, err := s.Claim(t.Context(), "parent", "one"); claimed || err != nil {
		t.Errorf("claimed a living owner's batch: %v, %v", claimed, err)
	}
	c.kill()
	if got := take(t, s, 1000); got != 100 {
		t.Errorf("took %d lines of a killed owner, want 100", got)
	}
	if claimed, err := s.Claim(t.Context(), "parent", "one"); !claimed || err != nil {
		t.Errorf("claimed a killed owner's batch: %v, %v", claimed, err)
	}
	b := only(t, s)
	if b.State != journal.Creating || b.InputFileID != "file-1" {
		t.Errorf("the batch is %s with file %q", b.State, b.InputFileID)
	}
	if left, _ := filepath.Glob(path + "-owner-*"); len(left) != 1 {
		t.Errorf("lock files: %q, want the parent's alone", left)
	}
}

// Processes killed while writing lose no confirmed change, and leave no change
// incomplete.
func TestKilledWriting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	s := mustOpen(t, path)
	for round := range 4 {
		var writers []*child
		for i := range 2 {
			writers = append(writers, start(t, "writes", path, fmt.Sprintf("child%d.%d", round, i)))
		}
		var begun []string
		for range round + 1 {
			for _, c := range writers {
				begun = append(begun, c.says())
			}
		}
		for _, c := range writers {
			c.kill()
			for ref := c.says(); ref != ""; ref = c.says() {
				begun = append(begun, ref)
			}
		}
		for _, ref := range begun {
			checkWritten(t, s, ref)
		}
	}
	checkSound(t, path)
}

func checkWritten(t *testing.T, s *Store, ref string) {
	t.Helper()
	found, err := s.Batches(t.Context(), journal.Filter{Ref: ref})
	if err != nil || len(found) != 1 {
		t.Fatalf("%d batches %q, want 1; %v", len(found), ref, err)
	}
	b := found[0]
	if b.Lines != 500 || b.Open+b.Delivered != 500 || b.Delivered != 0 && b.Delivered != 3 {
		t.Errorf("%s: %d lines, %d open, %d delivered", ref, b.Lines, b.Open, b.Delivered)
	}
}

// checkSound opens the journal again. Open checks the file.
func checkSound(t *testing.T, path string) {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// Each line goes to one of the processes racing for the lines.
func TestProcessesRaceForLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	s := mustOpen(t, path)
	mustBeat(t, s, "dead")
	for i := range 3 {
		if err := s.Begin(t.Context(), testBatch("dead", fmt.Sprint("batch", i)), testLines(500)); err != nil {
			t.Fatal(err)
		}
	}
	if err := beat(t.Context(), s, "dead", 0); err != nil {
		t.Fatal(err)
	}
	var racers []*child
	for i := range 3 {
		c := start(t, "takes", path, fmt.Sprint("racer", i))
		if got := c.says(); got != "ready" {
			t.Fatal(got)
		}
		racers = append(racers, c)
	}
	for _, c := range racers {
		fmt.Fprintln(c.stdin, "go")
	}
	takers := make(map[string]int)
	for _, c := range racers {
		for name := c.says(); name != "done"; name = c.says() {
			if !strings.HasPrefix(name, "batch") {
				t.Fatal(name)
			}
			takers[name]++
		}
	}
	for name, n := range takers {
		if n != 1 {
			t.Errorf("%s was taken %d times", name, n)
		}
	}
	if len(takers) != 1500 {
		t.Errorf("%d lines were taken, want 1500", len(takers))
	}
}

// Processes starting at the same time make a single journal.
func TestProcessesOpenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "folder", "journal")
	var all []*child
	for i := range 6 {
		all = append(all, start(t, "opens", path, fmt.Sprint("owner", i)))
	}
	for _, c := range all {
		if got := c.says(); got != "done" {
			t.Error(got)
		}
	}
}

func beat(ctx context.Context, s *Store, owner string, lease time.Duration) error {
	_, err := s.Heartbeat(ctx, owner, lease)
	return err
}

func mustBeat(t *testing.T, s *Store, owner string) {
	t.Helper()
	if err := beat(t.Context(), s, owner, time.Hour); err != nil {
		t.Fatal(err)
	}
}

// take takes over up to n lines as owner "parent", and returns the number of lines.
func take(t *testing.T, s *Store, n int) (got int) {
	t.Helper()
	taken, err := s.TakeOver(t.Context(), "parent", testAccount, slices.Repeat([]journal.Hash{{1}}, n))
	if err != nil {
		t.Fatal(err)
	}
	for _, t := range taken {
		got += len(t.Lines)
	}
	return got
}

// only returns the only batch of the journal.
func only(t *testing.T, s *Store) journal.Batch {
	t.Helper()
	all, err := s.Batches(t.Context(), journal.Filter{})
	if err != nil || len(all) != 1 {
		t.Fatalf("%d batches, want 1; %v", len(all), err)
	}
	return all[0]
}

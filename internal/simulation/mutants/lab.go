package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A mutant is one deliberate bug: in file, the only occurrence of old is
// replaced by new.
type mutant struct {
	name  string // the bug, in words
	file  string // below the root of the module
	old   string
	new   string
	says  string   // a part of the check's message that names the bug; "": any message
	draws string   // the draws to play with; "": defaultDraws
	seeds []uint64 // schedules to play before the others, since they are known to fail
	test  *test    // the test that must fail instead of the simulation; nil: the simulation
}

// A test is a selection of the tests of one package.
type test struct {
	pkg string // as in "./internal/registry"
	run string // as the flag -run of go test
}

const (
	// defaultSeeds is how many schedules a mutant may survive.
	defaultSeeds = 60

	// defaultDraws is what schedules of a mutant draw.
	defaultDraws = "batches"

	// runTimeout ends a check that hangs. A mutant does not count as caught then.
	runTimeout = time.Minute

	simulation = "./internal/simulation"
)

// pkg is the package whose tests check the mutant.
func (m *mutant) pkg() string {
	if m.test != nil {
		return m.test.pkg
	}
	return simulation
}

// checks are the arguments of the test binary, for one check after another: the
// mutant is caught by the first check that fails.
func (m *mutant) checks() (all [][]string) {
	if m.test != nil {
		return [][]string{{"-test.run", m.test.run, "-test.failfast"}}
	}
	if len(m.seeds) > 0 {
		all = append(all, m.play(m.seeds...))
	}
	return append(all, []string{"-test.run", "TestSimulation$", "-first", "-draws", m.drawn(), "-seeds", strconv.Itoa(defaultSeeds)})
}

func (m *mutant) drawn() string { return cmp.Or(m.draws, defaultDraws) }

// play are the arguments to play only these schedules.
func (m *mutant) play(seeds ...uint64) []string {
	names := make([]string, len(seeds))
	for i, seed := range seeds {
		names[i] = strconv.FormatUint(seed, 10)
	}
	pattern := "TestSimulation$/^#00$/^seed=(" + strings.Join(names, "|") + ")$"
	return []string{"-test.run", pattern, "-first", "-draws", m.drawn(), "-seeds", strconv.FormatUint(slices.Max(seeds), 10)}
}

// mutate returns the mutated text of the mutant's file.
func (m *mutant) mutate(source []byte) ([]byte, error) {
	switch n := bytes.Count(source, []byte(m.old)); {
	case m.old == "" || m.old == m.new:
		return nil, fmt.Errorf("mutant %q changes nothing", m.name)
	case n != 1:
		return nil, fmt.Errorf("mutant %q: its old text occurs %d times in %s; want once", m.name, n, m.file)
	}
	return bytes.Replace(source, []byte(m.old), []byte(m.new), 1), nil
}

// A lab builds and runs mutants in a temporary directory. A lab is safe for
// concurrent use.
type lab struct {
	root string // of the module
	dir  string

	mu        sync.Mutex
	unmutated map[string]*binary // by package
}

// A binary holds the tests of a package without a mutation.
type binary struct {
	mu     sync.Mutex
	path   string          // "" until built
	passed map[string]bool // by arguments
}

func newLab(ctx context.Context) (*lab, error) {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOMOD: %w", err)
	}
	dir, err := os.MkdirTemp("", "mutants-")
	return &lab{root: filepath.Dir(strings.TrimSpace(string(mod))), dir: dir, unmutated: make(map[string]*binary)}, err
}

func (l *lab) close() { _ = os.RemoveAll(l.dir) }

// checkTexts returns an error for each mutant that cannot be applied.
func (l *lab) checkTexts(all []mutant) error {
	var errs []error
	for _, m := range all {
		source, err := os.ReadFile(filepath.Join(l.root, m.file))
		if err == nil {
			_, err = m.mutate(source)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// checkUnmutated returns an error if a check fails without a mutation: then its
// failure with the mutation proves nothing.
func (l *lab) checkUnmutated(ctx context.Context, pkg string, args []string) error {
	l.mu.Lock()
	b := l.unmutated[pkg]
	if b == nil {
		b = &binary{passed: make(map[string]bool)}
		l.unmutated[pkg] = b
	}
	l.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.path == "" {
		path := filepath.Join(l.dir, strings.ReplaceAll(strings.Trim(pkg, "./"), "/", "-")+".test")
		if err := l.build(ctx, path, pkg, ""); err != nil {
			return err
		}
		b.path = path
	}
	key := strings.Join(args, " ")
	if b.passed[key] {
		return nil
	}
	output, failed := l.check(ctx, b.path, pkg, args)
	if failed || bytes.Contains(output, []byte("no tests to run")) {
		return fmt.Errorf("without the mutation, %s %s fails as well, or plays nothing:\n%s", pkg, key, output)
	}
	b.passed[key] = true
	return nil
}

// A verdict is what became of a mutant.
type verdict struct {
	caught bool
	reason string // the first message of the check, or why the mutant counts as not caught
	output []byte
	took   time.Duration
}

// line is the verdict as a line of the report.
func (v *verdict) line(m mutant) string {
	word := "SURVIVED"
	if v.caught {
		word = "caught"
	}
	return fmt.Sprintf("%-8s %5.1fs  %s\n                  %s", word, v.took.Seconds(), m.name, v.reason)
}

// try builds one mutant, and runs its checks until one fails.
func (l *lab) try(ctx context.Context, m mutant) (v verdict) {
	began := time.Now()
	defer func() { v.took = time.Since(began) }()
	dir, err := os.MkdirTemp(l.dir, "mutant-")
	if err != nil {
		return verdict{reason: err.Error()}
	}
	defer os.RemoveAll(dir)
	overlay, err := l.overlay(dir, &m)
	if err != nil {
		return verdict{reason: err.Error()}
	}
	binary := filepath.Join(dir, "mutated.test")
	if err := l.build(ctx, binary, m.pkg(), overlay); err != nil {
		return verdict{reason: err.Error()}
	}
	for _, args := range m.checks() {
		output, failed := l.check(ctx, binary, m.pkg(), args)
		if v = judge(&m, output, failed); !v.caught {
			continue
		}
		if seed := failedSeed(v.reason); seed > 0 {
			args = m.play(seed)
		}
		if err := l.checkUnmutated(ctx, m.pkg(), args); err != nil {
			v.caught, v.reason = false, err.Error()
		}
		return v
	}
	return v
}

// overlay writes the mutated copy of the file, and the file that tells the
// compiler about the copy.
func (l *lab) overlay(dir string, m *mutant) (path string, err error) {
	original := filepath.Join(l.root, m.file)
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	mutated, err := m.mutate(source)
	if err != nil {
		return "", err
	}
	replacement := filepath.Join(dir, "mutated.go")
	if err := os.WriteFile(replacement, mutated, 0o600); err != nil {
		return "", err
	}
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{original: replacement}})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, text, 0o600)
}

// build compiles the tests of a package. The databases are left out of the
// simulation: they take most of the linker's time, and mutants are played with
// the journal in memory.
func (l *lab) build(ctx context.Context, binary, pkg, overlay string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "nodatabase", "-ldflags", "-s -w", "-overlay", overlay, "-o", binary, pkg)
	cmd.Dir = l.root
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go test -c: %w\n%s", err, output)
	}
	return nil
}

// check runs the tests of a package, and reports whether one failed.
func (l *lab) check(ctx context.Context, binary, pkg string, args []string) (output []byte, failed bool) {
	cmd := exec.CommandContext(ctx, binary, append([]string{"-test.timeout", runTimeout.String()}, args...)...)
	cmd.Dir = filepath.Join(l.root, pkg)
	output, err := cmd.CombinedOutput()
	return output, err != nil
}

// message finds what the check said: "seed 12: …", the test that failed, or why
// the program ended.
var message = regexp.MustCompile(`(?m)(?:seed \d+: |^--- FAIL: |^panic: |^fatal error: ).*$`)

// causeless are the messages that do not say what went wrong.
var causeless = regexp.MustCompile(`^(?:--- FAIL: TestSimulation|panic: test timed out)`)

// failedSeed is the seed that a message of the simulation names, or 0.
func failedSeed(message string) (seed uint64) {
	_, _ = fmt.Sscanf(message, "seed %d:", &seed)
	return seed
}

// judge decides whether the check caught the mutant, and for the right
// reason.
func judge(m *mutant, output []byte, failed bool) verdict {
	v := verdict{output: output}
	if !failed {
		v.reason = "no check failed"
		return v
	}
	for _, found := range message.FindAllString(string(output), -1) {
		if strings.Contains(found, m.says) && !causeless.MatchString(found) {
			v.caught, v.reason = true, short(found)
			return v
		}
	}
	v.reason = fmt.Sprintf("it failed, but no message says %q:\n%s", m.says, output)
	return v
}

// short is text that fits into a line of the report.
func short(text string) string {
	const most = 160
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + " …"
}

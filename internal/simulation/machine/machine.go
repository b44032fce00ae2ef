package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
)

// A machine plays schedules. A machine may play several schedules at once, and
// lasts as long as the process.
type machine struct {
	runtime wazero.Runtime
	program wazero.CompiledModule
	draws   string
}

// playTimeout ends a schedule that hangs. The longest schedules take seconds.
const playTimeout = 5 * time.Minute

// build compiles the simulation, and makes a machine of the program.
func build(ctx context.Context, stderr io.Writer) (*machine, error) {
	folder, err := os.MkdirTemp("", "simulation-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "simulation.wasm")
	// Without paths of this computer, the program is the same on each computer.
	compile := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-o", path, "github.com/autobatcher/autobatcher/internal/simulation")
	compile.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	compile.Stderr = stderr
	if err := compile.Run(); err != nil {
		return nil, fmt.Errorf("go test -c: %w", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := &machine{runtime: wazero.NewRuntime(ctx)}
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, m.runtime); err != nil {
		return nil, err
	}
	m.program, err = m.runtime.CompileModule(experimental.WithCompilationWorkers(ctx, runtime.NumCPU()), program)
	return m, err
}

// A schedule is a seed, and the order of goroutines at the same instant.
type schedule struct{ seed, order uint64 }

// chance is the only source of random numbers in a schedule's machine.
func (s schedule) chance() io.Reader {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], s.seed)
	binary.LittleEndian.PutUint64(seed[8:], s.order)
	return rand.NewChaCha8(seed)
}

// An outcome is the result of playing a schedule.
type outcome struct {
	schedule
	log   []byte
	tally map[string]int64
	err   error // nil: all checks passed
}

// play plays a schedule.
func (m *machine) play(ctx context.Context, s schedule) *outcome {
	ctx, cancel := context.WithTimeoutCause(ctx, playTimeout, errors.New("the schedule hangs"))
	defer cancel()
	var log bytes.Buffer
	config := wazero.NewModuleConfig().
		WithName(""). // two instances with a name cannot exist at once
		WithArgs("simulation", "-test.run=TestSimulation$", "-test.timeout=0", "-seed", strconv.FormatUint(s.seed, 10), "-draws", m.draws).
		WithStdout(&log).WithStderr(&log).
		WithRandSource(s.chance()).
		// The garbage collector's work depends on what was allocated, and changes
		// the order of goroutines. Without a collector, printing a log does not.
		WithEnv("GOGC", "off").WithEnv("GOMEMLIMIT", "1500MiB")
	ended := make(chan error, 1)
	go func() { ended <- m.run(config) }()
	select {
	case err := <-ended:
		o := &outcome{schedule: s, log: log.Bytes(), err: err}
		if err == nil {
			o.err = o.readTally()
		}
		return o
	case <-ctx.Done(): // an instance that could be stopped would be slower at each step
		return &outcome{schedule: s, err: context.Cause(ctx)}
	}
}

// run runs the program to its end.
func (m *machine) run(config wazero.ModuleConfig) error {
	ctx := context.Background()
	instance, err := m.runtime.InstantiateModule(ctx, m.program, config)
	if instance != nil {
		_ = instance.Close(ctx) // the instance has ended
	}
	var exit *sys.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("exit status %d", exit.ExitCode())
	}
	return err
}

// readTally reads the tally, which is the last line of the log except for "PASS".
func (o *outcome) readTally() error {
	lines := bytes.Split(bytes.TrimSpace(o.log), []byte("\n"))
	for _, line := range lines[max(0, len(lines)-2):] {
		if json.Unmarshal(line, &o.tally) == nil {
			return nil
		}
	}
	return errors.New("the simulation printed no tally")
}

// playSurely plays a schedule. If twice is set, playSurely plays the schedule again,
// and fails if the second log differs.
func (m *machine) playSurely(ctx context.Context, s schedule, twice bool) *outcome {
	o := m.play(ctx, s)
	if !twice || ctx.Err() != nil {
		return o
	}
	again := m.play(ctx, s)
	if ctx.Err() == nil && !bytes.Equal(o.log, again.log) {
		o.err = errors.Join(o.err, fmt.Errorf("the second log differs from the first: %s", firstDifference(o.log, again.log)))
	}
	return o
}

// firstDifference describes the first line at which two logs differ.
func firstDifference(a, b []byte) string {
	first, second := bytes.Split(a, []byte("\n")), bytes.Split(b, []byte("\n"))
	for i := range min(len(first), len(second)) {
		if !bytes.Equal(first[i], second[i]) {
			return fmt.Sprintf("line %d was %q and then %q", i+1, first[i], second[i])
		}
	}
	return fmt.Sprintf("the log had %d lines and then %d", len(first), len(second))
}

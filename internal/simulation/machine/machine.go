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

// A machine plays schedules. It may play several at once. It lasts as long as the
// process.
type machine struct {
	runtime wazero.Runtime
	program wazero.CompiledModule
}

// patience ends a schedule that hangs. The longest take seconds.
const patience = 5 * time.Minute

// build compiles the simulation for the machine, and makes one.
func build(ctx context.Context, stderr io.Writer) (*machine, error) {
	folder, err := os.MkdirTemp("", "simulation-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "simulation.wasm")
	// Without a path of this computer in it, the program is the same everywhere.
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

// A schedule is what happens, and the order of what happens at the same instant.
type schedule struct{ seed, order uint64 }

// chance is all the randomness that there is in a schedule's machine.
func (s schedule) chance() io.Reader {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], s.seed)
	binary.LittleEndian.PutUint64(seed[8:], s.order)
	return rand.NewChaCha8(seed)
}

// An outcome is what became of a schedule.
type outcome struct {
	schedule
	story []byte
	tally map[string]int64
	err   error // nil: everything held
}

// play plays a schedule.
func (m *machine) play(ctx context.Context, s schedule) *outcome {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("it hangs"))
	defer cancel()
	var story bytes.Buffer
	config := wazero.NewModuleConfig().
		WithName(""). // or it could not be there twice
		WithArgs("simulation", "-test.run=TestSimulation$", "-test.timeout=0", "-seed", strconv.FormatUint(s.seed, 10)).
		WithStdout(&story).WithStderr(&story).
		WithRandSource(s.chance()).
		// The collector decides by how much was allocated who runs next. Without
		// it, what is told for the sake of a story changes nothing.
		WithEnv("GOGC", "off").WithEnv("GOMEMLIMIT", "1500MiB")
	ended := make(chan error, 1)
	go func() { ended <- m.run(config) }()
	select {
	case err := <-ended:
		o := &outcome{schedule: s, story: story.Bytes(), err: err}
		if err == nil {
			o.err = o.readTally()
		}
		return o
	case <-ctx.Done(): // what could stop it would make every step slower
		return &outcome{schedule: s, err: context.Cause(ctx)}
	}
}

// run runs the program to its end.
func (m *machine) run(config wazero.ModuleConfig) error {
	ctx := context.Background()
	instance, err := m.runtime.InstantiateModule(ctx, m.program, config)
	if instance != nil {
		_ = instance.Close(ctx) // it has ended
	}
	var exit *sys.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("exit status %d", exit.ExitCode())
	}
	return err
}

// readTally finds the tally: the story's last line but for "PASS".
func (o *outcome) readTally() error {
	lines := bytes.Split(bytes.TrimSpace(o.story), []byte("\n"))
	for _, line := range lines[max(0, len(lines)-2):] {
		if json.Unmarshal(line, &o.tally) == nil {
			return nil
		}
	}
	return errors.New("the simulation did not say what it came to")
}

// playSurely plays a schedule, once more if that is wanted, to see that the
// second time is like the first.
func (m *machine) playSurely(ctx context.Context, s schedule, twice bool) *outcome {
	o := m.play(ctx, s)
	if !twice || ctx.Err() != nil {
		return o
	}
	again := m.play(ctx, s)
	if ctx.Err() == nil && !bytes.Equal(o.story, again.story) {
		o.err = errors.Join(o.err, fmt.Errorf("the second time was not like the first: %s", firstDifference(o.story, again.story)))
	}
	return o
}

// firstDifference says where two stories part.
func firstDifference(a, b []byte) string {
	first, second := bytes.Split(a, []byte("\n")), bytes.Split(b, []byte("\n"))
	for i := range min(len(first), len(second)) {
		if !bytes.Equal(first[i], second[i]) {
			return fmt.Sprintf("line %d was %q and then %q", i+1, first[i], second[i])
		}
	}
	return fmt.Sprintf("it had %d lines and then %d", len(first), len(second))
}

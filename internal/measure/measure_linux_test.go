package measure_test

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/internal/measure"
)

func TestProcess(t *testing.T) {
	before, err := measure.Process(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	memory := make([]byte, 64<<20)
	for i := range memory { // work, and memory that is resident
		memory[i] = byte(i * i)
	}
	after, err := measure.Process(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(memory)
	if after.CPU <= before.CPU || after.CPU-before.CPU > time.Hour {
		t.Errorf("CPU went from %v to %v", before.CPU, after.CPU)
	}
	if grown := after.RSS - before.RSS; grown < 60<<20 || after.Peak < after.RSS {
		t.Errorf("64 MiB more are resident: %d bytes more, %d resident, peak %d", grown, after.RSS, after.Peak)
	}
}

// The usage of a child does not contain the usage of its parent.
func TestProcessOfChild(t *testing.T) {
	memory := make([]byte, 64<<20)
	for i := range memory {
		memory[i] = byte(i)
	}
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()         //nolint:errcheck // killed
	defer child.Process.Kill() //nolint:errcheck // has not ended
	used, err := measure.Process(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(memory)
	if used.Peak > 32<<20 || used.CPU > time.Second {
		t.Errorf("sleep has used %+v", used)
	}
}

func TestProcessUnknown(t *testing.T) {
	if u, err := measure.Process(1 << 30); err == nil {
		t.Errorf("a process that does not exist has used %+v", u)
	}
}

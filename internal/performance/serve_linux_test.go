package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/measure"
)

const (
	serveCalls = 5_000
	serveBody  = 1 << 10
)

// BenchmarkServe holds 5,000 calls of 1 KB at the command, as it is installed, with a
// Batch API in this process: autobatcher serve receives the calls, sends them in one
// batch, and answers. The baseline is a bare server (see bareserver) under the same
// calls, as a process, too. The command runs without a journal, and with a journal on
// SQLite, which is its default.
func BenchmarkServe(b *testing.B) {
	bare, command := build(b, "./bareserver"), build(b, "../../cmd/autobatcher")
	bodies := make([][]byte, serveCalls)
	for i := range bodies {
		text := fmt.Appendf(nil, `{"model":"m","messages":[{"role":"user","content":"call %08d`, i)
		bodies[i] = append(append(text, strings.Repeat("x", serveBody-len(text)-4)...), `"}]}`...)
	}
	for b.Loop() {
		floor := holdAtBare(b, bare, bodies)
		ours := holdAtServe(b, command, "off", bodies)
		journaled := holdAtServe(b, command, filepath.Join(b.TempDir(), "journal"), bodies)
		b.ReportMetric(perCall(floor, serveCalls), "floor-cpu-µs/call")
		b.ReportMetric(perCall(ours, serveCalls), "cpu-µs/call")
		b.ReportMetric(perCall(journaled, serveCalls), "journal-cpu-µs/call")
		b.ReportMetric(float64(floor.Peak)/(1<<20), "floor-peak-MB")
		b.ReportMetric(float64(ours.Peak)/(1<<20), "peak-MB")
		b.ReportMetric(float64(journaled.Peak)/(1<<20), "journal-peak-MB")
		b.ReportMetric(0, "ns/op")
	}
}

// build builds a command and returns its file.
func build(b *testing.B, folder string) string {
	b.Helper()
	file := filepath.Join(b.TempDir(), "command")
	if out, err := exec.Command("go", "build", "-o", file, folder).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return file
}

func holdAtBare(b *testing.B, command string, bodies [][]byte) measure.Usage {
	s := start(b, `()(\S+)`, command)
	defer s.stop()
	held := func() (n int) {
		res, err := http.Get("http://" + s.address + "/held")
		if err != nil {
			b.Fatal(err)
		}
		defer res.Body.Close()
		fmt.Fscan(res.Body, &n)
		return n
	}
	return s.hold(b, bodies, held, func() {
		if _, err := http.Post("http://"+s.address+"/release", "", nil); err != nil {
			b.Fatal(err)
		}
	})
}

func holdAtServe(b *testing.B, command, journal string, bodies [][]byte) measure.Usage {
	upstream := batchtest.NewServer(batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		return batchtest.Outcome{Body: l.Body, Never: true}
	}})
	defer upstream.Close()
	s := start(b, `(address=|"address":")([0-9.]+:[0-9]+)`, command, "serve", "--base-url", upstream.URL, "--api-key", "key", "--port", "0", "--journal", journal,
		"--batch-size", fmt.Sprint(len(bodies)), "--batch-window", "60", "--quiet-after", "0", "--poll-interval", "1")
	defer s.stop()
	batched := func() (n int) {
		for _, batch := range upstream.Batches() {
			n += batch.Total
		}
		return n
	}
	return s.hold(b, bodies, batched, func() {
		for _, batch := range upstream.Batches() {
			if err := upstream.Finish(batch.ID); err != nil {
				b.Error(err)
			}
		}
	})
}

// A serverProcess is a server in a process of its own.
type serverProcess struct {
	cmd     *exec.Cmd
	address string
	idle    measure.Usage
}

// start starts a server and waits for its address: the second group of a pattern in
// what the server prints.
func start(b *testing.B, pattern, command string, args ...string) *serverProcess {
	b.Helper()
	s := &serverProcess{cmd: exec.Command(command, args...)}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	s.cmd.Stderr = s.cmd.Stdout
	if err := s.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for s.address == "" && lines.Scan() {
		if found := regexp.MustCompile(pattern).FindStringSubmatch(lines.Text()); found != nil {
			s.address = found[2]
		}
	}
	if s.address == "" {
		s.stop()
		b.Fatalf("%s printed no address", command)
	}
	go func() {
		for lines.Scan() { //nolint:revive // the server must not wait for a reader
		}
	}()
	s.idle = s.usage(b)
	return s
}

func (s *serverProcess) stop() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *serverProcess) usage(b *testing.B) measure.Usage {
	b.Helper()
	u, err := measure.Process(s.cmd.Process.Pid)
	if err != nil {
		b.Fatal(err)
	}
	return u
}

// hold sends calls, waits until the server holds the calls, and releases the calls.
// It returns the CPU time for the calls, and the peak of the whole process.
func (s *serverProcess) hold(b *testing.B, bodies [][]byte, held func() int, release func()) measure.Usage {
	b.Helper()
	wait, err := measure.Hold(s.address, bodies)
	if err != nil {
		b.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); held() < len(bodies); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d calls are held", held(), len(bodies))
		}
	}
	release()
	answers, err := wait()
	if err != nil {
		b.Fatal(err)
	}
	for i, answer := range answers {
		if !bytes.Equal(answer, bodies[i]) {
			b.Fatalf("call %d got %q", i, answer)
		}
	}
	u := s.usage(b)
	u.CPU -= s.idle.CPU
	return u
}

// perCall is the CPU time for each of some calls in microseconds.
func perCall(u measure.Usage, calls int) float64 {
	return float64(u.CPU.Nanoseconds()) / 1e3 / float64(calls)
}

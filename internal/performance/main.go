// Command performance runs the benchmarks and prints the tables of
// docs/performance.md in Markdown, with the machine and the date:
//
//	go run ./internal/performance [-runs 3] [-only "The proxy"]
//
// Each benchmark measures its floor in the same run. The tables have the medians of all
// runs, and the lowest and the highest ratio. What scripts print is printed as it is: the
// tests of the lanes, which have virtual time, and the tests of scale print their own
// tables, and so does the comparison with the original in Python, which needs Python and
// PyPI.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"
)

func main() {
	runs := flag.Int("runs", 3, "run each benchmark `N` times")
	only := flag.String("only", "", "only the tables whose titles match `REGEXP`")
	flag.Parse()
	wanted, err := regexp.Compile(*only)
	if err == nil && (*runs < 1 || flag.NArg() > 0) {
		err = fmt.Errorf("-runs must be 1 or more, and there are no arguments")
	}
	if err == nil {
		err = run(os.Stdout, *runs, wanted)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run runs the wanted groups and writes their tables. A group that fails does not keep
// the other groups from being measured.
func run(w io.Writer, runs int, wanted *regexp.Regexp) error {
	var failed []string
	fmt.Fprintln(w, machine(time.Now(), runs))
	fmt.Fprintln(w)
	note := func(title string, err error) {
		if err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", title, err))
		}
	}
	for _, g := range groups {
		if !wanted.MatchString(g.title) {
			continue
		}
		output, err := g.measure(runs)
		if err == nil {
			err = g.write(w, parse(output))
		}
		note(g.title, err)
	}
	for _, s := range scripts {
		if !wanted.MatchString(s.title) {
			continue
		}
		output, err := s.measure()
		if err == nil {
			err = s.write(w, output)
		}
		note(s.title, err)
	}
	if len(failed) > 0 {
		return fmt.Errorf("%s", strings.Join(failed, "\n"))
	}
	return nil
}

// measure runs the benchmarks of a group, one run after the other, so that a value and
// its floor are of the same minute.
func (g group) measure(runs int) (string, error) {
	var output bytes.Buffer
	for range runs {
		cmd := exec.Command("go", "test", "-run", "^$", "-bench", g.bench, "-benchtime", g.iterate, "-timeout", "30m", g.pkg)
		cmd.Stdout, cmd.Stderr = io.MultiWriter(&output, os.Stderr), os.Stderr
		if g.env != "" {
			cmd.Env = append(os.Environ(), g.env)
		}
		if err := cmd.Run(); err != nil {
			return "", err
		}
	}
	return output.String(), nil
}

// measure runs a script once.
func (s script) measure() (string, error) {
	var output bytes.Buffer
	cmd := exec.Command(s.command[0], s.command[1:]...)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&output, os.Stderr), os.Stderr
	if s.env != "" {
		cmd.Env = append(os.Environ(), s.env)
	}
	err := cmd.Run()
	return output.String(), err
}

// machine describes the machine, the date and the number of runs.
func machine(now time.Time, runs int) string {
	return fmt.Sprintf("%s, %d cores, %s, %s/%s, %s, medians of %d runs.",
		cpu(), runtime.NumCPU(), strings.Replace(runtime.Version(), "go", "Go ", 1), runtime.GOOS, runtime.GOARCH, now.Format(time.DateOnly), runs)
}

// cpu is the model of the CPU.
func cpu() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if found := regexp.MustCompile(`(?m)^model name\s*:\s*(.+)$`).FindSubmatch(text); err == nil && found != nil {
		return string(found[1])
	}
	return "unknown CPU"
}

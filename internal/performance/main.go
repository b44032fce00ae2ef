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

// run measures the wanted tables and writes them. A table that fails does not keep the
// other tables from being measured.
func run(w io.Writer, runs int, wanted *regexp.Regexp) error {
	var failed []string
	fmt.Fprintln(w, machine(time.Now(), runs))
	fmt.Fprintln(w)
	for _, t := range tables() {
		if !wanted.MatchString(t.name()) {
			continue
		}
		if err := t.measure(w, runs); err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", t.name(), err))
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%s", strings.Join(failed, "\n"))
	}
	return nil
}

// measure runs the benchmarks of a group, one run after the other, so that a value and
// its floor are of the same minute, and writes their table.
func (g group) measure(w io.Writer, runs int) error {
	var output strings.Builder
	for range runs {
		printed, err := command(g.env, "go", "test", "-run", "^$", "-bench", g.bench, "-benchtime", g.iterate, "-timeout", "30m", g.pkg)
		if err != nil {
			return err
		}
		output.WriteString(printed)
	}
	return g.write(w, parse(output.String()))
}

// measure runs a script once, and writes its table.
func (s script) measure(w io.Writer, _ int) error {
	printed, err := command(s.env, s.command...)
	if err != nil {
		return err
	}
	return s.write(w, printed)
}

// command runs a command, with a further NAME=VALUE in its environment unless env is "",
// and returns what the command prints, which also goes to standard error.
func command(env string, args ...string) (printed string, err error) {
	var output bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&output, os.Stderr), os.Stderr
	if env != "" {
		cmd.Env = append(os.Environ(), env)
	}
	err = cmd.Run()
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

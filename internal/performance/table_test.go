package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// output is what "go test -bench" prints, twice.
const output = `goos: linux
cpu: Some CPU
BenchmarkServe-2   	       1	       200.0 floor-cpu-µs/call	       230.0 cpu-µs/call	        12.34 peak-MB
BenchmarkStore/Life-2         	       5	1644923643 ns/op	     300 ns/line
PASS
ok  	example.com/a	759.081s
BenchmarkServe-2   	       1	       100.0 floor-cpu-µs/call	       130.0 cpu-µs/call	        14.34 peak-MB
BenchmarkServe-16   	       1	       100.0 floor-cpu-µs/call	       140.0 cpu-µs/call	        1.005 peak-MB
BenchmarkStore/LifeFloor-2    	       5	3184375761 ns/op	     100 ns/line
BenchmarkBroken-2
`

var (
	cpuOfServe   = metric{"Serve", "cpu-µs/call", ""}
	floorOfServe = metric{"Serve", "floor-cpu-µs/call", ""}
)

func TestTable(t *testing.T) {
	for _, test := range []struct {
		name, want string
		row        row
	}{
		{
			"medians of several runs, with a ratio for each run", "| x | 140 µs | 100 µs | 1.30 (1.15–1.40) | ≤ 1.3 |",
			row{"x", cpuOfServe, floorOfServe, 1.3},
		},
		{
			"an aim that is missed", "| x | 140 µs | 100 µs | 1.30 (1.15–1.40) | ≤ 1.15, missed |",
			row{"x", cpuOfServe, floorOfServe, 1.15},
		},
		{
			"no aim", "| x | 140 µs | 100 µs | 1.30 (1.15–1.40) | – |",
			row{"x", cpuOfServe, floorOfServe, 0},
		},
		{
			"no floor", "| x | 12.3 MB | – | – | – |",
			row{"x", metric{"Serve", "peak-MB", ""}, metric{}, 0},
		},
		{
			"an aim for a value", "| x | 12.3 MB | – | – | ≤ 16.0 MB |",
			row{"x", metric{"Serve", "peak-MB", ""}, metric{}, 16},
		},
		{
			"one run, and a floor of another benchmark", "| x | 300 ns | 100 ns | 3.00 | ≤ 1.3, missed |",
			row{"x", metric{"Store/Life", "ns/line", ""}, metric{"Store/LifeFloor", "ns/line", ""}, 1.3},
		},
		{
			"a name for the unit", "| x | 300 ns/line | – | – | – |",
			row{"x", metric{"Store/Life", "ns/line", "ns/line"}, metric{}, 0},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var w strings.Builder
			if err := (group{title: "Title", rows: []row{test.row}}).write(&w, parse(output)); err != nil {
				t.Fatal(err)
			}
			want := "Title\n\n| | measured | floor | ratio | aim |\n|---|---|---|---|---|\n" + test.want + "\n\n"
			if diff := cmp.Diff(want, w.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A table never leaves out what was not measured.
func TestTableOfMissingBenchmark(t *testing.T) {
	for name, r := range map[string]row{
		"x: no benchmark reported MB of Serve": {"x", metric{"Serve", "MB", ""}, metric{}, 0},
		"x: 3 values and 0 floors":             {"x", cpuOfServe, metric{"Serve", "none", ""}, 0},
	} {
		var w strings.Builder
		err := (group{rows: []row{r}}).write(&w, parse(output))
		if err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("error %v, want %s", err, name)
		}
	}
}

// A script's table stands between other lines, which are left out.
func TestScript(t *testing.T) {
	s := script{title: "Title", command: []string{"go", "test"}}
	var w strings.Builder
	if err := s.write(&w, "=== RUN\n    a_test.go:1: \n        | a | b |\n        |---|---|\n--- PASS | x\n    a_test.go:2: \n        | 1 | 2 |\n"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n", w.String()); diff != "" {
		t.Error(diff)
	}
	if err := s.write(&w, "ok\n"); err == nil || !strings.Contains(err.Error(), `["go" "test"] printed no table`) {
		t.Errorf("error %v", err)
	}
}

func TestFormat(t *testing.T) {
	for want, v := range map[string]float64{"1234 µs": 1234, "100 µs": 100, "99.9 µs": 99.9, "10.0 µs": 10, "9.50 µs": 9.5, "0.01 µs": 0.005001, "0 µs": 0} {
		if got := cpuOfServe.format(v); got != want {
			t.Errorf("format(%v) = %s, want %s", v, got, want)
		}
	}
}

// The machine is in the first line of what is printed.
func TestMachine(t *testing.T) {
	got := machine(time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), 3)
	for _, want := range []string{" cores, Go 1.", "/", ", 2026-11-27, medians of 3 runs."} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
}

// Each table has a title of its own and rows that are measured.
func TestGroups(t *testing.T) {
	titles := map[string]bool{}
	for _, g := range groups {
		if titles[g.title] || len(g.rows) == 0 || g.pkg == "" || g.bench == "" || g.iterate == "" {
			t.Errorf("table %q is not complete, or is there twice", g.title)
		}
		titles[g.title] = true
		for _, r := range g.rows {
			if r.name == "" || r.value.bench == "" || r.value.unit == "" {
				t.Errorf("%q has an empty row", g.title)
			}
		}
	}
	for _, s := range scripts {
		if titles[s.title] || len(s.command) == 0 {
			t.Errorf("table %q has no command, or is there twice", s.title)
		}
		titles[s.title] = true
	}
}

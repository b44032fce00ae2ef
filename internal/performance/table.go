package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A table is a table of docs/performance.md.
type table interface {
	name() string
	measure(w io.Writer, runs int) error
}

// tables are all tables.
func tables() (all []table) {
	for _, g := range groups {
		all = append(all, g)
	}
	for _, s := range scripts {
		all = append(all, s)
	}
	return all
}

func (g group) name() string  { return g.title }
func (s script) name() string { return s.title }

// A group is benchmarks that one "go test" runs.
type group struct {
	title   string
	pkg     string
	bench   string
	iterate string // -benchtime
	env     string // NAME=VALUE, "" for none
	rows    []row
}

// A row is one line of the table. A value without a floor is only printed.
type row struct {
	name         string
	value, floor metric
	aim          float64 // the highest wanted ratio, or the highest wanted value where there is no floor; 0: none
}

// A metric is what a benchmark reports in a unit. The unit is printed up to its first
// hyphen or slash if shown is "".
type metric struct{ bench, unit, shown string }

// samples are the values of each metric, in the order of the runs.
type samples map[[2]string][]float64

// parse reads the output of "go test -bench": lines of a name, the number of
// iterations, and pairs of value and unit.
func parse(output string) samples {
	all := samples{}
	for line := range strings.Lines(output) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := fields[0]
		if i := strings.LastIndexByte(name, '-'); i > 0 { // GOMAXPROCS
			name = name[:i]
		}
		for pair := range slices.Chunk(fields[2:], 2) {
			if value, err := strconv.ParseFloat(pair[0], 64); err == nil && len(pair) == 2 {
				key := [2]string{strings.TrimPrefix(name, "Benchmark"), pair[1]}
				all[key] = append(all[key], value)
			}
		}
	}
	return all
}

// of returns the values of a metric, one for each run.
func (s samples) of(m metric) []float64 { return s[[2]string{m.bench, m.unit}] }

// A script prints a table of its own, also among other lines: the lines that begin with
// "|", white space apart.
type script struct {
	title   string
	env     string // NAME=VALUE, "" for none
	command []string
}

// write writes what a script has printed. A script without a table is an error.
func (s script) write(w io.Writer, output string) error {
	var rows strings.Builder
	for line := range strings.Lines(output) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "|") {
			fmt.Fprintln(&rows, line)
		}
	}
	if rows.Len() == 0 {
		return fmt.Errorf("%q printed no table", s.command)
	}
	_, err := fmt.Fprintf(w, "%s\n\n%s\n", s.title, rows.String())
	return err
}

const head = "| | measured | floor | ratio | aim |\n|---|---|---|---|---|\n"

// write writes the table of a group. A row whose benchmark did not run is an error.
func (g group) write(w io.Writer, s samples) error {
	fmt.Fprintf(w, "%s\n\n%s", g.title, head)
	for _, r := range g.rows {
		text, err := r.text(s)
		if err != nil {
			return fmt.Errorf("%w; there are %q", err, slices.SortedFunc(maps.Keys(s), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }))
		}
		fmt.Fprintln(w, text)
	}
	_, err := fmt.Fprintln(w)
	return err
}

func (r row) text(s samples) (string, error) {
	values := s.of(r.value)
	if len(values) == 0 {
		return "", fmt.Errorf("%s: no benchmark reported %s of %s", r.name, r.value.unit, r.value.bench)
	}
	measured := r.value.format(median(values))
	if r.floor == (metric{}) {
		aim := "–"
		if r.aim > 0 {
			aim = verdict(median(values), r.aim, r.value.format(r.aim))
		}
		return fmt.Sprintf("| %s | %s | – | – | %s |", r.name, measured, aim), nil
	}
	floors := s.of(r.floor)
	if len(floors) != len(values) {
		return "", fmt.Errorf("%s: %d values and %d floors", r.name, len(values), len(floors))
	}
	ratios := make([]float64, len(values))
	for i := range values {
		ratios[i] = values[i] / floors[i]
	}
	ratio, aim := fmt.Sprintf("%.2f", median(ratios)), "–"
	if low, high := slices.Min(ratios), slices.Max(ratios); len(ratios) > 1 {
		ratio += fmt.Sprintf(" (%.2f–%.2f)", low, high)
	}
	if r.aim > 0 {
		aim = verdict(median(ratios), r.aim, strconv.FormatFloat(r.aim, 'f', -1, 64))
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s |", r.name, measured, r.floor.format(median(floors)), ratio, aim), nil
}

// verdict is the aim, and whether the aim is met.
func verdict(got, aim float64, text string) string {
	if got <= aim {
		return "≤ " + text
	}
	return "≤ " + text + ", missed"
}

// format formats a value with three digits.
func (m metric) format(v float64) string {
	unit := m.shown
	if unit == "" {
		unit, _, _ = strings.Cut(m.unit, "/")
		unit = unit[strings.LastIndexByte(unit, '-')+1:]
	}
	switch {
	case v >= 100 || v == 0:
		return fmt.Sprintf("%.0f %s", v, unit)
	case v >= 10:
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.2f %s", v, unit)
}

// median returns the middle value, or the mean of both middle values.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

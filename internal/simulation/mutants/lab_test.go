package main

import (
	"strings"
	"testing"
)

func TestMutate(t *testing.T) {
	tests := []struct {
		name, old, new, want, err string
	}{
		{"once", "b", "x", "axc", ""},
		{"missing", "z", "x", "", "occurs 0 times"},
		{"empty", "", "x", "", "changes nothing"},
		{"no change", "b", "b", "", "changes nothing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := mutant{name: tt.name, old: tt.old, new: tt.new}
			got, err := m.mutate([]byte("abc"))
			if string(got) != tt.want || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("mutate = %q, %v; want %q, %q", got, err, tt.want, tt.err)
			}
		})
	}
	m := mutant{old: "a", new: "b"}
	if _, err := m.mutate([]byte("aa")); err == nil || !strings.Contains(err.Error(), "occurs 2 times") {
		t.Errorf("an old text that occurs twice: %v", err)
	}
}

// TestMutants applies each mutant to the source, without a build.
func TestMutants(t *testing.T) {
	l, err := newLab(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if err := l.checkTexts(mutants); err != nil {
		t.Error(err)
	}
	names := make(map[string]bool)
	for _, m := range mutants {
		if names[m.name] {
			t.Errorf("two mutants have the name %q", m.name)
		}
		names[m.name] = true
	}
}

func TestShares(t *testing.T) {
	for _, bad := range []string{"", "0/3", "4/3", "x", "1"} {
		if _, err := parseShare(bad); err == nil {
			t.Errorf("parseShare(%q) returned no error", bad)
		}
	}
	seen := make(map[string]int)
	for _, part := range []string{"1/3", "2/3", "3/3"} {
		var s settings
		if err := s.parse([]string{"-share", part}, t.Output()); err != nil {
			t.Fatal(err)
		}
		for _, m := range s.selected(mutants) {
			seen[m.name]++
		}
	}
	for _, m := range mutants {
		if seen[m.name] != 1 {
			t.Errorf("%q is in %d shares; want 1", m.name, seen[m.name])
		}
	}
}

func TestJudge(t *testing.T) {
	const output = "    simulation_test.go:48: seed 12: {key-0 prompt 1}: 2 lines were paid for, and 1 calls made"
	tests := []struct {
		name   string
		says   string
		output string
		failed bool
		caught bool
	}{
		{"for the right reason", "were paid for", output, true, true},
		{"for any reason", "", output, true, true},
		{"for another reason", "handed out twice", output, true, false},
		{"a panic", "", "panic: deadlock", true, true},
		{"passed", "", "PASS", false, false},
		{"failed without a message", "", "exit status 2", true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if v := judge(&mutant{says: tt.says}, []byte(tt.output), tt.failed); v.caught != tt.caught {
				t.Errorf("caught = %t; want %t: %s", v.caught, tt.caught, v.reason)
			}
		})
	}
}

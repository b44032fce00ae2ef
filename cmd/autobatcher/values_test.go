package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseSeconds(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"60": time.Minute, "0.5": 500 * time.Millisecond, "0": 0, "1e3": 1000 * time.Second,
		"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "250ms": 250 * time.Millisecond,
	} {
		if got, err := parseSeconds(text); err != nil || got != want {
			t.Errorf("parseSeconds(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "-5s", "NaN", "Inf", "-Inf", "1e300", "10 s", "1:30", "5 "} {
		if got, err := parseSeconds(text); err == nil {
			t.Errorf("parseSeconds(%q) = %v; want an error", text, got)
		}
	}
}

func TestGrace(t *testing.T) {
	for text, want := range map[string]time.Duration{"never": never, "45s": 45 * time.Second, "45": 45 * time.Second} {
		var g grace
		if err := g.Set(text); err != nil || time.Duration(g) != want {
			t.Errorf("Set(%q): %v, %v; want %v", text, time.Duration(g), err, want)
		}
	}
	for _, text := range []string{"0", "-1", "-1ns", "Never", ""} {
		if err := new(grace).Set(text); err == nil {
			t.Errorf("Set(%q): no error", text)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]size{"1": 1, "10MB": 10_000_000, "1GiB": 1 << 30, "1048576": 1 << 20, "2 kB": 2000} {
		var s size
		if err := s.Set(text); err != nil || s != want {
			t.Errorf("Set(%q): %d, %v; want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "0", "-1", "x", "1XB", "18EB"} {
		if err := new(size).Set(text); err == nil {
			t.Errorf("Set(%q): no error", text)
		}
	}
}

func TestBudget(t *testing.T) {
	for text, want := range map[string]budget{
		"20usd": {USD: 20}, "20USD/day": {USD: 20, Daily: true}, "0.5 usd": {USD: 0.5}, "1e2usd/day": {USD: 100, Daily: true},
	} {
		var b, again budget
		if err := b.Set(text); err != nil || b != want {
			t.Errorf("Set(%q): %+v, %v; want %+v", text, b, err, want)
		}
		if err := again.Set(b.String()); err != nil || again != b {
			t.Errorf("%q reads as %+v, %v", b.String(), again, err)
		}
	}
	for _, text := range []string{"", "20", "$20", "20eur", "0usd", "-1usd", "NaNusd", "Infusd", "usd", "20usd/week", "20usd/day/day"} {
		if err := new(budget).Set(text); err == nil || !strings.Contains(err.Error(), "such as 20usd") {
			t.Errorf("Set(%q): %v", text, err)
		}
	}
}

func TestVariable(t *testing.T) {
	p := process{env: []string{
		"A=1", "A=2", "EMPTY=", "LINK=tcp://10.0.0.1:8080", "COMMAS=a=1,b=2", "LINES=a=1,5\nb=2",
	}}
	tests := []struct {
		name  string
		list  bool
		want  string
		found bool
	}{
		{"A", false, "2", true},
		{"EMPTY", false, "", false},
		{"MISSING", false, "", false},
		{"LINK", false, "", false},
		{"COMMAS", false, "a=1,b=2", true},
		{"COMMAS", true, "a=1\nb=2", true},
		{"LINES", true, "a=1,5\nb=2", true},
	}
	for _, tt := range tests {
		got, found := variable{name: tt.name, p: p, list: tt.list}.Lookup()
		if got != tt.want || found != tt.found {
			t.Errorf("%s, list %v: %q, %v; want %q, %v", tt.name, tt.list, got, found, tt.want, tt.found)
		}
	}
}

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/journal"
)

func TestStateFolder(t *testing.T) {
	tests := []struct {
		goos string
		env  []string
		want string
	}{
		{"linux", []string{"HOME=/h"}, "/h/.local/state"},
		{"linux", []string{"HOME=/h", "XDG_STATE_HOME=/x"}, "/x"},
		{"linux", []string{"HOME=/h", "XDG_STATE_HOME=x"}, "/h/.local/state"}, // relative: invalid
		{"linux", nil, ""},
		{"darwin", []string{"HOME=/h", "XDG_STATE_HOME=/x"}, "/h/Library/Application Support"},
		{"windows", []string{"HOME=/h", `LocalAppData=C:\Users\me\AppData\Local`}, `C:\Users\me\AppData\Local`},
		{"windows", nil, ""},
	}
	for _, tt := range tests {
		if got := (process{env: tt.env}).stateFolder(tt.goos); got != tt.want {
			t.Errorf("%s, %q: got %q, want %q", tt.goos, tt.env, got, tt.want)
		}
	}
}

func TestPlaceNameHidesThePassword(t *testing.T) {
	tests := map[string]string{
		"postgres://u:secret@h:5432/db?sslmode=require": "postgres://h:5432/db",
		"postgres://u@h/db?password=secret":             "postgres://h/db",
		"postgresql:///db?host=/run/postgresql":         "postgresql:///db",
		"postgres://u:secret@h1:5432,h2:5432/db":        "postgres://h1:5432,h2:5432/db",
		"postgres://u:secret@h:port/db":                 "postgres://…",
		"some/where.db":                                 "some/where.db",
	}
	for place, want := range tests {
		if got := (process{}).placeName(place); got != want {
			t.Errorf("%s: got %q, want %q", place, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	tests := map[time.Duration]string{
		-time.Second:           "0s",
		59 * time.Second:       "59s",
		119 * time.Second:      "1m",
		47*time.Hour + 1:       "47h",
		80 * 24 * time.Hour:    "80d",
		48*time.Hour - 1:       "47h",
		48 * time.Hour:         "2d",
		time.Hour - 1:          "59m",
		time.Minute + 1:        "1m",
		999 * time.Millisecond: "0s",
	}
	for d, want := range tests {
		if got := age(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

// choose returns the batches that can be cancelled, and an error for each other
// batch.
func TestChoose(t *testing.T) {
	const here = "https://here/v1"
	all := []journal.Batch{
		{BatchID: "open", Upstream: here, State: journal.Running, Open: 2},
		{BatchID: "held", Upstream: here, State: journal.Running, Open: 1, Held: 1},
		{BatchID: "delivered", Upstream: here, State: journal.Running, Delivered: 3},
		{BatchID: "ended", Upstream: here, State: journal.Ended, Open: 1},
		{BatchID: "elsewhere", Upstream: "https://there/v1", State: journal.Running, Open: 1},
		{Upstream: here, State: journal.Uploading, Open: 1},
	}
	tests := []struct {
		name  string
		ids   []string
		force bool
		want  []string
		errs  []string
	}{
		{"all without waiting callers", nil, false, []string{"open"}, nil},
		{"all, with force", nil, true, []string{"open", "held"}, nil},
		{"some", []string{"delivered", "open"}, false, []string{"delivered", "open"}, nil},
		{"held", []string{"open", "held"}, false, []string{"open"}, []string{"held: callers of a running process wait for 1 line; --force"}},
		{"held, with force", []string{"held"}, true, []string{"held"}, nil},
		{"no batch can be cancelled", []string{"ended", "elsewhere", "unknown", ""}, true, nil, []string{
			"ended has ended already", "elsewhere runs at https://there/v1", `the journal has no batch "unknown"`, `the journal has no batch ""`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := &canceller{upstream: here, force: tt.force}
			chosen, err := c.choose(append([]journal.Batch(nil), all...), tt.ids)
			var got []string
			for _, b := range chosen {
				got = append(got, b.BatchID)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("chosen (-want +got):\n%s", diff)
			}
			if (err != nil) != (len(tt.errs) > 0) {
				t.Fatalf("error %v", err)
			}
			for _, want := range tt.errs {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error %q does not contain %q", err, want)
				}
			}
		})
	}
}

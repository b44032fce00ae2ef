package main

import (
	"runtime/debug"
	"testing"
)

func TestVersionOf(t *testing.T) {
	t.Parallel()
	built := func(version string) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}}
	}
	for _, test := range []struct {
		name, release string
		info          *debug.BuildInfo
		want          string
	}{
		{"release", "v1.2.3", built("v1.2.4-0.20261127020000-0123456789ab+dirty"), "v1.2.3"},
		{"go install", "", built("v1.2.3"), "v1.2.3"},
		{"without version control", "", built("(devel)"), "(devel)"},
		{"without a version", "", built(""), "(devel)"},
		{"without modules", "", nil, "(devel)"},
	} {
		if got := versionOf(test.release, test.info); got != test.want {
			t.Errorf("%s: version %q, want %q", test.name, got, test.want)
		}
	}
}

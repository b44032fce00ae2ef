package callheader_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/callheader"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/reply"
)

func TestParse(t *testing.T) {
	for name, tt := range map[string]struct {
		header http.Header
		want   callheader.Options
	}{
		"nil":              {nil, callheader.Options{}},
		"foreign":          {http.Header{"Autobatch": {"x"}, "Accept": {"x"}}, callheader.Options{}},
		"the prefix alone": {http.Header{"Autobatcher-": {"x"}}, callheader.Options{}},
		"without a value":  {http.Header{callheader.Mode: {}}, callheader.Options{}},
		"batch":            {http.Header{callheader.Mode: {"batch"}}, callheader.Options{Mode: lane.Batch}},
		"realtime":         {http.Header{callheader.Mode: {"realtime"}}, callheader.Options{Mode: lane.Realtime}},
		"repeated":         {http.Header{callheader.Mode: {"realtime", "realtime"}}, callheader.Options{Mode: lane.Realtime}},
		"any case":         {http.Header{"AUTOBATCHER-deadline": {"2h"}}, callheader.Options{Deadline: 2 * time.Hour}},
		"all": {
			http.Header{callheader.Mode: {"batch"}, callheader.Window: {"7d"}, callheader.Deadline: {"90s"}},
			callheader.Options{Mode: lane.Batch, Window: "7d", Deadline: 90 * time.Second},
		},
	} {
		got, err := callheader.Parse(tt.header)
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, value := range map[string]string{
		callheader.Mode: "Realtime", callheader.Deadline: "30", "autobatcher-deadline": "-1s", "Autobatcher-Window": "1h",
	} {
		_, err := callheader.Parse(http.Header{name: {value}})
		var refusal *reply.RequestError
		if !errors.As(err, &refusal) || refusal.Status != http.StatusBadRequest || refusal.Code != "invalid_header" {
			t.Errorf("%s: %s: %v; want a refusal", name, value, err)
		}
	}
}

// TestParseRefusesDifferentValues checks that a request has one mode, whichever of
// several lines a server in front of autobatcher reads.
func TestParseRefusesDifferentValues(t *testing.T) {
	for _, values := range [][]string{{"batch", "realtime"}, {"realtime", "batch"}, {"realtime", ""}} {
		if o, err := callheader.Parse(http.Header{callheader.Mode: values}); err == nil {
			t.Errorf("%q: %+v, want an error", values, o)
		}
	}
}

func TestName(t *testing.T) {
	for _, tt := range []struct {
		header http.Header
		want   string
	}{
		{nil, ""},
		{http.Header{"Accept": {"x"}, callheader.Mode: {}}, ""},
		{http.Header{"Accept": {"x"}, "autobatcher-x": {"y"}}, "autobatcher-x"},
	} {
		if got := callheader.Name(tt.header); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.header, got, tt.want)
		}
	}
}

func TestKeep(t *testing.T) {
	for _, tt := range []struct{ connection, want []string }{
		{nil, nil},
		{[]string{"keep-alive"}, []string{"keep-alive"}},
		{[]string{"keep-alive, Autobatcher-Mode", "X-Hop,autobatcher-deadline"}, []string{"keep-alive, X-Hop"}},
		{[]string{"Autobatcher-Mode"}, nil},
	} {
		h := http.Header{}
		if tt.connection != nil {
			h["Connection"] = tt.connection
		}
		callheader.Keep(h)
		if diff := cmp.Diff(tt.want, h["Connection"]); diff != "" {
			t.Errorf("%q: %s", tt.connection, diff)
		}
	}
}

func TestStrip(t *testing.T) {
	plain := &http.Request{Header: http.Header{"Accept": {"x"}}}
	if callheader.Strip(plain) != plain {
		t.Error("a request without headers of autobatcher was cloned")
	}
	header := http.Header{"Accept": {"x"}, callheader.Mode: {"batch"}, "autobatcher-x": {"y"}}
	req := (&http.Request{Header: header.Clone()}).WithContext(t.Context())
	got := callheader.Strip(req)
	if diff := cmp.Diff(plain.Header, got.Header); diff != "" || got.Context() != t.Context() {
		t.Errorf("wrong clone:\n%s", diff)
	}
	if diff := cmp.Diff(header, req.Header); diff != "" {
		t.Errorf("Strip changed the request:\n%s", diff)
	}
}

package autobatcher_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// polls counts the requests for one batch's status.
func (t *trial) polls() (n int) {
	for _, r := range t.srv.Requests() {
		if r.Method == http.MethodGet && strings.Contains(r.Path, "/batches/") {
			n++
		}
	}
	return n
}

// A batch is polled as often as the Options and the provider allow, and a long batch
// less often.
func TestHowOftenABatchIsPolled(t *testing.T) {
	azure := provider.Azure()
	tests := []struct {
		name        string
		options     autobatcher.Options
		turnaround  time.Duration
		least, most int
		late        time.Duration // the answer may come so long after the batch's end
	}{
		{"every five seconds by default", autobatcher.Options{}, time.Minute, 12, 12, 5 * time.Second},
		{"as the Options say", autobatcher.Options{PollInterval: 2 * time.Minute}, 10 * time.Minute, 5, 5, 2 * time.Minute},
		{"as the provider asks", autobatcher.Options{Provider: &azure}, 10 * time.Minute, 5, 10, time.Minute},
		{"a batch of a day", autobatcher.Options{}, 23 * time.Hour, 100, 2000, 2 * time.Minute},
	}
	for _, test := range tests {
		server := batchtest.Options{Turnaround: test.turnaround}
		if test.options.Provider != nil {
			server.Behavior = batchtest.Azure()
		}
		try(t, test.name, server, test.options, func(t *trial) {
			a := t.call("/chat/completions", chat("a"))
			end := 10*time.Second + test.turnaround
			if a.err != nil || a.res.StatusCode != 200 || a.at < end || a.at > end+test.late {
				t.Errorf("%v, %v at %v; want an answer from %v to %v", a.err, a.res, a.at, end, end+test.late)
			}
			if n := t.polls(); n < test.least || n > test.most {
				t.Errorf("%d polls; want %d to %d", n, test.least, test.most)
			}
		})
	}
}

// A failed poll costs one interval and no more, whatever went wrong.
func TestFailedPolls(t *testing.T) {
	for name, fault := range map[string]batchtest.Fault{
		"500": batchtest.Status(500, nil, "{}"), "502 page": batchtest.HTML(502), "reset": batchtest.Reset(),
		"page instead of JSON": batchtest.HTML(200), "half an object": batchtest.Truncate(20), "torn": batchtest.Tear(20),
		"404": batchtest.Status(404, nil, "{}"), "429": batchtest.RateLimit(time.Second), "nothing": batchtest.Status(200, nil, ""),
		"no id": batchtest.Status(200, nil, "{}"), "null": batchtest.Status(200, nil, "null"), "403": batchtest.HTML(403),
	} {
		try(t, name, batchtest.Options{}, autobatcher.Options{}, func(t *trial) {
			t.srv.Control(batchtest.OpRetrieve, fault, fault, fault)
			if a := t.call("/chat/completions", chat("a")); a.err != nil || a.res.StatusCode != 200 || a.at < 30*time.Second || a.at > 40*time.Second {
				t.Errorf("%v, %v at %v; want 200 after four polls", a.err, a.res, a.at)
			}
		})
	}
	try(t, "no answer", batchtest.Options{}, autobatcher.Options{}, func(t *trial) {
		t.srv.Control(batchtest.OpRetrieve, batchtest.Hang())
		if a := t.call("/chat/completions", chat("a")); a.err != nil || a.res.StatusCode != 200 || a.at < 75*time.Second || a.at > 90*time.Second {
			t.Errorf("%v, %v at %v; want 200 after the timeout of a minute", a.err, a.res, a.at)
		}
	})
}

// A batch that stays unknown or forbidden is given up after ten minutes.
func TestABatchThatStaysUnknown(t *testing.T) {
	for _, status := range []int{404, 401, 403} {
		try(t, http.StatusText(status), batchtest.Options{}, autobatcher.Options{PollInterval: 30 * time.Second}, func(t *trial) {
			t.srv.Keep(batchtest.OpRetrieve, batchtest.Status(status, nil, `{}`))
			a := t.call("/chat/completions", chat("a"))
			if a.err != nil || a.res.StatusCode != 424 || a.at < 10*time.Minute || a.at > 12*time.Minute {
				t.Fatalf("%v, %v at %v; want 424 after ten minutes", a.err, a.res, a.at)
			}
			if !strings.Contains(a.body, "batch_lost") || !strings.Contains(a.body, t.srv.Batches()[0].ID) {
				t.Errorf("body %s; want batch_lost and the batch's id", a.body)
			}
		})
	}
}

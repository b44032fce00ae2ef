package background

import (
	"fmt"
	"net/http"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/reply"
)

// expired is the n-th call of a batch that has expired, as OpenAI says so.
func expired(n int, async bool) *job {
	a := reply.Failure(http.StatusFailedDependency, "batch_expired", "the batch expired before it came to the request; the provider says: This request could not be executed before the completion window expired.")
	a.BatchID, a.RequestID = "batch_67f7bdc2b3b88190b1a3dcd6e8e5f0ab", fmt.Sprintf("req_%032x", n)
	a.CustomID = fmt.Sprintf("9f86d081884c7d65-%06d", n)
	res := a.Response(new(http.Request))
	c := callOf(fmt.Sprintf("%s%032x", responsePrefix, n))
	if async {
		c = callOf(fmt.Sprintf("%s%032x", asyncPrefix, n))
	}
	c.model = "gpt-4o-mini-2024-07-18"
	var k Key
	copy(k.Account[:], "account")
	copy(k.Fingerprint[:], c.id[len(responsePrefix):])
	j := newJob(names{key: k}, c)
	j.result = result{status: a.Status, header: res.Header, body: a.Body}
	return j
}

// All calls of a process can fail, and be asked for. The memory of their endings is bounded.
func TestEndings(t *testing.T) {
	for _, tt := range []struct {
		name      string
		end       func(n int) *ending
		calls     int
		forgotten bool // beyond the bound
	}{
		{"failures", func(n int) *ending { return expired(n, false).failure() }, maxJobs, false},
		{"failures of other endpoints", func(n int) *ending { return expired(n, true).failure() }, maxJobs, false},
		{"failures with much metadata", func(n int) *ending { return annotated(n).failure() }, 20_000, true},
		{"cancellations with much metadata", func(n int) *ending { return annotated(n).cancellation() }, 20_000, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			before := heap()
			for n := range tt.calls {
				w.end(tt.end(n))
			}
			used := heap() - before
			if most := int64(endingsBytes * 9 / 8); used > most { // the runtime rounds sizes up by an eighth
				t.Errorf("%d endings take %d bytes, want %d at the most", len(w.endings), used, most)
			}
			if forgotten := len(w.endings) < tt.calls; forgotten != tt.forgotten {
				t.Errorf("%d of %d endings are kept, %d bytes each", len(w.endings), tt.calls, used/int64(len(w.endings)))
			}
			runtime.KeepAlive(w)
		})
	}
	if size := reflect.TypeFor[ending]().Size(); size > endingBytes {
		t.Errorf("an ending has %d bytes, want %d at the most", size, endingBytes)
	}
}

func annotated(n int) *job {
	j := expired(n, false)
	j.metadata = []byte(`{"k":"` + strings.Repeat("x", 9000) + `"}`)
	return j
}

// heap returns the bytes that are in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The answer for a call that has failed does not change when little is kept of the failure.
func TestEndingSaysWhatTheCallGot(t *testing.T) {
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://h.test/responses/x", nil)
	for name, change := range map[string]func(*job){
		"an error":            func(*job) {},
		"metadata":            func(j *job) { j.metadata = []byte(`{"b":"<&>","a":"1"}`) },
		"no error":            func(j *job) { j.result.body = []byte("\xff no\x00 JSON") },
		"a code of a number":  func(j *job) { j.result.body = []byte(`{"error":{"code":429,"message":"<slow> & \"down\""}}`) },
		"no body":             func(j *job) { j.result.body = nil },
		"two headers":         func(j *job) { j.result.header["X-Two"] = []string{"a: b", "", "c"} },
		"a retry is possible": func(j *job) { j.result.status = 503; j.result.header.Set("Retry-After", "5") },
	} {
		for _, async := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, async %v", name, async), func(t *testing.T) {
				j := expired(1, async)
				change(j)
				j.result.header.Set("Content-Length", strconv.Itoa(len(j.result.body)))
				wantRes := j.final(req, j.result)
				want := newWorld(t, nil).read(wantRes)
				got := j.failure().response(req, j.id)
				if text := newWorld(t, nil).read(got); text != want {
					t.Errorf("body %s, want %s", text, want)
				}
				if !reflect.DeepEqual(got.Header, wantRes.Header) || got.StatusCode != wantRes.StatusCode {
					t.Errorf("%d %v, want %d %v", got.StatusCode, got.Header, wantRes.StatusCode, wantRes.Header)
				}
			})
		}
	}
}

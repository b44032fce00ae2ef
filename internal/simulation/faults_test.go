package simulation

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// runProviderFaults makes requests to the provider fail, and ends batches early.
func (w *world) runProviderFaults() {
	d := newDice(w.seed, "weather")
	for w.sleep(d.between(time.Second, w.length/8)) {
		switch n := d.IntN(20); {
		case n < 14:
			op := []batchtest.Op{
				batchtest.OpCreate, batchtest.OpCreate, batchtest.OpCreate, batchtest.OpUpload, batchtest.OpRetrieve,
				batchtest.OpContent, batchtest.OpContent, batchtest.OpList, batchtest.OpCancel, batchtest.OpDeleteFile,
			}[d.IntN(10)]
			for range 1 + d.IntN(3) {
				w.srv.Control(op, randomFault(d))
			}
			w.logf("faults at %s", op)
		case n < 16:
			f := []batchtest.Fault{batchtest.Status(503, nil, "{}"), batchtest.Reset(), batchtest.HTML(502), batchtest.RateLimit(time.Minute)}[d.IntN(4)]
			stop := w.srv.Keep(batchtest.OpAny, f)
			length := d.between(time.Second, 15*time.Minute)
			w.logf("outage of %v", length)
			w.sleep(length)
			stop()
			w.faultEnds()
		default:
			w.endBatchEarly(d)
		}
	}
}

func randomFault(d dice) batchtest.Fault {
	switch d.IntN(9) {
	case 0, 1:
		return batchtest.LoseAnswer()
	case 7:
		return batchtest.Hang()
	case 2:
		return batchtest.Reset()
	case 3:
		return batchtest.Status([]int{500, 503, 504, 408}[d.IntN(4)], nil, `{"error":{"message":"trouble"}}`)
	case 4:
		return batchtest.HTML(502)
	case 5:
		return batchtest.RateLimit(d.between(0, time.Minute))
	case 6:
		return batchtest.Tear(d.IntN(2000))
	}
	return batchtest.Delay(d.between(time.Millisecond, 4*time.Second))
}

// endBatchEarly ends a batch early, as the provider or the owner of the key may.
func (w *world) endBatchEarly(d dice) {
	batches := w.srv.Batches()
	if len(batches) == 0 {
		return
	}
	b := batches[d.IntN(len(batches))]
	switch d.IntN(4) {
	case 0:
		w.logf("%s expires", b.ID)
		_ = w.srv.Expire(b.ID)
	case 1:
		code := []string{"invalid_json_line", "token_limit_exceeded", "server_error", "invalid_request"}[d.IntN(4)]
		w.logf("%s fails: %s", b.ID, code)
		w.mu.Lock()
		w.failedWhole[b.ID] = true
		w.mu.Unlock()
		_ = w.srv.FailBatch(b.ID, code, "failedWhole", d.IntN(2))
	case 2:
		w.logf("%s is cancelled by another", b.ID)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, w.srv.URL+"/batches/"+b.ID+"/cancel", nil)
		req.Header.Set("Authorization", "Bearer "+b.APIKey)
		if res, err := w.srv.Transport().RoundTrip(req); err == nil {
			res.Body.Close()
		}
	case 3:
		_ = w.srv.Finish(b.ID)
	}
}

// runGatewayErrors lets a gateway answer for the provider, which has carried the
// request out.
func (w *world) runGatewayErrors() {
	d := newDice(w.seed, "gateway errors")
	for w.sleep(d.between(time.Second, w.length/6)) {
		op := []batchtest.Op{batchtest.OpCreate, batchtest.OpCreate, batchtest.OpUpload, batchtest.OpDeleteFile, batchtest.OpCancel}[d.IntN(5)]
		status := []int{502, 504}[d.IntN(2)]
		w.logf("a gateway answers %d to the next %s", status, op)
		w.srv.Control(op, func(rw http.ResponseWriter, r *http.Request) bool {
			batchtest.Proceed(httptest.NewRecorder(), r)
			return batchtest.HTML(status)(rw, r)
		})
	}
}

// runLongRetryAfter answers single requests with a Retry-After of hours.
func (w *world) runLongRetryAfter() {
	d := newDice(w.seed, "long Retry-After")
	// A batch is polled every ten minutes while polls fail: more refusals than polls
	// would pile up.
	for w.sleep(d.between(time.Second, max(w.length/4, 40*time.Minute))) {
		op := []batchtest.Op{
			batchtest.OpRetrieve, batchtest.OpRetrieve, batchtest.OpList, batchtest.OpContent,
			batchtest.OpUpload, batchtest.OpCreate, batchtest.OpCancel, batchtest.OpDeleteFile,
		}[d.IntN(8)]
		wait, status := d.between(10*time.Minute, 24*time.Hour), []int{429, 503}[d.IntN(2)]
		w.logf("the provider answers %d to the next %s, with Retry-After %v", status, op, wait)
		header := http.Header{"Retry-After": {strconv.Itoa(int(wait / time.Second))}}
		w.srv.Control(op, batchtest.Status(status, header, `{"error":{"message":"come back later"}}`))
	}
}

// runPartitions cuts a replica off from the provider, and another replica off
// from the journal at the same time.
func (w *world) runPartitions() {
	d := newDice(w.seed, "partitions")
	for w.sleep(d.between(time.Second, w.length/2+30*time.Minute)) {
		w.mu.Lock()
		up := slices.Clone(w.up)
		w.mu.Unlock()
		first, second := d.IntN(3), 1+d.IntN(2)
		noProvider, noJournal := d.between(time.Second, 20*time.Minute), d.between(time.Second, 3*time.Minute)
		if len(up) == 0 {
			continue
		}
		p := up[first%len(up)]
		p.logf("does not reach the provider for %v", noProvider)
		p.cutOff(&p.noProvider, noProvider)
		if q := up[(first+second)%len(up)]; q != p && w.journal {
			q.logf("does not reach the journal for %v", noJournal)
			q.cutOff(&q.noJournal, noJournal)
		}
		w.sleep(noProvider)
		w.faultEnds()
	}
}

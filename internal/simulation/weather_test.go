package simulation

import (
	"context"
	"net/http"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// runWeather troubles the provider.
func (w *world) runWeather() {
	d := newDice(w.seed, "weather")
	for w.sleep(d.between(time.Second, w.length/8)) {
		switch n := d.IntN(20); {
		case n < 14:
			op := []batchtest.Op{
				batchtest.OpCreate, batchtest.OpCreate, batchtest.OpCreate, batchtest.OpUpload, batchtest.OpRetrieve,
				batchtest.OpContent, batchtest.OpContent, batchtest.OpList, batchtest.OpCancel, batchtest.OpDeleteFile,
			}[d.IntN(10)]
			for range 1 + d.IntN(3) {
				w.srv.Control(op, badLuck(d))
			}
			w.tell("faults at %s", op)
		case n < 16:
			f := []batchtest.Fault{batchtest.Status(503, nil, "{}"), batchtest.Reset(), batchtest.HTML(502), batchtest.RateLimit(time.Minute)}[d.IntN(4)]
			stop := w.srv.Keep(batchtest.OpAny, f)
			length := d.between(time.Second, 15*time.Minute)
			w.tell("outage of %v", length)
			w.sleep(length)
			stop()
		default:
			w.strike(d)
		}
	}
}

func badLuck(d dice) batchtest.Fault {
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

// strike ends a batch before its time, as the provider or its owner may.
func (w *world) strike(d dice) {
	batches := w.srv.Batches()
	if len(batches) == 0 {
		return
	}
	b := batches[d.IntN(len(batches))]
	switch d.IntN(4) {
	case 0:
		w.tell("%s expires", b.ID)
		_ = w.srv.Expire(b.ID)
	case 1:
		code := []string{"invalid_json_line", "token_limit_exceeded", "server_error", "invalid_request"}[d.IntN(4)]
		w.tell("%s fails: %s", b.ID, code)
		w.mu.Lock()
		w.struck[b.ID] = true
		w.mu.Unlock()
		_ = w.srv.FailBatch(b.ID, code, "struck", d.IntN(2))
	case 2:
		w.tell("%s is cancelled by another", b.ID)
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

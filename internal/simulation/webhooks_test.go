package simulation

import (
	"cmp"
	"encoding/base64"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/batchtest"
)

// A webhookSet says how the provider announces the ends of batches. The zero webhookSet
// announces nothing.
type webhookSet struct {
	drawn   bool
	lost    float64 // how likely an announcement gets lost on its way to one process
	late    float64 // how likely an announcement is late
	doubled int     // how many further times an announcement comes
	delay   time.Duration
}

func drawWebhooks(p *plan, d dice) {
	p.webhooks = webhookSet{
		drawn: true, lost: d.Float64() * d.Float64(), late: 0.5 * d.Float64(), doubled: d.IntN(3), delay: d.of(0, 0, d.between(0, time.Minute)),
	}
}

// addWebhook has the server announce the ends of batches and of responses.
func (w *world) addWebhook() {
	if !w.webhooks.drawn {
		return
	}
	err := w.srv.AddWebhook(batchtest.Webhook{
		Secret:  "whsec_" + base64.StdEncoding.EncodeToString([]byte("a secret of at least 24 bytes")),
		Handler: http.HandlerFunc(w.announce), Delay: w.webhooks.delay, Duplicates: w.webhooks.doubled,
	})
	if err != nil {
		w.failf("AddWebhook: %v", err)
	}
}

// announce passes an announcement on to processes. A few of the requests fail, so that the
// server repeats them minutes or hours later.
func (w *world) announce(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.failf("webhook: %v", err)
	}
	data := gjson.GetBytes(body, "data")
	id := cmp.Or(data.Get("id").String(), data.Get("batch_id").String())
	w.mu.Lock()
	w.announcements++
	d := newDice(w.seed, "announcement", w.announcements)
	up := slices.Clone(w.up)
	w.mu.Unlock()
	if d.chance(0.05) {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	for _, p := range up {
		late := time.Duration(0)
		if lost, isLate := d.chance(w.webhooks.lost), d.chance(w.webhooks.late); lost {
			continue
		} else if isLate {
			late = d.between(time.Second, time.Hour)
		}
		go func() {
			time.Sleep(late)
			if !p.isDead() {
				p.wake(id)
			}
		}()
	}
}

// wake passes the id of an announcement on, as the proxy does: an event of Doubleword names
// a batch without the prefix of its id.
func (p *replica) wake(id string) {
	bare := strings.TrimPrefix(id, "batch_")
	woken := p.tr.Wake(bare)
	woken = p.tr.Wake("batch_"+bare) || woken
	p.logf("the end of %s is announced; polled: %v", id, woken)
	if woken {
		p.w.tally.add(countWoken, 1)
	}
}

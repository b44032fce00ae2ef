package blackbox_test

import (
	"encoding/json"
	"testing"
	"testing/synctest"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// Only successful answers cost, and a price that is not known is not zero.
func TestCostsOfABatch(t *testing.T) {
	u := setup{
		server: batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			if l.Number == 1 {
				return batchtest.Outcome{Status: 400, Body: []byte(`{"error":{"message":"bad"},"model":"m","usage":{"prompt_tokens":9}}`)}
			}
			return batchtest.Outcome{}
		}},
		options: autobatcher.Options{Prices: []byte(`{"m": {"input_cost_per_token": 0.5, "output_cost_per_token": 2, "input_cost_per_token_batches": 0.25, "output_cost_per_token_batches": 1}}`)},
	}
	u.run(t, "", func(s *scene) {
		a, b := s.chat("a"), s.chat("b")
		answers := []reply{a.wait(), b.wait()}
		synctest.Wait()
		total := s.tr.Stats().Cost
		if total.USD <= 0 || total.Savings != total.USD || total.Priced != 1 || total.Unpriced != 0 || total.PricesDate == "" {
			s.Errorf("total %+v", total)
		}
		priced := 0
		for _, r := range answers {
			if (r.header.Get("Autobatcher-Cost") != "") != (r.status == 200) {
				s.Errorf("status %d, headers %v", r.status, r.header)
			}
			if r.status == 200 {
				priced++
			}
		}
		e := s.event(autobatcher.BatchCost)
		if priced != 1 || e.Cost != total {
			s.Errorf("%d answers have a price; event %+v, total %+v", priced, e, total)
		}
		if text, err := json.Marshal(e); err != nil || !json.Valid(text) {
			s.Errorf("%s, %v", text, err)
		}
	})
}

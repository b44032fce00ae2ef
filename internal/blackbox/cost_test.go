package blackbox_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

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

// The journal has the cost of all lines of a batch, although the process that ends the
// batch answers only some of the lines, and does not forget the cost when a later process
// reads the results again.
func TestCostsAfterACrash(t *testing.T) {
	inFleet(t, fiveTokens(10*time.Minute), func(f *fleet) {
		o := autobatcher.Options{Prices: []byte(tokenPrices), KeepFor: 48 * time.Hour}
		wantCost := func(when string) {
			f.Helper()
			time.Sleep(time.Minute)
			if b := f.only(); b.Cost != "15" || b.Savings != "15" {
				f.Errorf("%s: the journal has the cost %q and the savings %q of three lines, want 15 and 15", when, b.Cost, b.Savings)
			}
		}
		first := f.start(o)
		for i := range 3 {
			first.ask(f.Context(), fmt.Sprint("prompt ", i))
		}
		time.Sleep(time.Minute)
		first.cut()
		for i := range 2 {
			later := f.start(o)
			f.wantAnswer(later.ask(f.Context(), fmt.Sprint("prompt ", i)), "x")
			wantCost(fmt.Sprint("process ", i+1))
			synctest.Wait()
			if got := later.Stats().Cost; got.USD != 5 || got.Priced != 1 {
				f.Errorf("process %d counts %+v, want the line that it answered", i+1, got)
			}
			later.cut()
			time.Sleep(time.Minute)
		}
		all := f.srv.Batches()[0].Lines
		last := all[slices.IndexFunc(all, func(l batchtest.BatchLine) bool { return bytes.Contains(l.Body, []byte("prompt 2")) })]
		f.srv.Keep(batchtest.OpContent, rewrite(func(body []byte, _ http.Header) []byte { // only a part of the results is left
			for line := range bytes.Lines(body) {
				if bytes.Contains(line, []byte(last.CustomID)) {
					return line
				}
			}
			return nil
		}))
		f.wantAnswer(f.start(o).ask(f.Context(), "prompt 2"), "x")
		wantCost("with a part of the results")
		f.wantPaid(3, 1)
	})
}

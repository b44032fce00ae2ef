package blackbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
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

// The lines of a batch are paid for whether or not their callers come back. The process
// that sent a batch counts all lines, and spends the budget; a process that resumes a
// batch counts the lines that it answers, since the first process may have counted the
// others, and reports the cost of the whole batch.
func TestLinesWithoutCallersCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, fiveTokens(time.Hour))
		var batches []float64
		o := autobatcher.Options{
			Prices: []byte(tokenPrices), Budget: autobatcher.Budget{USD: 10_000}, AbandonAfter: -1,
			OnEvent: func(e autobatcher.Event) {
				if e.Name == autobatcher.BatchCost {
					batches = append(batches, e.Cost.USD)
				}
			},
		}
		// ask makes three calls, of which the callers of two leave when the calls are sent.
		ask := func(p *process, day string) <-chan outcome {
			ctx, leave := context.WithCancel(t.Context())
			one, two := p.ask(ctx, "one"+day), p.ask(ctx, "two"+day)
			stays := p.ask(t.Context(), "three"+day)
			time.Sleep(time.Minute)
			leave()
			<-one
			<-two
			time.Sleep(time.Minute) // the journal has released the lines
			return stays
		}
		costs := func(p *process, total float64, perBatch ...float64) {
			t.Helper()
			synctest.Wait()
			if s := p.Stats(); s.Cost.USD != total || s.Budget.SpentUSD != total {
				t.Errorf("the process counts $%v, and $%v are spent; want $%v", s.Cost.USD, s.Budget.SpentUSD, total)
			}
			if len(batches) != len(perBatch) || batches[len(batches)-1] != perBatch[len(perBatch)-1] {
				t.Errorf("the batches cost %v, want %v", batches, perBatch)
			}
		}
		first := f.start(o)
		f.wantAnswer(ask(first, "monday"), "x")
		costs(first, 15, 15)
		f.wantAnswer(first.ask(t.Context(), "onemonday"), "x") // read again, for a late retry
		costs(first, 15, 15, 15)

		ask(first, "tuesday")
		first.cut()
		second := f.start(o)
		f.wantAnswer(second.ask(t.Context(), "threetuesday"), "x")
		costs(second, 5, 15, 15, 15)
		all, err := f.store.Batches(t.Context(), journal.Filter{})
		if err != nil || len(all) != 2 || all[0].Cost != "15" || all[1].Cost != "15" {
			t.Errorf("the journal has %+v, %v", all, err)
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

package blackbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
)

// tokenPrices make an output token of the model m cost a dollar in a batch, two in
// real time, and an input token nothing, but for the model in, whose input costs.
const tokenPrices = `{
	"m": {"input_cost_per_token": 0, "output_cost_per_token": 2, "output_cost_per_token_batches": 1},
	"in": {"input_cost_per_token": 2, "output_cost_per_token": 0, "input_cost_per_token_batches": 1}}`

// fiveTokens is a server whose answers have five output tokens.
func fiveTokens(turnaround time.Duration) batchtest.Options {
	return batchtest.Options{Turnaround: turnaround, Answer: func(batchtest.Line) batchtest.Outcome {
		return batchtest.Outcome{Body: []byte(`{"id":"1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":5,"total_tokens":6}}`)}
	}}
}

// budgeted is a setup with a budget in dollars.
func budgeted(server batchtest.Options, usd float64) setup {
	return setup{server: server, options: autobatcher.Options{
		Prices: []byte(tokenPrices), Budget: autobatcher.Budget{USD: usd}, AbandonAfter: -1,
	}}
}

// limited is a call whose answer may have n tokens.
func limited(text string, n int) string {
	return fmt.Sprintf(`{"model":"m","max_tokens":%d,"messages":[{"role":"user","content":%q}]}`, n, text)
}

func (s *scene) budget(spent, reserved float64) {
	s.Helper()
	synctest.Wait()
	if b := s.tr.Stats().Budget; b.SpentUSD != spent || b.ReservedUSD != reserved {
		s.Errorf("%v dollars are spent and %v reserved, want %v and %v", b.SpentUSD, b.ReservedUSD, spent, reserved)
	}
}

// A call that does not fit into the budget is refused, and no other call is
// affected.
func TestBudget(t *testing.T) {
	const chat = "/chat/completions"
	budgeted(fiveTokens(0), 100).run(t, "a call that does not fit", func(s *scene) {
		first := s.send(chat, limited("a", 60))
		s.budget(0, 60)
		refused := s.post(chat, limited("b", 60)).want(402, 0)
		refused.fails("budget_exhausted")
		if refused.header.Get("X-Should-Retry") != "false" {
			s.Errorf("an SDK would retry: %v", refused.header)
		}
		small := s.send(chat, limited("c", 40))
		s.post(chat, limited("d", 1000), with("Autobatcher-Mode", "realtime")).want(200, 0)
		s.budget(0, 100)
		first.want(200, 15*time.Second)
		small.want(200, 15*time.Second)
		s.budget(10, 0)
		s.post(chat, limited("b", 60)).want(200, 30*time.Second)
		s.budget(15, 0)
		if n := s.tr.Stats().Budget.Refused; n != 1 {
			s.Errorf("%d calls were refused", n)
		}
	})
	budgeted(fiveTokens(0), 8).run(t, "for the life of the Transport", func(s *scene) {
		s.post(chat, limited("a", 8)).want(200, 15*time.Second)
		s.until(48 * time.Hour)
		s.post(chat, limited("b", 8)).want(402, 48*time.Hour)
	})
	daily := budgeted(fiveTokens(0), 8)
	daily.options.Budget.Daily = true
	daily.run(t, "for a day", func(s *scene) {
		s.post(chat, limited("a", 8)).want(200, 15*time.Second)
		s.until(time.Until(time.Now().UTC().Truncate(24*time.Hour).Add(24*time.Hour)) + s.elapsed() - time.Second)
		now := s.elapsed()
		s.post(chat, limited("b", 8)).want(402, now)
		s.until(now + time.Second)
		s.budget(0, 0)
		s.post(chat, limited("b", 8)).want(200, now+16*time.Second)
	})
	budgeted(fiveTokens(0), 100).run(t, "a model without a price", func(s *scene) {
		body := `{"model":"unheard-of","messages":[]}`
		s.post(chat, body).want(402, 0).fails("price_unknown")
		s.post(chat, body, with("Autobatcher-Mode", "realtime")).want(200, 0)
		s.budget(0, 0)
	})
}

// A reservation ends with its call, however the call ends.
func TestReservationsEnd(t *testing.T) {
	const chat = "/chat/completions"
	failing := batchtest.Options{Answer: func(batchtest.Line) batchtest.Outcome {
		return batchtest.Outcome{Status: 400, Body: []byte(`{"error":{"message":"bad","type":"invalid_request_error","param":null,"code":null}}`)}
	}}
	budgeted(failing, 100).run(t, "a line that fails", func(s *scene) {
		s.post(chat, limited("a", 60)).want(400, 15*time.Second)
		s.budget(0, 0)
	})
	again := budgeted(hopeless, 100)
	again.again = true
	again.run(t, "a line that is resubmitted and fails", func(s *scene) {
		c := s.send(chat, limited("a", 60))
		s.until(17 * time.Second)
		s.budget(0, 60)
		c.want(424, 20*time.Second)
		s.budget(0, 0)
	})
	budgeted(fiveTokens(0), 100).run(t, "a caller that leaves before its call is sent", func(s *scene) {
		s.send(chat, limited("a", 60)).left()
		s.budget(0, 0)
	})
	budgeted(fiveTokens(time.Hour), 100).run(t, "a caller that leaves for good", func(s *scene) {
		c := s.send(chat, limited("a", 60))
		s.until(time.Minute)
		c.left()
		s.budget(0, 60) // the line is paid for
		s.until(2 * time.Hour)
		s.budget(5, 0)
	})
	kept := budgeted(fiveTokens(time.Hour), 100)
	kept.options.Journal = journal.NewMemory()
	kept.run(t, "a caller that leaves for good, with a journal", func(s *scene) {
		c := s.send(chat, limited("a", 60))
		s.until(time.Minute)
		c.left()
		s.until(5 * time.Minute)
		s.budget(0, 60)
		s.until(2 * time.Hour)
		s.budget(0, 0) // no call wanted the result, and nothing was read
	})
	budgeted(fiveTokens(time.Hour), 100).run(t, "a Transport that is closed", func(s *scene) {
		sent := s.send(chat, limited("a", 30))
		s.until(time.Minute)
		queued := s.send(chat, limited("b", 30))
		s.budget(0, 60)
		go s.tr.Close()
		for _, c := range []*pending{sent, queued} {
			if r := c.wait(); !errors.Is(r.err, autobatcher.ErrClosed) {
				s.Errorf("%+v", r)
			}
		}
		s.budget(0, 0)
	})
}

// A retry that finds the line of its first attempt reserves and costs nothing more,
// and is not refused.
func TestARetryIsNotChargedTwice(t *testing.T) {
	const chat = "/chat/completions"
	plain := budgeted(fiveTokens(time.Hour), 100)
	kept := plain
	kept.options.Journal = journal.NewMemory()
	for name, test := range map[string]struct {
		setup
		refusedAt time.Duration // after a call that does not fit
	}{"in memory": {plain, 0}, "with a journal": {kept, 10 * time.Second}} {
		test.run(t, name, func(s *scene) {
			c := s.send(chat, limited("a", 60))
			for i := range 5 {
				s.until(time.Duration(i+1) * time.Minute)
				c.left()
				s.until(s.elapsed() + 30*time.Second)
				s.budget(0, 60)
				c = s.send(chat, limited("a", 60))
				s.until(s.elapsed() + time.Second)
				s.budget(0, 60)
			}
			now := s.elapsed()
			s.post(chat, limited("b", 60)).want(402, now+test.refusedAt).fails("budget_exhausted")
			if r := c.wait(); r.status != 200 {
				s.Errorf("%+v", r)
			}
			s.budget(5, 0)
			s.sent(1)
		})
	}
	budgeted(fiveTokens(time.Hour), 100).run(t, "an answer that was kept", func(s *scene) {
		c := s.send(chat, limited("a", 99))
		s.until(time.Minute)
		c.left()
		s.until(2 * time.Hour)
		s.budget(5, 0)
		s.post(chat, limited("a", 99)).want(200, 2*time.Hour)
		s.budget(5, 0)
	})
}

// An escalated call costs the price in real time, and is not escalated if this does
// not fit.
func TestBudgetOfEscalations(t *testing.T) {
	const chat = "/chat/completions"
	late := budgeted(fiveTokens(10*time.Hour), 1000)
	late.options.Escalate, late.options.PollInterval = autobatcher.EscalateDeadline, time.Minute
	late.run(t, "fits", func(s *scene) {
		s.post(chat, limited("a", 60), with("Autobatcher-Deadline", "20m")).want(200, 19*time.Minute)
		s.budget(10, 60) // the line is paid for, too, until its batch ends
		if cost := s.tr.Stats().Cost; cost.USD != 10 || cost.Savings != 0 || cost.Priced != 1 {
			s.Errorf("%+v", cost)
		}
		s.until(12 * time.Hour)
		s.budget(15, 0)
		lanes := map[autobatcher.Mode]float64{}
		for _, part := range s.tr.Stats().Costs {
			lanes[part.Lane] += part.Cost.USD
		}
		if diff := cmp.Diff(map[autobatcher.Mode]float64{autobatcher.ModeBatch: 5, autobatcher.ModeRealtime: 10}, lanes); diff != "" {
			s.Errorf("cost by lane (-want +got):\n%s", diff)
		}
	})
	late.options.Budget.USD = 100
	late.run(t, "does not fit", func(s *scene) {
		s.post(chat, limited("a", 60), with("Autobatcher-Deadline", "20m")).want(424, 20*time.Minute)
		s.budget(0, 60)
		if n := s.realtimeCalls(); n != 0 {
			s.Errorf("%d calls in real time", n)
		}
	})
	failed := budgeted(hopeless, 1000)
	failed.options.Escalate = autobatcher.EscalateFailed
	failed.run(t, "a line that fails; the answer names tokens", func(s *scene) {
		s.post(chat, limited("a", 60)).want(200, 15*time.Second)
		synctest.Wait()
		if b := s.tr.Stats().Budget; b.ReservedUSD != 0 || b.SpentUSD <= 0 {
			s.Errorf("%+v", b)
		}
	})
	broken := failed
	broken.base = func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.URL.Path == "/v1"+chat {
				return nil, errors.New("broken")
			}
			return next.RoundTrip(req)
		})
	}
	broken.run(t, "a call in real time that fails", func(s *scene) {
		s.post(chat, limited("a", 60)).want(502, 15*time.Second)
		s.budget(0, 0)
	})
}

// What is reserved depends on the limits in the body.
func TestAmountsOfReservations(t *testing.T) {
	for name, test := range map[string]struct {
		path, body string
		reserved   float64
	}{
		"max_tokens":            {"/chat/completions", `{"model":"m","max_tokens":7}`, 7},
		"max_completion_tokens": {"/chat/completions", `{"model":"m","max_completion_tokens":8}`, 8},
		"both":                  {"/chat/completions", `{"model":"m","max_tokens":7,"max_completion_tokens":8}`, 8},
		"n":                     {"/chat/completions", `{"model":"m","max_tokens":7,"n":3}`, 21},
		"max_output_tokens":     {"/responses", `{"model":"m","max_output_tokens":9}`, 9},
		"no limit":              {"/responses", `{"model":"m"}`, 1000},
		"a negative limit":      {"/chat/completions", `{"model":"m","max_tokens":-7,"n":-3}`, 1000},
		"embeddings":            {"/embeddings", `{"model":"m","input":["a","b"]}`, 0},
		"input":                 {"/embeddings", `{"model":"in","input":"0123456789"}`, 9}, // 34 bytes
	} {
		budgeted(batchtest.Options{}, 1e6).run(t, name, func(s *scene) {
			c := s.send(test.path, test.body)
			s.budget(0, test.reserved)
			c.left()
			s.budget(0, 0)
		})
	}
}

func TestBudgetsOutOfBounds(t *testing.T) {
	if _, err := autobatcher.New(autobatcher.Options{Budget: autobatcher.Budget{USD: -1}}); err == nil {
		t.Error("a negative budget was accepted")
	}
}

// Calls that are escalated at the same moment share the budget.
func TestEscalationsOfOneMomentShareTheBudget(t *testing.T) {
	u := budgeted(hopeless, 130)
	u.options.Escalate, u.options.EscalateLimit = autobatcher.EscalateFailed, -1
	u.base = func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/chat/completions") {
				time.Sleep(time.Minute)
			}
			return next.RoundTrip(r)
		})
	}
	u.play(t, func(s *scene) {
		var calls []*pending
		for i := range 10 {
			calls = append(calls, s.send("/chat/completions", limited(fmt.Sprint(i), 10)))
		}
		s.until(50 * time.Second)
		if got := s.tr.Stats().Budget; got.ReservedUSD > 130 || got.ReservedUSD == 0 {
			s.Errorf("%+v; want at most the budget of $130 reserved", got)
		}
		for _, c := range calls {
			c.wait()
		}
	})
}

// A caller that hangs up and does not read that its call is refused leaves nothing
// behind.
func TestARefusalThatIsNotRead(t *testing.T) {
	u := budgeted(fiveTokens(0), 100)
	u.options.Journal = journal.NewMemory()
	u.play(t, func(s *scene) {
		ctx, leave := context.WithCancel(s.Context())
		res, err := s.tr.RoundTrip(s.request(ctx, "/chat/completions", limited("a", 1000)))
		if err != nil || res.StatusCode != http.StatusPaymentRequired {
			s.Fatalf("%v, %v; want a refusal", res, err)
		}
		leave()
		res.Body.Close()
		s.budget(0, 0)
		s.post("/chat/completions", limited("a", 1000)).want(402, 20*time.Second)
	})
}

// A Logger that panics when a call is escalated costs its caller the answer, and
// leaves nothing reserved.
func TestALoggerThatPanicsReservesNothing(t *testing.T) {
	late := budgeted(fiveTokens(10*time.Hour), 1000)
	late.options.Escalate, late.options.PollInterval = autobatcher.EscalateDeadline, time.Minute
	failed := budgeted(hopeless, 1000)
	failed.options.Escalate = autobatcher.EscalateFailed
	for name, test := range map[string]struct {
		setup
		reserved float64 // for the line of the batch
	}{"near its deadline": {late, 60}, "after its batch failed": {failed, 0}} {
		test.options.Logger = slog.New(panicking("call escalated"))
		test.run(t, name, func(s *scene) {
			req := s.request(s.Context(), "/chat/completions", limited("a", 60), with("Autobatcher-Deadline", "20m"))
			func() {
				defer func() {
					if p := recover(); p != "log" {
						s.Errorf("the caller's panic is %v, want that of its Logger", p)
					}
				}()
				s.do(req)
			}()
			s.budget(0, test.reserved)
			if err := s.tr.Shutdown(s.Context()); err != nil { // no caller is left
				s.Error(err)
			}
		})
	}
}

// panicking is a log handler that panics at a message.
type panicking string

func (panicking) Enabled(context.Context, slog.Level) bool { return true }

func (p panicking) Handle(_ context.Context, r slog.Record) error {
	if r.Message == string(p) {
		panic("log")
	}
	return nil
}

func (p panicking) WithAttrs([]slog.Attr) slog.Handler { return p }

func (p panicking) WithGroup(string) slog.Handler { return p }

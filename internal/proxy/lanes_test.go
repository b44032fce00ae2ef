package proxy_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/lane"
	"github.com/autobatcher/autobatcher/internal/proxy"
	"github.com/autobatcher/autobatcher/provider"
)

// TestRealtimeCalls checks that the calls in real time are counted while they wait and when
// they have ended, by whether real time was chosen or came after another lane.
func TestRealtimeCalls(t *testing.T) {
	bad := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Status: 400, Delay: 2 * time.Minute} }
	slow := func(l batchtest.Line) batchtest.Outcome { // in a batch never
		return batchtest.Outcome{Delay: 2 * time.Minute, Never: l.Number > 0}
	}
	never := func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Never: true} }
	hour := func(answer func(batchtest.Line) batchtest.Outcome) batchtest.Options {
		return batchtest.Options{Turnaround: 30 * time.Hour, Answer: answer}
	}
	deadline := autobatcher.Options{Escalate: autobatcher.EscalateDeadline, EscalateMargin: 10 * time.Minute}
	fallback := autobatcher.Options{Mode: autobatcher.ModeFlex, FlexFallback: autobatcher.FallbackRealtime}
	const chat = `{"model":"m","messages":[{"role":"user","content":"%d"}]}`
	waiting := lane.Calls{Waiting: 2}
	for _, test := range []struct {
		name    string
		server  batchtest.Options
		options autobatcher.Options
		body    string
		header  []string
		full    bool          // the flex tier
		at      time.Duration // when two calls wait
		during  lane.RealtimeCalls
		ended   lane.RealtimeCalls
	}{
		{"the header chooses", hour(slow), autobatcher.Options{}, chat, []string{"Autobatcher-Mode", "realtime"}, false, time.Minute, lane.RealtimeCalls{Chosen: waiting}, lane.RealtimeCalls{Chosen: lane.Calls{OK: 2}}},
		{"the mode chooses", hour(slow), autobatcher.Options{Mode: autobatcher.ModeRealtime}, chat, nil, false, time.Minute, lane.RealtimeCalls{Chosen: waiting}, lane.RealtimeCalls{Chosen: lane.Calls{OK: 2}}},
		{"the body chooses", hour(slow), autobatcher.Options{}, strings.Replace(chat, "{", `{"service_tier":"priority",`, 1), nil, false, time.Minute, lane.RealtimeCalls{Chosen: waiting}, lane.RealtimeCalls{Chosen: lane.Calls{OK: 2}}},
		{"errors", hour(bad), autobatcher.Options{Mode: autobatcher.ModeRealtime}, chat, nil, false, time.Minute, lane.RealtimeCalls{Chosen: waiting}, lane.RealtimeCalls{Chosen: lane.Calls{Failed: 2}}},
		{"a deadline", hour(slow), deadline, chat, []string{"Autobatcher-Deadline", "1h"}, false, 51 * time.Minute, lane.RealtimeCalls{Escalated: waiting}, lane.RealtimeCalls{Escalated: lane.Calls{OK: 2}}},
		{"a deadline that comes first", hour(never), deadline, chat, []string{"Autobatcher-Deadline", "1h"}, false, 51 * time.Minute, lane.RealtimeCalls{Escalated: waiting}, lane.RealtimeCalls{Escalated: lane.Calls{Failed: 2}}},
		{"no room at the flex tier", hour(slow), fallback, chat, nil, true, 3 * time.Minute, lane.RealtimeCalls{Escalated: waiting}, lane.RealtimeCalls{Escalated: lane.Calls{OK: 2}}},
		{"the flex tier", hour(slow), autobatcher.Options{Mode: autobatcher.ModeFlex}, chat, nil, false, time.Minute, lane.RealtimeCalls{}, lane.RealtimeCalls{}},
		{"a batch", batchtest.Options{Turnaround: time.Hour}, autobatcher.Options{}, chat, nil, false, time.Minute, lane.RealtimeCalls{}, lane.RealtimeCalls{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				openai := provider.OpenAI()
				test.server.Behavior = batchtest.OpenAI()
				upstream := batchtest.New(test.server)
				if test.full {
					upstream.Keep(batchtest.OpRealtime, batchtest.FlexUnavailable())
				}
				o := test.options
				o.Base, o.Provider = proxy.LimitRealtime(upstream.Transport(), 0), &openai
				tr, err := autobatcher.New(o)
				if err != nil {
					t.Fatal(err)
				}
				defer tr.Close()
				p := newProxy(t, proxy.Options{Grace: -1, Upstream: parse(t, upstream.URL), Transport: tr, Stats: tr.Stats})
				client := serve(t, p)
				var calls sync.WaitGroup
				for i := range 2 {
					calls.Go(func() { readAll(t, post(t, client, "/v1/chat/completions", fmt.Sprintf(test.body, i), test.header...)) })
				}
				time.Sleep(test.at)
				if diff := cmp.Diff(test.during, p.Realtime()); diff != "" {
					t.Errorf("after %v (-want +got):\n%s", test.at, diff)
				}
				calls.Wait()
				synctest.Wait()
				if diff := cmp.Diff(test.ended, p.Realtime()); diff != "" {
					t.Errorf("at the end (-want +got):\n%s", diff)
				}
				if got := p.Usage().Realtime; got != test.ended.Chosen.OK {
					t.Errorf("%d answers have no estimate of their cost, want %d", got, test.ended.Chosen.OK)
				}
			})
		})
	}
}

// TestRealtimeCallsWithoutAClient checks that a call whose client leaves waits no longer.
func TestRealtimeCallsWithoutAClient(t *testing.T) {
	for _, mode := range []string{"realtime", ""} {
		synctest.Test(t, func(t *testing.T) {
			upstream := batchtest.New(batchtest.Options{Behavior: batchtest.OpenAI(), Answer: func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Never: true} }})
			tr, err := autobatcher.New(autobatcher.Options{Base: proxy.LimitRealtime(upstream.Transport(), 0), Mode: autobatcher.ModeRealtime})
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			p := newProxy(t, proxy.Options{Grace: -1, Upstream: parse(t, upstream.URL), Transport: tr})
			client := serve(t, p)
			ctx, leave := context.WithTimeout(t.Context(), time.Minute)
			defer leave()
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"a"}]}`))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			if mode != "" {
				r.Header.Set("Autobatcher-Mode", mode)
			}
			if res, err := client.Do(r); err == nil {
				t.Errorf("%s: %s", res.Status, readAll(t, res))
			}
			synctest.Wait()
			if got, want := p.Realtime(), (lane.RealtimeCalls{Chosen: lane.Calls{Failed: 1}}); got != want {
				t.Errorf("mode %q: %+v, want %+v", mode, got, want)
			}
		})
	}
}

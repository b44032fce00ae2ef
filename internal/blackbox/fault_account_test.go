package blackbox_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/journal"
)

// tokens is a way to the server on which several tokens stand for one key, and a
// token can expire.
type tokens struct {
	mu      sync.Mutex
	expired map[string]bool
	used    map[string]int // requests by token
}

func (k *tokens) expire(token string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.expired == nil {
		k.expired = map[string]bool{}
	}
	k.expired[token] = true
}

func (k *tokens) around(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
		k.mu.Lock()
		bad := k.expired[token]
		if k.used == nil {
			k.used = map[string]int{}
		}
		k.used[token]++
		k.mu.Unlock()
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", "Bearer the-one-key")
		if bad {
			req.Header.Set("Authorization", "Bearer expired")
		}
		return next.RoundTrip(req)
	})
}

// tenant is the account of a request in these tests.
func tenant(r *http.Request) string { return r.Header.Get("X-Account") }

// accounts is a setup of one key at the provider and several tokens for it.
func accounts(k *tokens, turnaround time.Duration) setup {
	return setup{
		again:   true,
		server:  batchtest.Options{Turnaround: turnaround, APIKeys: []string{"the-one-key"}},
		options: autobatcher.Options{Account: tenant, PollInterval: 30 * time.Second},
		base:    k.around,
	}
}

func of(account, token string) []edit { return []edit{with("X-Account", account), key(token)} }

// A token that expires does not take its batch with it: polls and downloads go on
// with another token of the same account.
func TestAFreshTokenOfTheAccountIsUsed(t *testing.T) {
	for name, newest := range map[string]string{"brought by a later call": "new", "newest, but not accepted": "bad"} {
		k := &tokens{}
		k.expire("bad")
		accounts(k, time.Hour).run(t, name, func(s *scene) {
			old := s.chat("old", of("acme", "old")...)
			s.until(5 * time.Minute)
			fresh := s.chat("fresh", of("acme", newest)...)
			if newest == "new" {
				k.expire("old")
			}
			old.within(5 * time.Hour).says("old")
			if newest == "new" {
				fresh.within(5 * time.Hour).says("fresh")
			} else {
				fresh.left()
			}
			if n := s.executions("old"); n != 1 {
				s.Errorf("the line was executed %d times, want 1", n)
			}
		})
	}
}

// Between the end of the old token and the arrival of a new token, the batch runs
// on and its callers wait.
func TestAnAccountWithoutAValidToken(t *testing.T) {
	k := &tokens{}
	accounts(k, time.Hour).play(t, func(s *scene) {
		old := s.chat("old", of("acme", "old")...)
		s.until(10 * time.Minute)
		k.expire("old")
		s.until(15 * time.Minute)
		fresh := s.chat("fresh", of("acme", "new")...)
		old.within(5 * time.Hour).says("old")
		fresh.within(5 * time.Hour).says("fresh")
		s.sent(1, 1)
	})
}

// Options.Credential is asked for a credential where the known tokens are refused.
func TestACredentialIsFetched(t *testing.T) {
	k := &tokens{}
	u := accounts(k, time.Hour)
	var asked []string
	var mu sync.Mutex
	u.options.Credential = func(_ context.Context, account string) (http.Header, error) {
		mu.Lock()
		defer mu.Unlock()
		if asked = append(asked, account); len(asked) == 1 {
			return nil, errors.New("the token service is down")
		}
		return http.Header{"Authorization": {"Bearer fetched"}}, nil
	}
	u.play(t, func(s *scene) {
		call := s.chat("text", of("acme", "old")...)
		s.until(10 * time.Minute)
		k.expire("old")
		call.within(5 * time.Hour).says("text")
		mu.Lock()
		defer mu.Unlock()
		if len(asked) < 2 || asked[0] != "acme" || k.used["fetched"] == 0 {
			s.Errorf("asked for %v, used %v; want a fetched credential of acme", asked, k.used)
		}
		if len(asked) > 10 {
			s.Errorf("asked %d times within an hour", len(asked))
		}
		s.sent(1)
	})
}

// A retry with a fresh token is the same call, in this process and in the next.
func TestARetryWithAFreshToken(t *testing.T) {
	k := &tokens{}
	accounts(k, time.Hour).run(t, "in the same process", func(s *scene) {
		first := s.chat("text", of("acme", "old")...)
		s.until(time.Minute)
		first.left()
		k.expire("old")
		s.chat("text", of("acme", "new")...).within(5 * time.Hour).says("text")
		s.sent(1)
	})
	t.Run("in the next process", func(t *testing.T) {
		k := &tokens{}
		inFleet(t, batchtest.Options{Turnaround: time.Hour, APIKeys: []string{"the-one-key"}}, func(f *fleet) {
			f.base = k.around
			a := f.start(autobatcher.Options{Account: tenant})
			a.ask(f.Context(), "text", of("acme", "old")...)
			time.Sleep(time.Minute)
			a.cut()
			k.expire("old")
			b := f.start(autobatcher.Options{Account: tenant})
			f.wantAnswer(b.ask(f.Context(), "text", of("acme", "new")...), "text")
			f.wantPaid(1, 1)
		})
	})
	t.Run("Recover with a fresh token", func(t *testing.T) {
		k := &tokens{}
		inFleet(t, batchtest.Options{Turnaround: 10 * time.Minute, APIKeys: []string{"the-one-key"}}, func(f *fleet) {
			f.base = k.around
			a := f.start(autobatcher.Options{Account: tenant})
			a.ask(f.Context(), "text", of("acme", "old")...)
			time.Sleep(time.Minute)
			a.cut()
			k.expire("old")
			time.Sleep(time.Minute)
			b := f.start(autobatcher.Options{Account: tenant})
			if err := b.Recover(f.srv.URL, http.Header{"Authorization": {"Bearer new"}, "X-Account": {"acme"}}); err != nil {
				f.Fatal(err)
			}
			time.Sleep(20 * time.Minute)
			if b := f.only(); b.State != "ended" {
				f.Errorf("the batch is %s, want it ended", b.State)
			}
		})
	})
}

// The batches of a process that named no accounts belong to the account that its
// credential belongs to.
func TestAnAccountResumesBatchesFromBeforeItsName(t *testing.T) {
	named := func(r *http.Request) string {
		return map[string]string{"Bearer old": "acme", "Bearer new": "acme", "Bearer strange": "other"}[r.Header.Get("Authorization")]
	}
	for _, tt := range []struct {
		name    string
		token   string // of the call after the restart
		prompt  string
		batches int
	}{
		{"a repeated call takes over its line", "old", "text", 1},
		{"also with a new token", "new", "text", 1},
		{"another call does not", "old", "other", 2},
		{"another account does not", "strange", "text", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := &tokens{}
			inFleet(t, batchtest.Options{Turnaround: time.Hour, APIKeys: []string{"the-one-key"}}, func(f *fleet) {
				f.base = k.around
				a := f.start(autobatcher.Options{AbandonAfter: -1})
				a.ask(f.Context(), "text", key("old"))
				time.Sleep(time.Minute)
				a.cut()
				time.Sleep(time.Minute)
				b := f.start(autobatcher.Options{AbandonAfter: -1, Account: named})
				if err := b.Recover(f.srv.URL, http.Header{"Authorization": {"Bearer old"}}); err != nil {
					f.Fatal(err)
				}
				f.wantAnswer(b.ask(f.Context(), tt.prompt, key(tt.token)), tt.prompt)
				time.Sleep(2 * time.Hour)
				f.wantPaid(tt.batches, tt.batches)
				list, err := f.store.Batches(f.Context(), journal.Filter{})
				for _, b := range list {
					if b.State != journal.Ended {
						f.Errorf("a batch is %s, want it ended", b.State)
					}
				}
				if err != nil || len(list) == 0 {
					f.Errorf("%d batches in the journal, %v", len(list), err)
				}
			})
		})
	}
}

// A retry that waits to be sent keeps the batch of its first attempt alive also if the
// first attempt went to a replica that does not know the account's name yet.
func TestAQueuedRetryKeepsABatchFromBeforeTheNameAlive(t *testing.T) {
	inFleet(t, batchtest.Options{Turnaround: time.Hour}, func(f *fleet) {
		a := f.start(autobatcher.Options{})
		b := f.start(autobatcher.Options{
			Account: func(*http.Request) string { return "acme" }, BatchWindow: 10 * time.Minute,
		})
		ctx, leave := context.WithCancel(f.Context())
		first := a.ask(ctx, "text", key("k"))
		time.Sleep(time.Minute)
		leave()
		<-first
		f.wantAnswer(b.ask(f.Context(), "text", key("k")), "text")
		f.wantPaid(1, 1)
	})
}

// Accounts never share a batch or an answer, even with equal tokens; organization,
// project and tenant headers separate callers of one account.
func TestAccountsAreSeparate(t *testing.T) {
	accounts(&tokens{}, time.Minute).run(t, "accounts with one token", func(s *scene) {
		a, b := s.chat("same", of("acme", "token")...), s.chat("same", of("other", "token")...)
		a.within(time.Hour).says("same")
		b.within(time.Hour).says("same")
		s.sent(1, 1)
	})
	accounts(&tokens{}, time.Minute).run(t, "one account with two tokens", func(s *scene) {
		a, b := s.chat("a", of("acme", "one")...), s.chat("b", of("acme", "two")...)
		a.within(time.Hour).says("a")
		b.within(time.Hour).says("b")
		s.sent(2)
	})
	for _, name := range []string{"OpenAI-Organization", "OpenAI-Project", "X-Tenant-Id"} {
		accounts(&tokens{}, time.Minute).run(t, name, func(s *scene) {
			a := s.chat("same", append(of("acme", "token"), with(name, "x"))...)
			b := s.chat("same", append(of("acme", "token"), with(name, "y"))...)
			a.within(time.Hour).says("same")
			b.within(time.Hour).says("same")
			s.sent(1, 1)
		})
	}
	accounts(&tokens{}, time.Minute).run(t, "another account's answer", func(s *scene) {
		first := s.chat("same", of("acme", "token")...)
		s.until(30 * time.Second)
		first.left()
		s.until(10 * time.Minute)
		s.chat("same", of("other", "token")...).within(time.Hour).says("same")
		synctest.Wait()
		s.sent(1, 1)
	})
}

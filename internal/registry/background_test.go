package registry_test

import (
	"testing"
	"testing/synctest"

	"github.com/autobatcher/autobatcher/journal"
)

// A call that takes over a line before the batch is known to exist is notified when the batch is created.
func TestSentAfterATakeOver(t *testing.T) {
	p := start(t, nil, keepFor)
	first, w, _ := p.enter("a")
	s, _ := p.batch(first)
	p.Leave(w, false)
	notified := 0
	again := &call{Request: "again", Sent: func(string) { notified++ }}
	copy(again.Fingerprint[:], "a")
	if _, queued, ok := p.Enter(again); queued || !ok {
		t.Fatal("the call did not take over the line")
	}
	if notified != 0 {
		t.Error("notified before the batch was created")
	}
	s.SetID("")
	s.SetID("batch_1")
	if notified != 1 {
		t.Errorf("notified %d times, want once", notified)
	}
}

// An answer that is kept for a line of another process belongs to that line of the batch.
func TestKeptAnswerOfALineThatIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		first, second := start(t, store, keepFor), start(t, store, keepFor)
		a, waitA, _ := first.enter("a")
		b, waitB, _ := first.enter("b")
		first.batch(a, b)
		first.Leave(waitA, false)
		first.Leave(waitB, false)
		synctest.Wait()
		again, w, _ := second.enter("b")
		second.takeOver(again)
		second.Complete(again, ok("B"))
		s := second.NewLines(nil, false)
		s.SetRecord(second.session.NewRecord(s))
		second.KeepReleased(s, a.ID, ok("A"), true)
		second.Unread(second.wants(w, "B"))
		synctest.Wait()
		if kept := second.Kept(a.ID, false); kept == nil || string(kept.Body) != "A" {
			t.Errorf("kept %v", kept)
		}
		again, w, _ = second.enter("b")
		second.takeOver(again)
		second.Read(second.wants(w, "B"))
		synctest.Wait()
		undelivered(t, store, map[string]int{"a": 1, "b": 0})
		if all, _ := second.Counters(); all.Answered != 3 {
			t.Errorf("%d answers are counted, want 3", all.Answered)
		}
		if second.Kept(a.ID, true) == nil || second.Kept(a.ID, false) != nil {
			t.Error("the answer was not kept, or not forgotten")
		}
	})
}

// The answer to a line that the journal has released is that of the line's place in the batch.
func TestReleasedAnswerOfALineThatIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := journal.NewMemory()
		first, second := start(t, store, keepFor), start(t, store, keepFor)
		a, waitA, _ := first.enter("a")
		b, waitB, _ := first.enter("b")
		first.batch(a, b)
		first.Leave(waitA, false)
		first.Leave(waitB, false)
		synctest.Wait()
		s := second.NewLines(nil, false)
		s.SetRecord(second.session.NewRecord(s))
		second.KeepReleased(s, b.ID, ok("B"), true)
		again, w, _ := second.enter("b")
		second.takeOver(again)
		second.Read(second.wants(w, "B"))
		synctest.Wait()
		undelivered(t, store, map[string]int{"a": 1, "b": 0})
	})
}

// undelivered checks how many undelivered lines the journal has for calls, by their texts.
func undelivered(t *testing.T, store journal.Store, lines map[string]int) {
	t.Helper()
	for text, want := range lines {
		var hash journal.Hash
		copy(hash[:], text)
		if found, err := store.Find(t.Context(), journal.Hash{}, []journal.Hash{hash}); err != nil || len(found) != want {
			t.Errorf("line %s: %v %v; want %d", text, found, err, want)
		}
	}
}

// The journal has the line of a call that is sent again until it has the next line.
func TestLineBefore(t *testing.T) {
	for name, tt := range map[string]struct {
		then func(p *process, c *call, w *waiter)
		refs int // batches with a line of the call afterwards
	}{
		"waits":      {then: func(*process, *call, *waiter) {}, refs: 1},
		"sent again": {then: func(p *process, c *call, _ *waiter) { p.batch(c) }, refs: 1},
		"leaves":     {then: func(p *process, _ *call, w *waiter) { p.Leave(w, false) }},
		"withdrawn":  {then: func(p *process, c *call, _ *waiter) { p.Withdraw(c) }},
		"the process ends": {then: func(p *process, _ *call, w *waiter) {
			p.Close()
			p.Leave(w, false)
		}, refs: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := journal.NewMemory()
				p := start(t, store, keepFor)
				c := &call{Request: "a", ByID: true}
				copy(c.Fingerprint[:], "a")
				w, _, _ := p.Enter(c)
				before, _ := p.batch(c)
				p.Requeue([]*call{c}, func([]*call) {})
				tt.then(p, c, w)
				synctest.Wait()
				found, err := store.Find(t.Context(), journal.Hash{}, []journal.Hash{journal.Hash(c.Fingerprint)})
				if err != nil || len(found) != tt.refs {
					t.Fatalf("%v %v; want %d batches", found, err, tt.refs)
				}
				if before.Find(c.ID) != nil {
					t.Error("the batch before has the call")
				}
			})
		})
	}
}

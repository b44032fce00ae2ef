package registry_test

import "testing"

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

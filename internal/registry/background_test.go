package registry_test

import "testing"

// A call that takes over a line before the batch is known to exist is told when it is.
func TestSentAfterATakeOver(t *testing.T) {
	p := start(t, nil, keepFor)
	first, w, _ := p.enter("a")
	s, _ := p.batch(first)
	p.Leave(w, false)
	told := 0
	again := &call{Request: "again", Sent: func() { told++ }}
	copy(again.Fingerprint[:], "a")
	if _, queued, ok := p.Enter(again); queued || !ok {
		t.Fatal("the call did not take over the line")
	}
	if told != 0 {
		t.Error("told before the batch was created")
	}
	s.SetID("")
	s.SetID("batch_1")
	if told != 1 {
		t.Errorf("told %d times, want once", told)
	}
}

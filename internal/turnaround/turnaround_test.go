package turnaround

import (
	"fmt"
	"testing"
	"time"
)

func TestBook(t *testing.T) {
	var b Book
	k := Kind{"openai", "m", "24h"}
	if got := b.Of(k); got.Count != 0 {
		t.Errorf("an empty book knows %+v", got)
	}
	for i := 1; i <= 10; i++ {
		b.Add(k.Provider, k.Window, []string{k.Model}, time.Duration(i)*time.Minute)
	}
	if got := b.Of(k); got != (Times{"openai", "m", "24h", 10, 6 * time.Minute, 10 * time.Minute}) {
		t.Errorf("ten times: %+v", got)
	}
	for range kept {
		b.Add(k.Provider, k.Window, []string{k.Model}, time.Hour)
	}
	if got := b.Of(k); got != (Times{"openai", "m", "24h", kept, time.Hour, time.Hour}) {
		t.Errorf("old times count still: %+v", got)
	}
	b.Add("openai", "flex", []string{"m"}, time.Second)
	b.Add("azure", "24h", []string{"z"}, time.Second)
	all := b.All()
	if len(all) != 3 || all[0].Provider != "azure" || all[1].Window != "24h" || all[2].Window != "flex" {
		t.Errorf("all: %+v", all)
	}
}

func TestABookIsBounded(t *testing.T) {
	var b Book
	for i := range 3 * maxKnown {
		b.Add("", "", []string{fmt.Sprint(i)}, time.Second)
	}
	if n := len(b.All()); n > maxKnown {
		t.Errorf("%d kinds, at most %d", n, maxKnown)
	}
}

package answercache_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/internal/answercache"
)

const overhead = 256

func TestLimit(t *testing.T) {
	var dropped []string
	c := answercache.New(3*(100+overhead), func(v any) { dropped = append(dropped, v.(string)) })
	c.Put("day 1", 100, 24*time.Hour)
	c.Put("minutes", 100, 2*time.Minute)
	second := c.Put("day 2", 100, 24*time.Hour)
	c.Put("day 3", 100, 24*time.Hour)
	c.Put("day 4", 100, 24*time.Hour)
	if want := []string{"minutes", "day 1"}; !slices.Equal(dropped, want) {
		t.Errorf("dropped %q, want %q: the entries that expire first", dropped, want)
	}
	c.Remove(second)
	c.Remove(second)
	if want := int64(2 * (100 + overhead)); c.Size() != want {
		t.Errorf("%d bytes, want %d", c.Size(), want)
	}
	c.Put("larger than the limit", 10_000, 48*time.Hour)
	if c.Size() != 0 {
		t.Errorf("%d bytes, want none: the value alone is over the limit", c.Size())
	}
}

// An entry that no caller fetches must not keep later entries alive.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dropped []string
		c := answercache.New(1<<20, func(v any) { dropped = append(dropped, v.(string)) })
		c.Put("long", 10, time.Hour)
		for _, name := range []string{"a", "b"} {
			c.Put(name, 10, time.Minute)
			time.Sleep(time.Second)
		}
		time.Sleep(59 * time.Second)
		c.Prune()
		if want := []string{"a", "b"}; !slices.Equal(dropped, want) {
			t.Errorf("dropped %q after a minute, want %q", dropped, want)
		}
		if c.Size() != 10+overhead {
			t.Errorf("%d bytes are left", c.Size())
		}
	})
}

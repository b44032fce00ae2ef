package profiles

import (
	"fmt"
	"net/url"
	"testing"
)

// Equal URLs share a profile, and callers that name many hosts cost bounded memory.
func TestCache(t *testing.T) {
	var c Cache
	of := func(text string) string {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		p := c.Of(u, u.EscapedPath())
		if again := c.Of(u, u.EscapedPath()); again != p {
			t.Errorf("%s was not remembered", text)
		}
		return p.Name
	}
	if name := of("https://api.openai.com/v1/chat/completions"); name != "openai" {
		t.Errorf("openai's host is %s", name)
	}
	for i := range 3 * maxProfiles {
		if name := of(fmt.Sprintf("https://host-%d.test/v1", i)); name != "generic" {
			t.Errorf("an unknown host is %s", name)
		}
		if len(c.known) > maxProfiles {
			t.Fatalf("%d profiles are held", len(c.known))
		}
	}
}

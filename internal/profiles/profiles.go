// Package profiles remembers which provider's profile a URL has.
package profiles

import (
	"net/url"
	"sync"

	"github.com/autobatcher/autobatcher/provider"
)

// A Cache holds the profile of each URL. Cache is bounded, so that unknown names of
// hosts do not fill the memory. The zero Cache is ready to use. Of may be called
// concurrently.
type Cache struct {
	mu    sync.Mutex
	known map[string]*provider.Profile // by scheme, host and path
}

const maxProfiles = 1000

// Of returns the profile of a URL, whose escaped path is path. The profile must not be
// modified.
func (c *Cache) Of(u *url.URL, path string) *provider.Profile {
	name := u.Scheme + "://" + u.Host + path
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.known[name]
	if p == nil {
		if c.known == nil || len(c.known) >= maxProfiles {
			c.known = make(map[string]*provider.Profile)
		}
		found := provider.ForURL(u)
		p = &found
		c.known[name] = p
	}
	return p
}

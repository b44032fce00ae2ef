package batchtest

import (
	"net/http"
	"strings"
	"time"
)

// A Key is what the Server knows about one credential.
type Key struct {
	// Account owns the files, the batches and the limits. Keys with the same
	// Account see the same data. Empty: the key is an account of its own.
	Account string
	// Until is when the key expires. From then on, requests with the key are
	// answered 401. The zero time means never.
	Until time.Time
}

// AddKey lets a key in, or changes what the Server knows about the key. The
// name is the credential, without "Bearer ".
func (s *Server) AddKey(name string, k Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[name] = k
}

// RevokeKey makes the Server answer 401 to all further requests with the key.
// The data of the key's account stays, and other keys of the account work on.
func (s *Server) RevokeKey(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[name]
	k.Until = time.Now()
	s.keys[name] = k
}

// A caller is who makes a request: the credential, and the account that the
// credential belongs to.
type caller struct{ key, account string }

// admit returns the caller of a request, or the refusal of the request.
func (s *Server) admit(r *http.Request) (caller, error) {
	c, ok := s.identify(r)
	if !ok {
		return caller{}, &apiError{
			status: 401, code: "invalid_api_key",
			message: "Incorrect API key provided.",
		}
	}
	if need := s.behavior.NeedQuery; need != "" && r.URL.Query().Get(need) == "" {
		return caller{}, invalid(need, "Missing required query parameter: %s", need)
	}
	return c, s.meter(c.account)
}

// identify reads the credential of a request. Ok is false if the Server does
// not let the credential in.
func (s *Server) identify(r *http.Request) (c caller, ok bool) {
	key, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !bearer {
		key = r.Header.Get("api-key")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k, known := s.keys[key]
	switch {
	case key == "", !known && !s.anyKey, !k.Until.IsZero() && !time.Now().Before(k.Until):
		return caller{}, false
	case k.Account != "":
		return caller{key, k.Account}, true
	}
	return caller{key, key}, true
}

// knownKeys are the credentials that the Options name.
func (o *Options) knownKeys() map[string]Key {
	keys := make(map[string]Key, len(o.APIKeys)+len(o.Keys))
	for _, name := range o.APIKeys {
		keys[name] = Key{}
	}
	for name, k := range o.Keys {
		keys[name] = k
	}
	return keys
}

// A rate counts the requests of one account in the minute that began at since.
type rate struct {
	since time.Time
	count int
}

// meter counts a request, and refuses the request if the account has made too
// many in the current minute.
func (s *Server) meter(account string) error {
	if s.opts.RequestsPerMinute <= 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	r := s.rates[account]
	if r == nil || now.Sub(r.since) >= time.Minute {
		r = &rate{since: now}
		s.rates[account] = r
	}
	if r.count++; r.count <= s.opts.RequestsPerMinute {
		return nil
	}
	return &apiError{
		status: 429, code: "rate_limit_exceeded", retryAfter: time.Minute - now.Sub(r.since),
		message: "Rate limit reached for requests.",
	}
}

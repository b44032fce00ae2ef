// Package credential sends requests with the newest credential of an account
// that the provider accepts.
//
// A batch runs for hours, longer than a token may live. The callers of an account
// bring newer tokens meanwhile, and any of them may be used for the account's
// batches.
package credential

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// maxKept bounds the credentials of a Set.
const maxKept = 8

// fetchTimeout bounds a call of a Fetch.
const fetchTimeout = time.Minute

// Fetch obtains a new credential of an account: the headers that carry it.
type Fetch func(context.Context) (http.Header, error)

// A Set holds the credentials of an account. A Set is safe for concurrent use, and
// holds no lock while a request or a Fetch is under way. A Set never logs a
// credential.
type Set struct {
	fetch Fetch

	mu       sync.Mutex
	kept     []*kept // newest first
	accepted *kept   // the newest credential that the provider accepted; nil: none
	untried  *kept   // the newest credential, until the provider has judged the credential; nil: judged
	flight   *flight // the Fetch under way; nil: none
}

// A kept credential is a credential in a Set. It does not change.
type kept struct{ header http.Header }

// A flight is a call of a Fetch. Several requests may wait for the outcome. The
// fields may be read when done is closed.
type flight struct {
	done chan struct{}
	got  *kept
	err  error
}

// NewSet returns a Set without credentials. fetch may be nil. Otherwise the Set
// calls fetch when the provider accepts none of the credentials.
func NewSet(fetch Fetch) *Set { return &Set{fetch: fetch} }

// Add adds a caller's credential: the headers that carry it. The credential
// becomes the newest. Add copies h, and ignores an empty h. A Set keeps the newest
// eight credentials and the credential that the provider accepted.
func (s *Set) Add(h http.Header) {
	if len(h) > 0 {
		s.add(h)
	}
}

// Len is the number of credentials in the Set.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.kept)
}

func (s *Set) add(h http.Header) *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := &kept{canonical(h)}
	i := slices.IndexFunc(s.kept, func(other *kept) bool {
		return maps.EqualFunc(k.header, other.header, slices.Equal[[]string])
	})
	if i >= 0 {
		k = s.kept[i]
		s.kept = slices.Delete(s.kept, i, i+1)
	} else {
		s.untried = k
	}
	s.kept = slices.Insert(s.kept, 0, k)
	s.dropOldestLocked()
	return k
}

// dropOldestLocked keeps the Set within the bound. It requires s.mu.
func (s *Set) dropOldestLocked() {
	for i := len(s.kept) - 1; len(s.kept) > maxKept; i-- {
		if s.kept[i] != s.accepted {
			s.kept = slices.Delete(s.kept, i, i+1)
		}
	}
}

// canonical copies a header. The names of the copy are in canonical form.
func canonical(h http.Header) http.Header {
	c := make(http.Header, len(h))
	for name, values := range h {
		name = http.CanonicalHeaderKey(name)
		c[name] = append(c[name], values...)
	}
	return c
}

// first returns the credential to begin a request with, or nil if the Set is
// empty. A new credential usually replaces the accepted credential, and so comes
// first, unless the request cannot be sent again with the accepted credential.
func (s *Set) first(replayable bool) *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.untried != nil && s.accepted != nil && replayable {
		return s.untried
	}
	return s.nextLocked(nil)
}

// next returns the next credential that is not in tried: the accepted credential,
// then the newest. It returns nil if all were tried.
func (s *Set) next(tried []*kept) *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nextLocked(tried)
}

// nextLocked is next. It requires s.mu.
func (s *Set) nextLocked(tried []*kept) *kept {
	if s.accepted != nil && !slices.Contains(tried, s.accepted) {
		return s.accepted
	}
	for _, k := range s.kept {
		if !slices.Contains(tried, k) {
			return k
		}
	}
	return nil
}

// note takes the provider's judgment of a credential from the status of a
// response. A provider that is overloaded or fails has not judged the credential.
func (s *Set) note(k *kept, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.untried == k && status < 500 && status != http.StatusTooManyRequests {
		s.untried = nil
	}
	switch {
	case status < 400 && !s.acceptedNewerLocked(k):
		s.accepted = k
	case status == http.StatusUnauthorized && s.accepted == k:
		s.accepted = nil
	}
}

// acceptedNewerLocked reports that the accepted credential is newer than k: a
// request with k may end after a newer credential was accepted. It requires s.mu.
func (s *Set) acceptedNewerLocked(k *kept) bool {
	i := slices.Index(s.kept, s.accepted)
	return i >= 0 && i < slices.Index(s.kept, k)
}

// fetched calls fetch, once for all waiting requests, and returns the new
// credential.
func (s *Set) fetched(ctx context.Context) (*kept, error) {
	f := s.join(ctx)
	select {
	case <-f.done:
		return f.got, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// join returns the Fetch under way, and starts a Fetch if none is under way. The
// Fetch outlives the first request, since other requests may wait.
func (s *Set) join(ctx context.Context) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flight == nil {
		f := &flight{done: make(chan struct{})}
		s.flight = f
		go s.fly(context.WithoutCancel(ctx), f)
	}
	return s.flight
}

// fly calls fetch and ends the flight, also if fetch panics or exits.
func (s *Set) fly(ctx context.Context, f *flight) {
	f.err = errors.New("the function that obtains credentials did not return")
	defer func() {
		if v := recover(); v != nil {
			f.err = errors.New("the function that obtains credentials panicked")
		}
		s.mu.Lock()
		s.flight = nil
		s.mu.Unlock()
		close(f.done)
	}()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	h, err := s.fetch(ctx)
	switch {
	case err != nil:
		f.err = fmt.Errorf("obtaining a credential: %w", err)
	case len(h) == 0:
		f.err = errors.New("obtaining a credential: no header was returned")
	default:
		f.got, f.err = s.add(h), nil
	}
}

// omitKey is the key of a context of Omit.
type omitKey struct{}

// Omit returns a context for requests to servers other than the provider's. The
// requests carry neither a credential nor the headers of an account.
func Omit(ctx context.Context) context.Context { return context.WithValue(ctx, omitKey{}, true) }

func omitted(ctx context.Context) bool { return ctx.Value(omitKey{}) != nil }

// With returns a RoundTripper that sets the headers h on each request and sends
// the request through base. h identifies an account beside the credential, for
// example by the name of a project. Requests with a context of Omit do not
// receive h.
func With(h http.Header, base http.RoundTripper) http.RoundTripper {
	return &withHeader{header: canonical(h), base: base}
}

type withHeader struct {
	header http.Header
	base   http.RoundTripper
}

func (w *withHeader) RoundTrip(req *http.Request) (*http.Response, error) {
	if omitted(req.Context()) || len(w.header) == 0 {
		return w.base.RoundTrip(req)
	}
	req = req.Clone(req.Context())
	set(req.Header, w.header)
	return w.base.RoundTrip(req)
}

// set replaces the values of the headers in h, in any spelling of the names.
func set(target, h http.Header) {
	for name := range target {
		if _, replaced := h[http.CanonicalHeaderKey(name)]; replaced {
			delete(target, name)
		}
	}
	maps.Copy(target, h.Clone())
}

// Package accounts keeps the accounts that pay for calls: for each account its
// credentials, and what is known of its limits and batches at the provider.
package accounts

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/autobatcher/autobatcher/internal/account"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/internal/credential"
	"github.com/autobatcher/autobatcher/internal/flexapi"
	"github.com/autobatcher/autobatcher/internal/journalsession"
	"github.com/autobatcher/autobatcher/internal/ratelimit"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// An Account pays for calls at one base URL. Calls of different accounts never
// share a batch, and never see each other's lines. All methods may be called
// concurrently; the exported fields never change.
type Account struct {
	Name    string            // for statistics; says nothing about the identity
	Hash    journal.Hash      // the account in the journal
	Profile *provider.Profile // of the base URL
	Retries journalsession.Retries
	Legacy  *Legacy // nil: the credential is the account, or Options.Legacy is false

	files, flex Lane
	models      flexapi.Models

	base        string      // upstream URL as far as "/v1", with the query
	identity    string      // what separates the account from others; may hold a credential
	tenant      http.Header // headers that select an organization, a project or a tenant
	credentials *credential.Set
	batches     atomic.Int64 // batches that have not ended
	called      time.Time    // when the last call came; guarded by Set.mu
}

// A Lane is a way in which calls of an account are sent, with what is known of its
// limits and batches at the provider.
type Lane struct {
	Limiter  *ratelimit.Limiter
	Statuses *backend.StatusCache
	Backend  func() backend.Backend // for one batch
}

// Lane returns the lane of batches with a completion window.
func (a *Account) Lane(window string) *Lane {
	if window == provider.FlexWindow {
		return &a.flex
	}
	return &a.files
}

// HasFlex reports whether the provider answers calls for the model at its flex tier, as far
// as is known.
func (a *Account) HasFlex(model string) bool { return a.models.HasFlex(model) }

// BatchBegins keeps the account in the Set until BatchEnds is called.
func (a *Account) BatchBegins() { a.batches.Add(1) }

// BatchEnds is called once for each call of BatchBegins.
func (a *Account) BatchEnds() { a.batches.Add(-1) }

// Upstream returns the base URL without its query.
func (a *Account) Upstream() string {
	base, _, _ := strings.Cut(a.base, "?")
	return base
}

func newLane(creationsPerHour int, slowest time.Duration, newBackend func() backend.Backend) Lane {
	return Lane{Limiter: ratelimit.New(creationsPerHour), Statuses: backend.NewStatusCache(slowest), Backend: newBackend}
}

// slowestPoll is the interval in which batches are polled while webhooks announce the
// ends of batches.
const slowestPoll = 5 * time.Minute

// callURL is the URL of the account's calls, as far as the endpoint.
func (a *Account) callURL() *url.URL {
	u, err := url.Parse(a.base)
	if err != nil { // a.base was made of a URL
		panic(err)
	}
	return u
}

// batchURL is the URL below which the account's files and batches are found.
func (a *Account) batchURL() *url.URL {
	u := a.callURL()
	query := u.Query()
	for name := range query {
		if !slices.Contains(a.Profile.KeepQuery, name) {
			query.Del(name)
		}
	}
	u.RawQuery = query.Encode()
	return backend.WithPath(u, a.Profile.BatchPath(u.EscapedPath()))
}

// Options configure a Set. All functions must be safe for concurrent use.
type Options struct {
	Base   http.RoundTripper // sends the requests of backends
	Logger *slog.Logger
	Secret journal.Hash // keys the hashes and the fingerprints

	// Context ends the calls of Credential, and the search for unused accounts.
	Context context.Context

	// Account names the account of a request; "": the credential is the account.
	// A nil Account names none.
	Account func(*http.Request) string

	// Credential returns the headers of a valid credential of the account that
	// has the name, "" for an account without a name. Nil: none.
	Credential func(ctx context.Context, name string) (http.Header, error)

	// Legacy says that a named account owns also what the journal has for its
	// credential.
	Legacy bool

	// Retries returns the queued calls of a new account. The Set calls Retries
	// with its lock held.
	Retries func(*Account) journalsession.Retries

	// Added is called after an account was added, without the lock. Nil: not called.
	Added func()
}

// A Set owns the accounts. The Set forgets an account without a batch, and with the
// account its credentials, an hour after the last call (and forgetInterval later at the
// most). With maxAccounts accounts, and each time that the number of accounts has doubled
// since, the Set forgets all accounts without a batch and without a limit to remember. All
// methods may be called concurrently.
type Set struct {
	opts Options

	mu         sync.Mutex
	known      map[accountID]*Account
	hashes     map[journal.Hash]*Account
	forgetting *time.Timer // until the next search for unused accounts; nil: none is planned

	// full is the number of accounts at which a new account causes a search: twice as many
	// as the last search left, so that a search costs each new account little, however many
	// accounts have batches.
	full int
}

// New returns a Set without accounts.
func New(o Options) *Set {
	s := &Set{opts: o, known: make(map[accountID]*Account), hashes: make(map[journal.Hash]*Account)}
	context.AfterFunc(o.Context, s.stopForgetting)
	return s
}

type accountID struct{ base, identity string }

const (
	maxAccounts   = 1000
	accountUnused = time.Hour

	// forgetInterval is the time between two searches for unused accounts.
	forgetInterval = 5 * time.Minute
)

// Of returns the account that pays for a request. upstream is the request's URL as far
// as the endpoint, with the query, and p the profile of the URL.
func (s *Set) Of(req *http.Request, upstream string, p *provider.Profile) *Account {
	id := accountID{upstream, account.Identity(req.Header, p.AccountHeaders...)}
	nameless := id
	var name string
	var own http.Header // the credential, where it does not identify the account
	if s.opts.Account != nil {
		if name = s.opts.Account(req); name != "" {
			var tenant http.Header
			own, tenant = account.Split(account.Headers(id.identity))
			id.identity = accountPrefix + oneLine(name) + "\n" + account.Identity(tenant, p.AccountHeaders...)
		}
	}
	now := time.Now() // without the lock, which all calls take
	s.mu.Lock()
	a := s.known[id]
	added := a == nil
	if added {
		a = s.addLocked(id, name, own, p)
		if s.opts.Legacy && id != nameless {
			s.addLegacyLocked(a, nameless)
		}
	}
	a.called = now
	s.mu.Unlock()
	if added && s.opts.Added != nil {
		s.opts.Added()
	}
	if own != nil {
		a.credentials.Add(own)
	}
	return a
}

// accountPrefix cannot begin the identity of an account without a name, since it
// is no header name.
const accountPrefix = "account/"

// oneLine is a name without line breaks: what follows a line break in an identity
// is a header. A name that has none is not changed, since the journal knows hashes
// of identities.
func oneLine(name string) string {
	if strings.Contains(name, "\n") || strings.HasPrefix(name, `"`) {
		return strconv.Quote(name)
	}
	return name
}

// addLocked makes a new account.
func (s *Set) addLocked(id accountID, name string, own http.Header, p *provider.Profile) *Account {
	if len(s.known) >= max(s.full, maxAccounts) {
		s.forgetLocked(0)
	}
	identity := id.identity
	if own != nil {
		_, identity, _ = strings.Cut(identity, "\n")
	}
	headers := account.Headers(identity)
	a := &Account{base: id.base, identity: id.identity, Hash: s.hash(id), Profile: p, tenant: headers}
	a.Name = hex.EncodeToString(a.Hash[:4])
	a.credentials = credential.NewSet(s.fetchCredential(name))
	if own == nil {
		own, a.tenant = account.Split(headers)
		a.credentials.Add(own)
	}
	base := recovering{s.opts.Base, s.opts.Logger}
	via, viaFlex := a.authorized(base), a.authorized(flexapi.Transport(base))
	slowest := slowestPoll
	if p.PartialResults { // polls bring answers
		slowest = 0
	}
	a.files = newLane(p.CreationsPerHour, slowest, func() backend.Backend { return batchapi.New(a.batchURL(), via, *p, s.opts.Logger) })
	a.flex = newLane(0, slowestPoll, func() backend.Backend { return flexapi.New(a.callURL(), viaFlex, p, &a.models, s.opts.Logger) })
	a.Retries = s.opts.Retries(a)
	s.known[id], s.hashes[a.Hash] = a, a
	s.forgetLaterLocked()
	return a
}

// authorized returns a RoundTripper that sets the headers of the account on each request
// and sends the request through base.
func (a *Account) authorized(base http.RoundTripper) http.RoundTripper {
	return credential.With(a.tenant, a.credentials.Transport(base))
}

// forget forgets the accounts that have been unused for an hour, and calls itself
// again later while accounts are left.
func (s *Set) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetLocked(accountUnused)
	s.forgetting = nil
	s.forgetLaterLocked()
}

// forgetLaterLocked has forget called if accounts are known, until Options.Context ends.
// The caller holds s.mu.
func (s *Set) forgetLaterLocked() {
	if s.forgetting == nil && len(s.known) > 0 && s.opts.Context.Err() == nil {
		s.forgetting = time.AfterFunc(forgetInterval, s.forget)
	}
}

// stopForgetting lets the Set be collected after Options.Context has ended.
func (s *Set) stopForgetting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forgetting != nil {
		s.forgetting.Stop()
		s.forgetting = nil
	}
}

// forgetLocked forgets the accounts that have been unused for a time. The caller holds
// s.mu.
func (s *Set) forgetLocked(unused time.Duration) {
	for id, a := range s.known {
		if a.batches.Load() == 0 && time.Since(a.called) >= unused && (unused > 0 || a.files.Limiter.Idle()) {
			delete(s.known, id)
			s.forgetHashesLocked(a)
		}
	}
	s.full = 2 * len(s.known)
}

// Wake has the batch, or the background response, with the id polled at once, in the
// account that watches the batch. Wake reports whether there is such an account.
func (s *Set) Wake(batchID string) (watched bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.known {
		files, flex := a.files.Statuses.Wake(batchID), a.flex.Statuses.Wake(batchID)
		watched = watched || files || flex
	}
	return watched
}

// ByHash returns the account that the journal calls hash, or nil.
func (s *Set) ByHash(hash journal.Hash) *Account {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hashes[hash]
}

// hash is the account as the journal knows it.
func (s *Set) hash(id accountID) journal.Hash {
	mac := hmac.New(sha256.New, s.opts.Secret[:])
	mac.Write([]byte(id.base + "\x00" + id.identity))
	return journal.Hash(mac.Sum(nil))
}

// fetchCredential is Options.Credential for one account, or nil.
func (s *Set) fetchCredential(name string) func(context.Context) (http.Header, error) {
	if s.opts.Credential == nil {
		return nil
	}
	return func(ctx context.Context) (http.Header, error) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(s.opts.Context, func() { cancel(context.Cause(s.opts.Context)) })()
		return s.opts.Credential(ctx, name)
	}
}

// AppendFingerprint appends to b the fingerprint of a call, by which a retry is
// known: a keyed hash of the account, the caller, the endpoint and the body as it
// came. caller separates callers of the same account; "" for the only caller.
func (s *Set) AppendFingerprint(b []byte, a *Account, caller, suffix string, body []byte) []byte {
	return s.appendFingerprint(b, a.base, a.identity, caller, suffix, body)
}

// callerPrefix cannot begin an identity, since it is no header name.
const callerPrefix = "caller/"

func (s *Set) appendFingerprint(b []byte, base, identity, caller, suffix string, body []byte) []byte {
	if caller != "" {
		identity = callerPrefix + strconv.Quote(caller) + "\n" + identity
	}
	h := hashes.Get().(hash.Hash) //nolint:forcetypeassert // the pool holds hashes
	defer hashes.Put(h)
	h.Reset()
	h.Write(s.opts.Secret[:])
	for _, part := range []string{base, identity, suffix} {
		h.Write(unsafe.Slice(unsafe.StringData(part), len(part)))
		h.Write(separator)
	}
	h.Write(body)
	return h.Sum(b)
}

var (
	hashes    = sync.Pool{New: func() any { return sha256.New() }}
	separator = []byte{0}
)

package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/redact"
	"github.com/autobatcher/autobatcher/internal/webhook"
	"github.com/autobatcher/autobatcher/provider"
)

// Options configure a Proxy. Upstream and Transport are required. APIKey is
// required unless ForwardKey is set.
type Options struct {
	// Upstream is the base URL with its path, such as https://api.openai.com/v1.
	// The proxy appends the caller's path without a leading /v1. A query in the
	// base URL is sent with every request.
	Upstream *url.URL

	// APIKey is the credential for the upstream. The proxy does not send APIKey
	// to callers.
	APIKey string

	// AuthHeader is the header for APIKey: "Authorization", which sends a bearer
	// token, or "api-key", which sends the bare key. Default: "Authorization".
	AuthHeader string

	// ForwardKey sends each caller's own credential upstream instead of APIKey.
	// Callers with different credentials then have separate batches. A call
	// without a credential gets 401.
	ForwardKey bool

	// ClientKeys are the accepted keys of clients. If ClientKeys is not empty,
	// every request except /health and OPTIONS needs a key, as Authorization:
	// Bearer or as api-key. Browsers can authenticate for the page and for /metrics
	// also with ?key=… or with the key as the password of HTTP Basic. Calls of
	// different keys never get each other's answers. With ForwardKey, ClientKeys
	// are the credentials that may be forwarded. Default: no key is needed, but
	// requests that a browser sends for a page of another origin are refused.
	ClientKeys []string

	// OneCaller says that all ClientKeys belong to the same caller, the program of
	// autobatcher run, so that a later process with new keys finds the lines of this
	// process's calls.
	// Default: each client key is a caller of its own.
	OneCaller bool

	// PageKeys are the accepted keys for the page and for /metrics, instead of
	// ClientKeys. Default: ClientKeys; with ForwardKey and without ClientKeys, the
	// page and /metrics are closed.
	PageKeys []string

	// AllowHosts are further names of this server: without ClientKeys and
	// ForwardKey, a request must name this server in the Host header by a loopback
	// name, by the address at which the request arrived, or by one of AllowHosts,
	// without a port. /health answers all requests.
	AllowHosts []string

	// AllowAccountRoutes opens to all ClientKeys the routes that show and change
	// what belongs to the account of APIKey, such as /files and /batches. Default:
	// with ClientKeys and without ForwardKey, only the calls whose answer depends
	// on the request alone are open.
	AllowAccountRoutes bool

	// RefuseClientHeaders refuses calls with Autobatcher-* headers, and calls with
	// a service tier (or, if no answers are kept, "background": true), by which a client
	// chooses the price of a call, and calls to chat/completions, embeddings and responses that Profile does
	// not batch, and calls to batched routes with a form (multipart) or with a stream
	// that cannot be made from a finished answer. Without
	// ForwardKey, RefuseClientHeaders also removes headers that select another
	// organization, project or tenant, such as OpenAI-Project.
	RefuseClientHeaders bool

	// Profile says which paths name a deployment (BasePathCut), which query
	// parameters batches need (KeepQuery), and which calls are batched (Endpoints);
	// other fields are not used. Default: no path, no parameter, and chat completions,
	// embeddings and responses.
	Profile provider.Profile

	// Secrets hides credentials in answers. New adds APIKey. Default: new Secrets.
	Secrets *redact.Secrets

	// Transport answers the calls: an *autobatcher.Transport.
	Transport http.RoundTripper

	// Stats is the method Stats of the Transport. Optional: without Stats, the
	// metric of queued calls is absent.
	Stats func() autobatcher.Stats

	// MaxBody is the maximum body size of a held call, in bytes. A larger body
	// gets 413. 0 means the default of 200 MiB; a negative value is an error.
	MaxBody int64

	// MaxQueued is the maximum number of calls that wait to be sent: calls whose
	// body has arrived and whose batch the provider has not created yet. A further
	// call gets 429 with Retry-After. Calls that are resubmitted count, and may exceed
	// the maximum. MaxQueued requires Stats. 0 means no limit; a negative value is an
	// error.
	MaxQueued int

	// MaxMemory is the maximum number of bytes of request bodies that the proxy
	// holds at the same time. Bytes count when they arrive, without their
	// Content-Encoding, until the call ends. A call whose body does not fit gets 503
	// with Retry-After. 0 means no limit; a negative value is an error. MaxBody is
	// reduced to MaxMemory.
	MaxMemory int64

	// MaxPassedThrough is the maximum number of requests that pass through at the
	// same time, and of held calls that are sent in real time, if Options.Base of the
	// Transport is of LimitRealtime. A further request gets 503 with Retry-After. 0 means no limit; a
	// negative value is an error.
	MaxPassedThrough int

	// PassThroughTimeout is how long the body of a request that passes through, or
	// of the response, may stop arriving, or may not be read by the upstream. Then the
	// request or the response ends. How long the upstream may take from the last byte
	// of the request to the first of the response is not limited. An
	// upgraded connection (a WebSocket) ends if no byte passes in either direction
	// for this time. 0 means the default of 15 min; a negative value is an error.
	PassThroughTimeout time.Duration

	// Grace is how long a held call gets no byte before 200 is committed. Grace
	// is reduced to 80 % of the timeout that a client announces, but not below 1 s.
	// Set Grace below the idle timeout of a load balancer in front of the proxy. 0
	// means the default of 240 s. A negative value means that a call never gets a byte
	// before the response. A call over HTTP/1.0 always waits without limit.
	Grace time.Duration

	// Heartbeat is the interval between heartbeats after the grace. Heartbeat is
	// reduced to half of the timeout that a client announces, but not below 1 s. 0
	// means the default of 15 s; a negative value is an error.
	Heartbeat time.Duration

	// OnFailure is called for each held call that ends without an OK answer, before
	// the client gets the answer. OnFailure must not block. Optional.
	OnFailure func(Failure)

	// CancelBatch asks the provider to cancel a batch, and BatchCallers returns the
	// names of the callers of a running batch, and false for an unknown batch. Both
	// serve POST /autobatcher/cancel. Default: the path gets 404.
	CancelBatch  func(ctx context.Context, batchID string) error
	BatchCallers func(batchID string) ([]string, bool)

	// Webhooks verifies the requests to POST /autobatcher/webhook, and Wake polls the
	// batch with an id, as the method Wake of the Transport does: Wake does not block,
	// and reports whether the batch is polled. The requests need no client key, and may
	// name any host. Default: the path gets 404.
	Webhooks *webhook.Verifier
	Wake     func(batchID string) bool

	// Page is served at "/" and below "/autobatcher/". Default: these paths get
	// 404.
	Page http.Handler

	// Metrics is the registry for the proxy's metrics, and the registry that
	// /metrics shows. Default: a new registry.
	Metrics *prometheus.Registry

	// Logger gets an error for each panic, with the stack, and a warning for each
	// request that was passed through and did not reach the upstream. Records
	// contain the path, but no headers and no bodies. Default: nothing is logged.
	Logger *slog.Logger
}

const (
	defaultMaxBody   = 200 << 20
	defaultGrace     = 240 * time.Second // openai-node times out after 300 s without headers
	defaultHeartbeat = 15 * time.Second  // load balancers commonly time out after 60 s without a byte

	// defaultPassThroughTimeout is longer than the default timeout of OpenAI's SDKs,
	// 10 min: a streamed call may be silent while the model thinks.
	defaultPassThroughTimeout = 15 * time.Minute
)

func (o Options) withDefaults() Options {
	if o.AuthHeader == "" {
		o.AuthHeader = "Authorization"
	}
	if o.MaxBody == 0 {
		o.MaxBody = defaultMaxBody
	}
	if o.MaxMemory > 0 {
		o.MaxBody = min(o.MaxBody, o.MaxMemory) // a retry of a larger body would never succeed
	}
	if o.PassThroughTimeout == 0 {
		o.PassThroughTimeout = defaultPassThroughTimeout
	}
	if o.Grace == 0 {
		o.Grace = defaultGrace
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = defaultHeartbeat
	}
	if o.Metrics == nil {
		o.Metrics = prometheus.NewRegistry()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Secrets == nil {
		o.Secrets = redact.New()
	}
	return o
}

func (o *Options) validate() error {
	switch {
	case o.Upstream == nil || o.Upstream.Host == "" || o.Upstream.Scheme != "http" && o.Upstream.Scheme != "https":
		return fmt.Errorf("proxy: Options.Upstream is %q; it must be an http or https URL such as https://api.openai.com/v1", redacted(o.Upstream))
	case o.Transport == nil:
		return errors.New("proxy: Options.Transport is missing")
	case o.APIKey == "" && !o.ForwardKey:
		return errors.New("proxy: Options.APIKey is empty; set it, or ForwardKey")
	case slices.Contains(o.ClientKeys, ""):
		return errors.New("proxy: Options.ClientKeys has an empty key")
	case slices.Contains(o.PageKeys, ""):
		return errors.New("proxy: Options.PageKeys has an empty key")
	case !strings.EqualFold(o.AuthHeader, "Authorization") && !strings.EqualFold(o.AuthHeader, "api-key"):
		return fmt.Errorf("proxy: Options.AuthHeader is %q; it must be Authorization or api-key", o.AuthHeader)
	case o.MaxBody < 0:
		return fmt.Errorf("proxy: Options.MaxBody is %d; it must not be negative; 0 means %d", o.MaxBody, defaultMaxBody)
	case o.MaxQueued < 0:
		return fmt.Errorf("proxy: Options.MaxQueued is %d; it must not be negative; 0 means no limit", o.MaxQueued)
	case o.MaxQueued > 0 && o.Stats == nil:
		return errors.New("proxy: Options.MaxQueued requires Options.Stats")
	case o.MaxMemory < 0:
		return fmt.Errorf("proxy: Options.MaxMemory is %d; it must not be negative; 0 means no limit", o.MaxMemory)
	case o.MaxPassedThrough < 0:
		return fmt.Errorf("proxy: Options.MaxPassedThrough is %d; it must not be negative; 0 means no limit", o.MaxPassedThrough)
	case o.PassThroughTimeout < 0:
		return fmt.Errorf("proxy: Options.PassThroughTimeout is %v; it must not be negative; 0 means %v", o.PassThroughTimeout, defaultPassThroughTimeout)
	case o.Heartbeat < 0:
		return fmt.Errorf("proxy: Options.Heartbeat is %v; it must not be negative; 0 means %v", o.Heartbeat, defaultHeartbeat)
	}
	return nil
}

func redacted(u *url.URL) string {
	if u == nil {
		return ""
	}
	return u.Redacted()
}

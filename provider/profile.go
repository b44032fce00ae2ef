// Package provider describes what the batch APIs of known providers accept:
// how a request is spelled, which lines may share a file, how large a file may
// be, and which completion windows exist.
//
// A [Profile] is plain data. The URL of a call selects the profile ([ForURL]).
// To override a rule, start from the nearest profile and change a field:
//
//	p := provider.Doubleword()
//	p.MaxLines = 10_000
//
// An unknown host gets [Generic], which asks only for what every
// OpenAI-compatible Batch API allows.
//
// The package reads no files and opens no connections. All functions are safe
// for concurrent use. Every Profile returned belongs to the caller, who may
// change the Profile, its slices and its map.
package provider

import (
	"maps"
	"slices"
	"time"
)

// Profile is what the batch API of one provider accepts. Every field changes
// what autobatcher sends, or when; docs/providers.md has further facts.
//
// Start from a constructor, not from an empty literal: several fields have no
// useful zero value, and [Profile.Validate] names the first field that is wrong.
// A Profile may be read by several goroutines at once.
type Profile struct {
	// Name identifies the profile in options, in logs and for [ByName].
	Name string

	// Hosts select the profile: host names in lower case, without a port.
	// "*.example.com" matches every host below example.com, but not example.com
	// itself, and "api.*.example.com" the hosts of each region. A path after the host, as in "example.com/batch", limits the profile to
	// URLs whose path begins with the path. Empty: the profile is selected by name
	// only, as for software that people host themselves.
	Hosts []string

	// BasePath is the path of the base URL that the provider documents, such as
	// "/v1", if a base URL without a path cannot work. Empty: not known, as for
	// software that people host themselves, or not needed, as at Azure, whose
	// clients put /openai into the path of each call.
	BasePath string

	// Refusal, if not empty, tells the user in one sentence why the provider
	// cannot run a batch and what to do instead. All fields but Name and Hosts
	// are then ignored.
	Refusal string

	// Spelling: where the parts of a batch go.

	// AuthHeader carries the key, for programs that hold the key themselves:
	// "Authorization" (as a bearer token) or "api-key" (bare, Azure).
	AuthHeader string

	// AccountHeaders names the headers of a call that select the account which
	// pays, where the names alone do not show this: two calls that differ in
	// such a header never share a batch, and all requests about their batch
	// repeat the header. Credentials, and common names such as
	// "OpenAI-Organization" or "X-Org-Id", need no entry. Upper and lower case
	// are equal. Nil: no further headers.
	AccountHeaders []string

	// LinePrefix stands before the endpoint in the url of each line. "/v1" gives
	// "/v1/chat/completions", whatever the path of the base URL is: Groq's base
	// ends in /openai/v1 and its lines still say /v1.
	LinePrefix string

	// EndpointPrefix stands before the endpoint of the batch itself. The two
	// prefixes differ only at Azure, where EndpointPrefix is empty.
	EndpointPrefix string

	// BasePathCut, if not empty, is the path segment of a call's base URL that
	// stands before the name of a deployment: "/deployments/" at Azure's dated
	// API, whose calls go to /openai/deployments/x but whose files are at
	// /openai/files. See [Profile.BatchPath] and [Profile.Deployment].
	BasePathCut string

	// KeepQuery names the query parameters of a call that every request about
	// its files and batch must repeat: "api-version" at Azure.
	KeepQuery []string

	// UploadPath is where input files are sent, below the base URL and without a
	// leading slash: "files", but "files/upload" at Together.
	UploadPath string

	// Purpose is the form field of that name in an upload: "batch" nearly everywhere.
	Purpose string

	// UploadNameField, if not empty, is a form field that must repeat the file's
	// name: "file_name" at Together.
	UploadNameField string

	// UploadModelField, if not empty, is a form field that must name the model of
	// the lines, so that a proxy can select the provider of the file: "model" at
	// LiteLLM. The field requires OneModel.
	UploadModelField string

	// CreateWrapper, if not empty, is the field around the batch in the answer to
	// its creation: "job" at Together.
	CreateWrapper string

	// Endpoints are the calls that can be batched, as path suffixes such as
	// "/chat/completions". Nil: chat completions, embeddings and responses.
	// Empty but not nil: none. Calls to all other endpoints, and calls whose body is a
	// form (multipart), go through in real time. So does a call with "stream": true to
	// an endpoint other than chat completions, completions and responses, whose
	// streams can be made from finished answers; embeddings have no streams. A call to
	// "/moderations" need not name a model. See [Profile.Suffix].
	Endpoints []string

	// SinglePrice, if not empty, is the price of a single call at this address, where
	// the provider sells single calls as cheaply as batches: "half price". There is
	// nothing to batch, so Endpoints must be empty, and not nil: calls go through one
	// by one. FlexTimeout is how long the provider may take.
	SinglePrice string

	// Completion windows: how long the provider may take.

	// Windows are the windows accepted, letter for letter. Nil: see MinWindow.
	Windows []string

	// MinWindow and MaxWindow bound a window written as a duration ("24h", "7d")
	// where Windows is nil. MaxWindow zero: only the provider knows which windows
	// are valid, and every string is sent.
	MinWindow, MaxWindow time.Duration

	// DefaultWindow is the window of calls that ask for none.
	DefaultWindow string

	// OmitWindow: the provider has no parameter for the window, so none is sent
	// and [Profile.CheckWindow] accepts every string. Zhipu only.
	OmitWindow bool

	// BatchDiscount is the share of the real-time price that batches save, for
	// estimates where no price for batches is known: 0.5 is half price. Zero: no
	// discount is documented, and estimates show no savings.
	BatchDiscount float64

	// Flex tier: single calls that wait until the provider has room, at about the price
	// of a batch.

	// FlexEndpoints are the calls that the provider answers at its flex tier, as path
	// suffixes such as "/chat/completions". Nil: there is no flex tier, or it saves
	// nothing.
	FlexEndpoints []string

	// FlexTier is the value of "service_tier" in the body of a call at the flex tier:
	// "flex".
	FlexTier string

	// FlexTimeout is how long the provider may take to answer a call at the flex tier,
	// or at a SinglePrice.
	FlexTimeout time.Duration

	// FlexRefusals are the statuses, from 400 to 599, with which the provider refuses a call
	// at the flex tier for want of room. Such a call is neither executed nor billed, and
	// is sent again for two minutes. A rate limit (429) counts as such a refusal at every
	// provider, and a 429 for an exhausted quota never does. Not 408, 502, 504, 520,
	// 522 or 524: the provider may have executed the call. Required with FlexEndpoints.
	FlexRefusals []int

	// FlexBackground: calls to /responses at the flex tier may run in the background,
	// and are polled, so that no connection is held open.
	FlexBackground bool

	// Sharing: which lines may stand in one file.

	// OneModel: all lines of a file must name the same model.
	OneModel bool

	// OneEndpoint: all lines of a file must go to the batch's endpoint.
	OneEndpoint bool

	// LineMembers names, for each of Endpoints, the members of a body that stand on the
	// line: "input" of "/embeddings" at Voyage. The other members, the model among them,
	// are parameters of the batch ("request_params"): calls share a batch if their
	// parameters are equal, a call whose parameters have over 4 KB is refused, and lines
	// have no method and url. The field requires OneModel and OneEndpoint. Nil: a line has
	// the whole body.
	LineMembers map[string][]string

	// Limits. Zero: no limit known. Negative values are invalid.

	// MaxLines is the most lines that a file may hold.
	MaxLines int

	// MaxBytes is the largest file accepted, in bytes.
	MaxBytes int64

	// MaxLineBytes is the largest body of one line, in bytes.
	MaxLineBytes int64

	// MaxInputs is the most embedding inputs that all lines of a file may have
	// together.
	MaxInputs int

	// MaxMetadata is the most metadata pairs that a batch may carry, including
	// the pairs that autobatcher adds.
	MaxMetadata int

	// MaxMetadataKey and MaxMetadataValue are the longest key and value of a
	// metadata pair, in characters.
	MaxMetadataKey, MaxMetadataValue int

	// CreationsPerHour is the most batches that may be created in an hour.
	CreationsPerHour int

	// Results: when and how they can be read.

	// MinPoll is the shortest time between two polls of a batch that the
	// provider asks for. Zero: the provider asks for none.
	MinPoll time.Duration

	// PartialResults: output and error file can be read while the batch runs, and
	// reading continues with the query parameter skip=<lines already read>.
	PartialResults bool

	// LateResults: lines can still arrive, and cost, after a batch was
	// cancelled, so the results of a cancelled batch are read a second time.
	LateResults bool

	// ResultURLs: the batch names its result files by URL instead of by id.
	// Only with ResultURLs may a client follow a URL found in a batch.
	// Credentials belong to the host of the base URL and must not be sent to
	// another host.
	ResultURLs bool

	// Housekeeping and recovery.

	// FileExpiryMin and FileExpiryMax bound expires_after of an upload.
	// FileExpiryMax zero: expires_after must not be sent. See
	// [Profile.FileExpiry].
	FileExpiryMin, FileExpiryMax time.Duration

	// OutputExpiry: output_expires_after may be sent with a new batch, within the
	// bounds of FileExpiryMin and FileExpiryMax.
	OutputExpiry bool

	// ListByOffset: the list's "after" is the number of batches to skip instead of
	// the id of the last batch seen.
	ListByOffset bool
}

// Clone returns a copy of p that shares no slice and no map with p.
func (p Profile) Clone() Profile {
	for _, list := range []*[]string{&p.Hosts, &p.AccountHeaders, &p.KeepQuery, &p.Endpoints, &p.FlexEndpoints, &p.Windows} {
		*list = slices.Clone(*list)
	}
	p.FlexRefusals = slices.Clone(p.FlexRefusals)
	p.LineMembers = maps.Clone(p.LineMembers)
	for suffix, names := range p.LineMembers {
		p.LineMembers[suffix] = slices.Clone(names)
	}
	return p
}

// defaultEndpoints are the endpoints of a Profile whose Endpoints are nil.
var defaultEndpoints = []string{chat, embeddings, responses}

func (p Profile) endpoints() []string {
	if p.Endpoints == nil {
		return defaultEndpoints
	}
	return p.Endpoints
}

// Suffixes returns the endpoints of calls that can be batched: Endpoints, or the
// default endpoints if Endpoints is nil. As in [Profile.Suffix], a Refusal is ignored.
func (p Profile) Suffixes() []string { return slices.Clone(p.endpoints()) }

// Batches reports whether calls to the endpoint suffix, such as
// "/chat/completions", can be batched at this provider. The answer is no for
// every suffix if the profile has a Refusal.
func (p Profile) Batches(suffix string) bool {
	return p.Refusal == "" && slices.Contains(p.endpoints(), suffix)
}

// Flex reports whether the provider answers calls to the endpoint suffix, such as
// "/chat/completions", at its flex tier.
func (p Profile) Flex(suffix string) bool {
	return p.Refusal == "" && slices.Contains(p.FlexEndpoints, suffix)
}

// Package provider describes what the batch APIs of known providers accept:
// how a request is spelled, what may share a file, how large a file may be,
// and which completion windows exist.
//
// A [Profile] is plain data. The URL of a call chooses it ([ForURL]); who knows
// better starts from the nearest one and changes a field:
//
//	p := provider.Doubleword()
//	p.MaxLines = 10_000
//
// A host nobody here knows gets [Generic], which asks only for what every
// OpenAI-compatible Batch API allows.
//
// The package reads no files and opens no connections. Its functions may be
// called from any goroutine, and every Profile returned is the caller's own.
package provider

import (
	"slices"
	"strings"
	"time"
)

// Profile is what one provider's batch API accepts. Every field changes what is
// sent, or when; what is merely good to know stands in docs/providers.md.
//
// Start from a constructor, not from an empty literal: several fields have no
// useful zero value, and [Profile.Validate] names the one that is wrong.
type Profile struct {
	// Name identifies the profile in options, in logs and for [ByName].
	Name string

	// Hosts select the profile: host names in lower case, without a port.
	// "*.example.com" matches every host below example.com, but not example.com
	// itself. Empty: chosen by name only, as for software people host themselves.
	Hosts []string

	// Refusal, if not empty, tells the user in one sentence why no batch can be
	// had here and what to do instead. Only Name and Hosts have a meaning then.
	Refusal string

	// Spelling: where the parts of a batch go.

	// AuthHeader carries the key, for programs that hold the key themselves:
	// "Authorization" (as a bearer token) or "api-key" (bare, Azure).
	AuthHeader string

	// LinePrefix stands before the endpoint in the url of each line. "/v1" gives
	// "/v1/chat/completions", whatever the path of the base URL is: Groq's base
	// ends in /openai/v1 and its lines still say /v1.
	LinePrefix string

	// EndpointPrefix is the same for the endpoint of the batch itself. The two
	// differ only at Azure, which wants it bare.
	EndpointPrefix string

	// BasePathCut, if not empty, is the path segment of a call's base URL from
	// which on it does not belong to files and batches: "/deployments/" at Azure's
	// dated API, whose calls go to /openai/deployments/x but whose files live at
	// /openai/files. See [Profile.BatchPath].
	BasePathCut string

	// KeepQuery names the query parameters of a call that every request about its
	// files and batch must repeat: "api-version" at Azure.
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
	// the lines, so that a proxy knows where to take the file:
	// "target_model_names" at LiteLLM. It needs OneModel.
	UploadModelField string

	// CreateWrapper, if not empty, is the field around the batch in the answer to
	// its creation: "job" at Together.
	CreateWrapper string

	// Endpoints are the calls that can be batched, as path suffixes such as
	// "/chat/completions". Nil: chat completions, embeddings and responses.
	// A call to any other endpoint is no batch call at this provider.
	Endpoints []string

	// Completion windows: how long the provider may take.

	// Windows are the windows accepted, letter for letter. Nil: see MinWindow.
	Windows []string

	// MinWindow and MaxWindow bound a window written as a duration ("24h", "7d")
	// where Windows is nil. MaxWindow zero: any string may be right.
	MinWindow, MaxWindow time.Duration

	// DefaultWindow is asked for where the user asks for none.
	DefaultWindow string

	// OmitWindow: the provider has no such parameter, so none is sent and every
	// wish passes [Profile.CheckWindow]. Zhipu only.
	OmitWindow bool

	// Sharing: which lines may stand in one file.

	// OneModel: all lines of a file must name the same model.
	OneModel bool

	// OneEndpoint: all lines of a file must go to the batch's endpoint.
	OneEndpoint bool

	// Limits. Zero: no limit known.

	// MaxLines is the most lines a file may hold.
	MaxLines int

	// MaxBytes is the largest file accepted, in bytes.
	MaxBytes int64

	// MaxLineBytes is the largest body of one line, in bytes.
	MaxLineBytes int64

	// MaxInputs is the most embedding inputs a file may hold, over all its lines.
	MaxInputs int

	// MaxMetadata is the most metadata pairs a batch may carry, ours included.
	MaxMetadata int

	// MaxMetadataKey and MaxMetadataValue are their longest key and value, in
	// characters.
	MaxMetadataKey, MaxMetadataValue int

	// CreationsPerHour is the most batches that may be created in an hour.
	CreationsPerHour int

	// Results: when and how they can be read.

	// MinPoll is the shortest time between two looks at a batch that the provider
	// asks for. Zero: it asks for none.
	MinPoll time.Duration

	// PartialResults: output and error file can be read while the batch runs, and
	// reading goes on with the query parameter skip=<lines already read>.
	PartialResults bool

	// LateResults: lines can still arrive after a batch was cancelled, and are
	// paid for, so a cancelled batch is worth a second look.
	LateResults bool

	// ResultURLs: the batch names its result files by URL instead of by id.
	// Nowhere else may a URL found in a batch be followed. Credentials belong to
	// the base URL's host only and must not be sent along.
	ResultURLs bool

	// Housekeeping and recovery.

	// FileExpiryMin and FileExpiryMax bound expires_after of an upload.
	// FileExpiryMax zero: it must not be sent.
	FileExpiryMin, FileExpiryMax time.Duration

	// OutputExpiry: output_expires_after may be sent with a new batch, within the
	// bounds of FileExpiryMin and FileExpiryMax.
	OutputExpiry bool

	// ListByOffset: the list's "after" is the number of batches to skip instead of
	// the id of the last one seen.
	ListByOffset bool
}

// defaultEndpoints are the endpoints of a Profile that names none.
var defaultEndpoints = []string{"/chat/completions", "/embeddings", "/responses"}

// Batches reports whether calls to the endpoint suffix, such as
// "/chat/completions", can be batched here. It is false wherever batches are
// refused altogether.
func (p Profile) Batches(suffix string) bool {
	if p.Refusal != "" {
		return false
	}
	if p.Endpoints == nil {
		return slices.Contains(defaultEndpoints, suffix)
	}
	return slices.Contains(p.Endpoints, suffix)
}

// LineURL returns the url of a line for calls to the endpoint suffix:
// "/chat/completions" becomes "/v1/chat/completions" nearly everywhere.
func (p Profile) LineURL(suffix string) string { return p.LinePrefix + suffix }

// Endpoint returns the endpoint of a batch of calls to the endpoint suffix.
func (p Profile) Endpoint(suffix string) string { return p.EndpointPrefix + suffix }

// BatchPath returns the path below which files and batches are found, given the
// path of a call's base URL. It is that very path, without a trailing slash,
// unless BasePathCut says otherwise.
func (p Profile) BatchPath(basePath string) string {
	if p.BasePathCut != "" {
		// The slash lets a base path match that ends in the segment itself.
		if i := strings.Index(basePath+"/", p.BasePathCut); i >= 0 {
			basePath = basePath[:i]
		}
	}
	return strings.TrimRight(basePath, "/")
}

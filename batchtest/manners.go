package batchtest

import "time"

// Manners describe how one provider's Batch API behaves, as data: take the
// constructor of the nearest provider and change what differs.
//
//	manners := batchtest.OpenAI()
//	manners.MaxLines = 3
//	server := batchtest.New(batchtest.Options{Manners: manners})
//
// The zero Manners stand for [OpenAI]. In any other value a zero limit means
// "no limit" and an empty list "anything goes".
type Manners struct {
	// Name is how the provider is called in messages.
	Name string

	// BasePath is the path the API lives under; empty means "/v1".
	BasePath string
	// CallPath comes between BasePath and a realtime call's endpoint, as a pattern
	// of [http.ServeMux]: "/deployments/{deployment}" at Azure's dated API.
	CallPath string
	// NeedQuery is a query parameter without which every request is refused.
	NeedQuery string
	// UploadPath is where files are posted, under BasePath; empty means "/files".
	UploadPath string
	// Purpose is the only purpose an upload may name; empty means "batch".
	Purpose string
	// UploadFields are form fields that an upload must have beside its file and
	// purpose. "file_name" must repeat the name of the file.
	UploadFields []string
	// CreatedStatus is the status of a successful upload or create; zero means 200.
	CreatedStatus int
	// BareIDs makes identifiers plain UUIDs, and answers 400 to any other form.
	// Otherwise they are "file-…" and "batch_…".
	BareIDs bool
	// WrapCreated puts the answer to "create batch" into {"job": …}.
	WrapCreated bool
	// StatusStyle is the spelling of a batch's status.
	StatusStyle StatusStyle
	// ISOTimes writes times as RFC 3339 text instead of Unix seconds.
	ISOTimes bool
	// TextErrors answers errors as text/plain; 429 remains JSON, in a shape of
	// its own. Otherwise errors are in OpenAI's JSON shape.
	TextErrors bool
	// IgnoreUnknown accepts unknown form fields and JSON keys instead of
	// refusing them with 400.
	IgnoreUnknown bool

	// CheckAtUpload examines the lines while they are uploaded, all or nothing,
	// and names the first bad one as "Line N: …". Otherwise the batch made from
	// the file fails while validating, with its errors listed.
	CheckAtUpload bool
	// SkipBlankLines passes over empty lines, which then do not count in line numbers.
	SkipBlankLines bool
	// MaxFileBytes, MaxLineBytes, MaxLines and MaxInputs cap one file: its size,
	// the body of a line, the number of lines, and the embedding inputs of all
	// lines together.
	MaxFileBytes, MaxLineBytes, MaxLines, MaxInputs int64
	// RefuseStream refuses lines whose body says "stream": true.
	RefuseStream bool
	// OneModel and OneEndpoint refuse a file that mixes models, or has a line
	// for another endpoint than its batch.
	OneModel, OneEndpoint bool
	// UniqueIDs refuses a custom_id that appears twice.
	UniqueIDs bool
	// OptionalV1 treats "/chat/completions" and "/v1/chat/completions" alike.
	OptionalV1 bool

	// Endpoints are the values that a batch's endpoint and a line's url may have.
	Endpoints []string
	// Windows are the completion windows on offer.
	Windows []string
	// MinWindow and MaxWindow bound the windows where Windows is empty: a duration
	// such as "24h" or "7d".
	MinWindow, MaxWindow time.Duration
	// NoWindow refuses a completion_window, since there is no such parameter.
	NoWindow bool
	// CreationsPerHour is how many batches one key may create in an hour; beyond
	// it the answer is 429.
	CreationsPerHour int
	// TellTokenLimit names the limit where a batch fails with token_limit_exceeded.
	TellTokenLimit bool
	// MaxPairs, MaxKey and MaxValue cap a batch's metadata: pairs, and the
	// characters of a key and of a value.
	MaxPairs, MaxKey, MaxValue int
	// DropMetadata are keys removed from a batch's metadata, and AddMetadata
	// what is added to it in answers.
	DropMetadata []string
	AddMetadata  map[string]string

	// FileExpiry honours expires_after and output_expires_after, between an hour
	// and 30 days, and makes files vanish then. Otherwise both are ignored.
	FileExpiry bool
	// DeleteCancels cancels the unfinished batches of an input file that is deleted.
	DeleteCancels bool
	// VisibleAfter is how long a new file or batch answers 404 and stays out of
	// lists, as it happens behind a lagging read replica.
	VisibleAfter time.Duration

	// PartialResults gives a batch its result files' ids from the start and
	// serves the lines finished so far: X-Incomplete, X-Last-Line, skip, limit
	// (at most 101) and search. The old parameter offset is ignored.
	PartialResults bool
	// ResultURLs names result files by an address on another host that carries its
	// own credential, instead of by id. Whoever shows a key there is refused. Only
	// [Server.Transport] leads to it.
	ResultURLs bool
	// FailedLines says where a line that ended in an HTTP error is written, and how.
	FailedLines FailedLines
	// FailWhenAllFail ends a batch as "failed" when no line succeeded. Otherwise
	// it is "completed", without an output file.
	FailWhenAllFail bool
	// EmptyErrorFile gives a batch without errors an error file of no bytes.
	EmptyErrorFile bool
	// ReportUsage adds the model and the tokens used so far to a batch.
	ReportUsage bool
	// NoExpiry lets work go on past the window; the batch only gains an expired_at.
	NoExpiry bool
	// DropUnfinished writes no line at all for what a cancelled or expired batch
	// left undone. Otherwise the error file says batch_cancelled or batch_expired.
	DropUnfinished bool

	// CancelAtOnce answers a cancel with "cancelled", in any state, completed
	// included. Otherwise the answer is "cancelling", a finished batch is
	// refused with 409, and the end comes CancelTime later.
	CancelAtOnce bool
	CancelTime   time.Duration
	// StuckCancelling leaves a batch "cancelling" for ever when it is cancelled
	// while it is still validating.
	StuckCancelling bool

	// ListSearch honours the parameter search when listing batches: metadata,
	// file name and id, case-insensitive, with % and _ as wildcards.
	ListSearch bool
	// ListByOffset takes after as the number of batches to pass over.
	ListByOffset bool
	// BareList answers a list of batches as an array, without the object around it.
	BareList bool
	// ListFirstPageAgain answers an unknown after with the first page instead
	// of an error.
	ListFirstPageAgain bool
}

// StatusStyle is the spelling of a batch's status.
type StatusStyle int

// The spellings known: "in_progress", "In_progress" and "IN_PROGRESS".
const (
	LowerStatus StatusStyle = iota
	TitleStatus
	UpperStatus
)

// FailedLines says what becomes of a line that ended in an HTTP error.
type FailedLines int

const (
	// AsResponse writes the response with its status and body to the error file.
	AsResponse FailedLines = iota
	// AsMessage writes no response to the error file, but an error whose message
	// is itself JSON that holds the status and the body's text.
	AsMessage
	// AsOutput writes the response to the output file, beside the successes.
	AsOutput
)

var openAIEndpoints = []string{
	"/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions",
	"/v1/moderations", "/v1/images/generations", "/v1/images/edits", "/v1/videos",
}

// OpenAI is the reference: files are checked while the batch is validating,
// results appear when it has ended, and one file holds one endpoint and one model.
func OpenAI() Manners {
	return Manners{
		Name:         "openai",
		MaxFileBytes: 200 << 20,
		MaxLines:     50_000,
		MaxInputs:    50_000,
		RefuseStream: true,
		OneModel:     true,
		OneEndpoint:  true,
		UniqueIDs:    true,
		Endpoints:    openAIEndpoints,
		Windows:      []string{"24h"},
		MaxPairs:     16,
		MaxKey:       64,
		MaxValue:     512,
		FileExpiry:   true,
		ReportUsage:  true,

		CreationsPerHour: 2_000,
		TellTokenLimit:   true,
	}
}

// plain is OpenAI without what only OpenAI has: the nearest guess at a provider
// that copied its Batch API.
func plain(name string) Manners {
	m := OpenAI()
	m.Name = name
	m.CreationsPerHour, m.TellTokenLimit = 0, false
	m.FileExpiry, m.ReportUsage = false, false
	return m
}

// Short names for what a batch may be of where that is not everything.
const (
	chat       = "/v1/chat/completions"
	embeddings = "/v1/embeddings"
)

const day = 24 * time.Hour

// Doubleword checks files at upload, serves results while the batch runs, never
// expires a batch, and writes no line for cancelled work.
func Doubleword() Manners {
	return Manners{
		Name:           "doubleword",
		CreatedStatus:  201,
		BareIDs:        true,
		TextErrors:     true,
		IgnoreUnknown:  true,
		CheckAtUpload:  true,
		SkipBlankLines: true,
		MaxFileBytes:   100 << 20,
		MaxLineBytes:   10 << 20,
		MaxLines:       50_000,
		Endpoints: []string{
			"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
		},
		Windows: []string{"24h", "1h"},
		DropMetadata: []string{
			"created_by_email", "context_name", "context_type", "request_source", "created_by", "dw_user_agent",
		},
		AddMetadata:        map[string]string{"request_source": "api"},
		DeleteCancels:      true,
		PartialResults:     true,
		FailedLines:        AsMessage,
		FailWhenAllFail:    true,
		NoExpiry:           true,
		DropUnfinished:     true,
		CancelAtOnce:       true,
		StuckCancelling:    true,
		ListSearch:         true,
		ListFirstPageAgain: true,
	}
}

// LLMD is the llm-d batch gateway: any model per line, HTTP errors in the
// output file, any duration as window, and a list paged by offset. In what is not
// mentioned it is OpenAI, and so are the others below: they are near enough to
// find a client's assumptions.
func LLMD() Manners {
	m := plain("llm-d")
	m.OneModel = false
	m.FileExpiry = true
	m.Windows, m.MinWindow, m.MaxWindow = nil, time.Second, 366*day
	m.FailedLines = AsOutput
	m.ListByOffset = true
	return m
}

// Azure is Azure OpenAI: capitalised statuses, times as text, an empty error
// file on success, and no embeddings.
func Azure() Manners {
	m := plain("azure")
	m.FileExpiry = true
	m.BasePath = "/openai/v1"
	m.StatusStyle = TitleStatus
	m.ISOTimes = true
	m.MaxLines = 100_000
	m.OptionalV1 = true
	m.Endpoints = []string{"/v1/chat/completions", "/v1/responses", "/chat/completions", "/responses"}
	m.EmptyErrorFile = true
	m.NoExpiry = true
	return m
}

// AzureLegacy is Azure's dated API: calls go to a deployment's path, files and
// batches do not, urls have no /v1, and every request names the api-version.
func AzureLegacy() Manners {
	m := Azure()
	m.Name = "azure-legacy"
	m.BasePath, m.CallPath = "/openai", "/deployments/{deployment}"
	m.NeedQuery = "api-version"
	m.OptionalV1 = false
	m.Endpoints = []string{"/chat/completions", "/responses"}
	return m
}

// Together wraps the answer to create, shouts its statuses, lists without an
// object, and takes uploads on a path and under a purpose of its own.
func Together() Manners {
	m := plain("together")
	m.FileExpiry = true
	m.UploadPath = "/files/upload"
	m.Purpose = "batch-api"
	m.UploadFields = []string{"file_name"}
	m.IgnoreUnknown = true
	m.MaxFileBytes = 100 << 20
	m.WrapCreated = true
	m.BareList = true
	m.StatusStyle = UpperStatus
	m.ISOTimes = true
	m.OneModel = false
	m.Endpoints = []string{chat}
	return m
}

// Groq batches chat completions alone, for a day to a week.
func Groq() Manners {
	m := plain("groq")
	m.BasePath = "/openai/v1"
	m.MaxFileBytes = 100_000_000
	m.Endpoints = []string{chat}
	m.Windows, m.MinWindow, m.MaxWindow = nil, day, 7*day
	return m
}

// Nebius takes files of five million lines.
func Nebius() Manners {
	m := plain("nebius")
	m.MaxLines, m.MaxFileBytes = 5_000_000, 10_000_000_000
	m.Endpoints = []string{chat, embeddings}
	return m
}

// Parasail lets the lines of a file name any models.
func Parasail() Manners {
	m := plain("parasail")
	m.OneModel = false
	m.MaxFileBytes = 500_000_000
	m.Endpoints = []string{chat, embeddings}
	return m
}

// DeepInfra batches no responses.
func DeepInfra() Manners {
	m := plain("deepinfra")
	m.BasePath = "/v1/openai"
	m.Endpoints = []string{chat, embeddings}
	return m
}

// SiliconFlow takes 5,000 lines, streaming ones too, and names results by URL.
func SiliconFlow() Manners {
	m := plain("siliconflow")
	m.RefuseStream = false
	m.MaxLines, m.MaxFileBytes = 5_000, 1_000_000_000
	m.Endpoints = []string{chat}
	m.Windows, m.MinWindow, m.MaxWindow = nil, day, 14*day
	m.ResultURLs = true
	return m
}

// Moonshot batches chat completions alone, for half a day to a week.
func Moonshot() Manners {
	m := plain("moonshot")
	m.Endpoints = []string{chat}
	m.Windows, m.MinWindow, m.MaxWindow = nil, day/2, 7*day
	return m
}

// Zhipu says /v4 where others say /v1, and knows no completion window.
func Zhipu() Manners {
	m := plain("zhipu")
	m.BasePath = "/api/paas/v4"
	m.MaxFileBytes = 100_000_000
	m.Endpoints = []string{"/v4/chat/completions", "/v4/embeddings"}
	m.Windows, m.NoWindow = nil, true
	return m
}

// DashScope is Alibaba Cloud's Model Studio in its OpenAI-compatible mode.
func DashScope() Manners {
	m := plain("dashscope")
	m.BasePath = "/compatible-mode/v1"
	m.MaxFileBytes = 100_000_000
	m.Endpoints = []string{chat, embeddings}
	m.Windows, m.MinWindow, m.MaxWindow = nil, day, 14*day
	return m
}

// LiteLLM is its proxy, which learns from a field of the form whom a file is for.
func LiteLLM() Manners {
	m := plain("litellm")
	m.UploadFields = []string{"target_model_names"}
	m.IgnoreUnknown = true
	return m
}

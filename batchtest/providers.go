package batchtest

import "time"

var openAIEndpoints = []string{
	"/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions",
	"/v1/moderations", "/v1/images/generations", "/v1/images/edits", "/v1/videos",
}

// OpenAI is the reference: files are checked while the batch is validating,
// results appear when the batch has ended, and a file holds one endpoint and one model.
// Chat completions and responses have the tiers flex and priority, and responses can
// be made in the background.
func OpenAI() Behavior {
	return Behavior{
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
		ShowTokenLimit:   true,

		Tiers:       []Tier{TierFlex, TierPriority},
		RefuseTiers: true,
		Background:  true,
	}
}

// plain is OpenAI without the rules that only OpenAI has: the nearest guess at a
// provider that copied OpenAI's Batch API.
func plain(name string) Behavior {
	b := OpenAI()
	b.Name = name
	b.CreationsPerHour, b.ShowTokenLimit = 0, false
	b.FileExpiry, b.ReportUsage = false, false
	b.Tiers, b.RefuseTiers, b.Background = nil, false, false
	return b
}

// Short names for endpoints.
const (
	chat       = "/v1/chat/completions"
	embeddings = "/v1/embeddings"

	moderations = "/moderations"
	rerank      = "/rerank"
	generations = "/images/generations"
	edits       = "/images/edits"

	transcriptions = "/audio/transcriptions"
	translations   = "/audio/translations"
)

const day = 24 * time.Hour

// Doubleword checks files at upload, serves results while the batch runs, never
// expires a batch, cancels even a completed batch, and writes no line for
// cancelled work. A flex call waits for an hour at most, and is executed even without
// its caller. Embeddings at the tier flex are executed in real time.
func Doubleword() Behavior {
	return Behavior{
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
		Windows:          []string{"24h", "1h"},
		UnreadableWindow: 500,
		RefuseSurrogates: true,
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
		Tiers:              []Tier{TierFlex},
		FlexTimeout:        time.Hour,
		FlexSurvives:       true,
		Background:         true,
		BackgroundStatus:   202,
		NoResponseCancel:   true,
		StatusAsCode:       true,
		BatchWebhooks:      true,
	}
}

// LLMD is the llm-d batch gateway: any model and any endpoint per line, HTTP
// errors in the output file, any duration as window, and a list sorted by id and
// paged by offset. A bad line, or a message whose content is a list, fails the
// batch without a reason. All other behavior is OpenAI's, here and in the
// constructors below.
func LLMD() Behavior {
	b := plain("llm-d")
	b.Endpoints = []string{"/v1/responses", chat, embeddings, "/v1/completions", "/v1/moderations"}
	b.OneModel, b.OneEndpoint = false, false
	b.RefuseParts = true
	b.SilentFailure = true
	b.ListOrder = OrderByID
	b.FileExpiry = true
	b.Windows, b.MinWindow, b.MaxWindow = nil, time.Second, 366*day
	b.FailedLines = AsOutput
	b.ListByOffset = true
	return b
}

// Azure is Azure OpenAI: capitalized statuses, times as text, an empty error
// file on success, and no embeddings. Set FileProcessing to make new uploads
// pending.
func Azure() Behavior {
	b := plain("azure")
	b.FileExpiry = true
	b.BasePath = "/openai/v1"
	b.StatusStyle = TitleStatus
	b.ISOTimes = true
	b.MaxLines = 100_000
	b.OptionalV1 = true
	b.Endpoints = []string{"/v1/chat/completions", "/v1/responses", "/chat/completions", "/responses"}
	b.EmptyErrorFile = true
	b.NoExpiry = true
	b.Tiers, b.RefuseTiers, b.Background = []Tier{TierFlex, TierPriority}, true, true
	return b
}

// AzureLegacy is Azure's dated API: calls go to a deployment's path, files and
// batches do not, urls have no /v1, and every request names the api-version.
func AzureLegacy() Behavior {
	b := Azure()
	b.Name = "azure-legacy"
	b.BasePath, b.CallPath = "/openai", "/deployments/{deployment}"
	b.NeedQuery = "api-version"
	b.OptionalV1 = false
	b.Endpoints = []string{"/chat/completions", "/responses"}
	b.Tiers, b.RefuseTiers, b.Background = nil, false, false
	return b
}

// Together wraps the answer to create, writes statuses in upper case, lists batches
// as a bare array, and has its own upload path and purpose.
func Together() Behavior {
	b := plain("together")
	b.FileExpiry = true
	b.UploadPath = "/files/upload"
	b.Purpose = "batch-api"
	b.UploadFields = []string{"file_name"}
	b.IgnoreUnknown = true
	b.MaxFileBytes = 100 << 20
	b.WrapCreated = true
	b.BareList = true
	b.StatusStyle = UpperStatus
	b.ISOTimes = true
	b.OneModel = false
	b.Endpoints = []string{chat, "/v1" + transcriptions, "/v1" + translations}
	return b
}

// Groq batches chat completions and audio, for a day to a week. The tier flex costs the full
// price, and lack of capacity is the status 498.
func Groq() Behavior {
	b := plain("groq")
	b.BasePath = "/openai/v1"
	b.MaxFileBytes = 100_000_000
	b.Endpoints = []string{chat, "/v1" + transcriptions, "/v1" + translations}
	b.Windows, b.MinWindow, b.MaxWindow = nil, day, 7*day
	b.Tiers, b.NoCapacityStatus = []Tier{TierFlex}, 498
	return b
}

// Nebius takes files of five million lines.
func Nebius() Behavior {
	b := plain("nebius")
	b.MaxLines, b.MaxFileBytes = 5_000_000, 10_000_000_000
	b.Endpoints = []string{chat, embeddings}
	return b
}

// Parasail lets the lines of a file name any models.
func Parasail() Behavior {
	b := plain("parasail")
	b.OneModel = false
	b.MaxFileBytes = 500_000_000
	b.Endpoints = []string{chat, embeddings}
	return b
}

// DeepInfra batches no responses.
func DeepInfra() Behavior {
	b := plain("deepinfra")
	b.BasePath = "/v1/openai"
	b.Endpoints = []string{chat, "/v1/completions", embeddings}
	return b
}

// SiliconFlow takes 5,000 lines, accepts "stream": true, and names results by URL.
func SiliconFlow() Behavior {
	b := plain("siliconflow")
	b.RefuseStream = false
	b.MaxLines, b.MaxFileBytes = 5_000, 1_000_000_000
	b.Endpoints = []string{chat}
	b.Windows, b.MinWindow, b.MaxWindow = nil, day, 14*day
	b.ResultURLs = true
	return b
}

// Moonshot batches chat completions only, for half a day to a week.
func Moonshot() Behavior {
	b := plain("moonshot")
	b.Endpoints = []string{chat}
	b.Windows, b.MinWindow, b.MaxWindow = nil, day/2, 7*day
	return b
}

// Zhipu writes /v4 instead of /v1, and has no completion window.
func Zhipu() Behavior {
	b := plain("zhipu")
	b.BasePath = "/api/paas/v4"
	b.MaxFileBytes = 100_000_000
	b.Endpoints = []string{"/v4/chat/completions", "/v4/embeddings"}
	b.Windows, b.NoWindow = nil, true
	return b
}

// DashScope is Alibaba Cloud's Model Studio in the OpenAI-compatible mode.
func DashScope() Behavior {
	b := plain("dashscope")
	b.BasePath = "/compatible-mode/v1"
	b.MaxFileBytes = 100_000_000
	b.Endpoints = []string{chat, embeddings}
	b.Windows, b.MinWindow, b.MaxWindow = nil, day, 14*day
	return b
}

// Voyage is Voyage AI: lines have only the texts to embed or to rerank, a create has the
// model and all other parameters, and a failed line has a message in place of a body.
func Voyage() Behavior {
	b := plain("voyage")
	b.ISOTimes = true
	b.MaxInputs = 100_000
	b.Endpoints = []string{embeddings, "/v1" + rerank}
	b.LineMembers = map[string][]string{embeddings: {"input"}, "/v1" + rerank: {"query", "documents"}}
	b.Windows = []string{"12h"}
	b.FailedLines = AsStatus
	return b
}

// LiteLLM is the LiteLLM proxy without a database. The form field model selects
// the provider of a file.
func LiteLLM() Behavior {
	b := plain("litellm")
	b.UploadFields = []string{"model"}
	b.FailingFields = map[string]string{"target_model_names": "Managed files hook not found"}
	b.IgnoreUnknown = true
	return b
}

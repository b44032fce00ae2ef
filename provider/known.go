package provider

import "time"

const (
	day = 24 * time.Hour
	mb  = 1_000_000 // where a provider says MB, the smaller meaning is safe
	mib = 1 << 20
)

// Short names for the endpoints of profiles that batch only some of them.
const (
	chat       = "/chat/completions"
	embeddings = "/embeddings"
	responses  = "/responses"
)

// Generic is the profile of every host nobody here knows. It keeps OpenAI's
// limits, never mixes models or endpoints in a file, and uses nothing beyond the
// plain Batch API; any completion window is passed on.
//
// The other profiles are Generic plus what is known better, so a rule nobody has
// found out about a provider stays the careful one.
func Generic() Profile {
	return Profile{
		Name:           "generic",
		AuthHeader:     "Authorization",
		LinePrefix:     "/v1",
		EndpointPrefix: "/v1",
		UploadPath:     "files",
		Purpose:        "batch",

		DefaultWindow: "24h",

		OneModel:    true,
		OneEndpoint: true,

		MaxLines:         50_000,
		MaxBytes:         200 * mb,
		MaxInputs:        50_000,
		MaxMetadata:      16,
		MaxMetadataKey:   64,
		MaxMetadataValue: 512,
	}
}

// OpenAI is the reference. Its batch guide has the limits (50,000 lines and
// embedding inputs, 200 MB, one model a file, 2,000 batches an hour), its API
// reference the window, the metadata and the expiry of files.
func OpenAI() Profile {
	p := Generic()
	p.Name = "openai"
	p.Hosts = []string{"api.openai.com", "*.api.openai.com"} // the latter: data residency
	p.Windows = []string{"24h"}
	p.CreationsPerHour = 2_000
	p.FileExpiryMin, p.FileExpiryMax = time.Hour, 30*day
	p.OutputExpiry = true
	return p
}

// Azure is Azure OpenAI's v1 API, whose base URL ends in /openai/v1. The model
// of a call must be the name of a deployment of type Global Batch. Microsoft's
// guide has the rules: window 24h or the job fails, no embeddings, one deployment
// a file, 60 seconds between polls, expiry of 14 to 30 days. It gives 100,000
// lines in one place and 50,000 in another; the smaller number is used.
func Azure() Profile {
	p := Generic()
	p.Name = "azure"
	p.Hosts = []string{"*.openai.azure.com"}
	p.AuthHeader = "api-key"
	p.EndpointPrefix = ""
	p.KeepQuery = []string{"api-version"}
	p.Endpoints = []string{chat, responses}
	p.Windows = []string{"24h"}
	p.MinPoll = time.Minute
	// A resource holds 500 files that never expire but 10,000 that do.
	p.FileExpiryMin, p.FileExpiryMax = 14*day, 30*day
	p.OutputExpiry = true
	return p
}

// AzureLegacy is Azure OpenAI's dated API: calls go to
// /openai/deployments/{name}/chat/completions?api-version=..., files and batches
// live at /openai, and neither lines nor batch say /v1. The rest is as in [Azure].
func AzureLegacy() Profile {
	p := Azure()
	p.Name = "azure-legacy"
	p.LinePrefix = ""
	p.BasePathCut = "/deployments/"
	return p
}

// Doubleword mixes models and endpoints in a file and shows each result as it
// arrives. Its windows come from its configuration, so any string is passed on.
// The limits are those of its published server: 100 MiB a file, 10 MiB a body,
// 50,000 lines in its sample configuration.
func Doubleword() Profile {
	p := Generic()
	p.Name = "doubleword"
	p.Hosts = []string{"api.doubleword.ai"}
	p.DefaultWindow = "1h"
	p.OneModel, p.OneEndpoint = false, false
	p.MaxBytes, p.MaxLineBytes = 100*mib, 10*mib
	p.MaxInputs = 0
	p.MaxMetadata, p.MaxMetadataKey, p.MaxMetadataValue = 0, 0, 0
	p.PartialResults = true
	p.LateResults = true
	// Its server takes any expiry; OpenAI's bounds are what SDKs expect.
	p.FileExpiryMin, p.FileExpiryMax = time.Hour, 30*day
	return p
}

// Groq batches chat completions only, within 24 hours to 7 days, and takes files
// of up to 100 MB, all by its SDK's documentation.
func Groq() Profile {
	p := Generic()
	p.Name = "groq"
	p.Hosts = []string{"api.groq.com"}
	p.Endpoints = []string{chat}
	p.MinWindow, p.MaxWindow = day, 7*day
	p.MaxBytes = 100 * mb
	return p
}

// Together spells several things its own way: where files go, what they are for,
// and how a new batch is wrapped, all by its SDK. Its guide has the limits: 100 MB,
// 50,000 lines, chat completions, a window of 24h that cannot be changed, and 30
// to 60 seconds between polls.
func Together() Profile {
	p := Generic()
	p.Name = "together"
	p.Hosts = []string{"api.together.xyz", "api.together.ai"}
	p.UploadPath = "files/upload"
	p.Purpose = "batch-api"
	p.UploadNameField = "file_name"
	p.CreateWrapper = "job"
	p.Endpoints = []string{chat}
	p.Windows = []string{"24h"}
	p.MaxBytes = 100 * mb
	p.MinPoll = 30 * time.Second
	return p
}

// Nebius takes far larger files than others, 5,000,000 lines and 10 GB by its
// guide, of one model each, for chat completions and embeddings.
func Nebius() Profile {
	p := Generic()
	p.Name = "nebius"
	p.Hosts = []string{"api.tokenfactory.nebius.com"}
	p.Endpoints = []string{chat, embeddings}
	p.Windows = []string{"24h"}
	p.MaxLines = 5_000_000
	p.MaxBytes = 10_000 * mb
	return p
}

// Parasail mixes models in a file of up to 500 MB, for chat completions and
// embeddings, by its own client.
func Parasail() Profile {
	p := Generic()
	p.Name = "parasail"
	p.Hosts = []string{"api.parasail.io"}
	p.Endpoints = []string{chat, embeddings}
	p.OneModel = false
	p.MaxBytes = 500 * mb
	return p
}

// DeepInfra follows OpenAI, one model and one endpoint a file, except that it
// refuses responses. Its documentation has all of it but the limits.
func DeepInfra() Profile {
	p := Generic()
	p.Name = "deepinfra"
	p.Hosts = []string{"api.deepinfra.com"}
	p.Endpoints = []string{chat, embeddings}
	p.Windows = []string{"24h"}
	return p
}

// SiliconFlow hands out results by URL, and takes 5,000 lines or 1 GB of one
// model, chat completions only, within 24 to 336 hours, by its documentation.
func SiliconFlow() Profile {
	p := Generic()
	p.Name = "siliconflow"
	p.Hosts = []string{"api.siliconflow.cn", "api.siliconflow.com"}
	p.Endpoints = []string{chat}
	p.MinWindow, p.MaxWindow = day, 14*day
	p.MaxLines = 5_000
	p.MaxBytes = 1_000 * mb
	p.ResultURLs = true
	return p
}

// Moonshot batches chat completions only, within 12 hours to 7 days, by its API
// specification.
func Moonshot() Profile {
	p := Generic()
	p.Name = "moonshot"
	p.Hosts = []string{"api.moonshot.cn", "api.moonshot.ai"}
	p.Endpoints = []string{chat}
	p.MinWindow, p.MaxWindow = 12*time.Hour, 7*day
	return p
}

// Zhipu counts its API as version 4 in every path and knows no completion
// window. Its guide has the limits: 50,000 lines, 100 MB, chat completions and
// embeddings.
func Zhipu() Profile {
	p := Generic()
	p.Name = "zhipu"
	p.Hosts = []string{"open.bigmodel.cn"}
	p.LinePrefix, p.EndpointPrefix = "/v4", "/v4"
	p.Endpoints = []string{chat, embeddings}
	p.DefaultWindow, p.OmitWindow = "", true
	p.MaxBytes = 100 * mb
	return p
}

// DashScope is Alibaba Cloud's Model Studio in its OpenAI-compatible mode. Its
// older guide allows 100 MB and 24h, its newer one more; the smaller file and the
// wider range of windows are used, since only windows outside it are sure to fail.
func DashScope() Profile {
	p := Generic()
	p.Name = "dashscope"
	p.Hosts = []string{"dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "*.maas.aliyuncs.com"}
	p.Endpoints = []string{chat, embeddings}
	p.MinWindow, p.MaxWindow = day, 14*day
	p.MaxBytes = 100 * mb
	return p
}

// LLMD is the llm-d batch gateway, which people host themselves: chosen by name.
// By its source it allows any model on any line, takes any duration as a window,
// and pages its list of batches by offset.
func LLMD() Profile {
	p := Generic()
	p.Name = "llm-d"
	p.OneModel = false
	p.ListByOffset = true
	return p
}

// LiteLLM is the LiteLLM proxy, which people host themselves: chosen by name. It
// passes files on to the provider of a model, and learns the model from a form
// field of the upload.
func LiteLLM() Profile {
	p := Generic()
	p.Name = "litellm"
	p.UploadModelField = "target_model_names"
	return p
}

package provider

import (
	"net/http"
	"time"
)

const (
	day = 24 * time.Hour
	mb  = 1_000_000 // of the two meanings of MB, the smaller is safe
	mib = 1 << 20
)

// Short names for endpoints.
const (
	chat        = "/chat/completions"
	completions = "/completions"
	embeddings  = "/embeddings"
	images      = "/images/generations"
	edits       = "/images/edits"
	moderations = "/moderations"
	rerank      = "/rerank"
	responses   = "/responses"

	transcriptions = "/audio/transcriptions"
	translations   = "/audio/translations"
)

// Generic is the profile of every unknown host. Generic keeps OpenAI's limits,
// never mixes models or endpoints in a file, and uses nothing beyond the plain
// Batch API. Every completion window is sent to the provider.
//
// The other profiles start from Generic and change the fields that are known, so
// an unknown rule of a provider stays the careful rule.
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

// OpenAI is the reference. OpenAI's batch guide has the limits (50,000 lines and
// embedding inputs, 200 MB, one model a file, 2,000 batches an hour), the API
// reference the window, the endpoints, the metadata, the expiry of files, and the JSON
// form of /images/edits. One endpoint of the reference is left out: the API of /videos
// was shut down on 24 September 2026. The guide to flex processing has
// the endpoints, the timeout and the refusals (429 "Resource Unavailable", not billed).
func OpenAI() Profile {
	p := Generic()
	p.Name = "openai"
	p.BasePath = "/v1"
	p.BatchDiscount = 0.5
	p.Hosts = []string{"api.openai.com", "*.api.openai.com"} // the second: data residency
	p.Endpoints = []string{chat, embeddings, responses, completions, moderations, images, edits}
	p.Windows = []string{"24h"}
	p.CreationsPerHour = 2_000
	p.FlexEndpoints, p.FlexTier = []string{chat, responses}, "flex"
	p.FlexTimeout, p.FlexBackground = 15*time.Minute, true
	p.FlexRefusals = []int{http.StatusTooManyRequests}
	p.FileExpiryMin, p.FileExpiryMax = time.Hour, 30*day
	p.OutputExpiry = true
	return p
}

// Azure is Azure OpenAI's v1 API, whose base URL ends in /openai/v1. The model
// of a call must be the name of a deployment of type Global Batch. Microsoft's
// guide has the rules: window 24h or the job fails, no embeddings, one deployment
// a file, 60 seconds between polls, expiry of 14 to 30 days. The guide
// gives 100,000 lines in one place and 50,000 in another; the smaller number is
// used. A new file is "pending" for a while, and a batch of a pending file is
// refused.
func Azure() Profile {
	p := Generic()
	p.Name = "azure"
	p.BatchDiscount = 0.5
	p.Hosts = []string{"*.openai.azure.com", "*.cognitiveservices.azure.com", "*.services.ai.azure.com"} // of one resource
	p.AuthHeader = "api-key"
	p.EndpointPrefix = ""
	p.KeepQuery = []string{"api-version"}
	p.Endpoints = []string{chat, responses}
	p.Windows = []string{"24h"}
	p.MinPoll = time.Minute
	// A resource holds 500 files without an expiry, but 10,000 files with one.
	p.FileExpiryMin, p.FileExpiryMax = 14*day, 30*day
	p.OutputExpiry = true
	return p
}

// AzureLegacy is Azure OpenAI's dated API: calls go to
// /openai/deployments/{name}/chat/completions?api-version=..., files and batches
// are at /openai, and neither lines nor batch say /v1. The deployment in the path
// decides which model answers. The rest is as in [Azure].
func AzureLegacy() Profile {
	p := Azure()
	p.Name = "azure-legacy"
	p.LinePrefix = ""
	p.BasePathCut = "/deployments/"
	return p
}

// AzureModels is the model inference API of Azure AI Foundry, whose base URL ends in
// /models. The API has no batches, according to Microsoft's documentation, which sends
// callers who want batches to Azure OpenAI's API of the same resource: see [Azure].
func AzureModels() Profile {
	p := Generic()
	p.Name = "azure-models"
	p.Hosts = []string{"*.services.ai.azure.com/models"}
	p.AuthHeader = "api-key"
	p.Endpoints = []string{}
	return p
}

// Doubleword mixes models and endpoints in a file and shows each result as soon as
// the line has ended. The windows come from the configuration of the server, so
// every string is sent. The limits are those of the published server: 100 MiB a file, 10 MiB a body,
// 50,000 lines in the sample configuration. The server also batches /messages, which is
// Anthropic's API and no call of an OpenAI SDK.
func Doubleword() Profile {
	p := Generic()
	p.Name = "doubleword"
	p.BasePath = "/v1"
	p.Hosts = []string{"api.doubleword.ai"}
	p.Endpoints = []string{chat, embeddings, responses, completions}
	p.DefaultWindow = "1h"
	p.OneModel, p.OneEndpoint = false, false
	p.MaxBytes, p.MaxLineBytes = 100*mib, 10*mib
	p.MaxInputs = 0
	p.MaxMetadata, p.MaxMetadataKey, p.MaxMetadataValue = 0, 0, 0
	p.PartialResults = true
	p.LateResults = true
	// The server executes embeddings at the flex tier in real time, at full price.
	p.FlexEndpoints, p.FlexTier = []string{chat, responses}, "flex"
	p.FlexTimeout, p.FlexBackground = time.Hour, true
	p.FlexRefusals = []int{http.StatusTooManyRequests} // as OpenAI: no source names the status
	// The server accepts every expiry; SDKs expect OpenAI's bounds.
	p.FileExpiryMin, p.FileExpiryMax = time.Hour, 30*day
	return p
}

// Groq batches chat completions, transcriptions and translations, at half price, according
// to the guide, within 24 hours to 7 days, and takes files of up to 100 MB, according to
// the documentation of Groq's SDK. The flex tier costs the full price, and so is not used;
// its refusals have the status 498, according to the guide.
func Groq() Profile {
	p := Generic()
	p.Name = "groq"
	p.BasePath = "/openai/v1"
	p.BatchDiscount = 0.5
	p.Hosts = []string{"api.groq.com"}
	p.Endpoints = []string{chat, transcriptions, translations}
	p.MinWindow, p.MaxWindow = day, 7*day
	p.MaxBytes = 100 * mb
	return p
}

// Together has its own upload path, purpose and wrapper of a new batch, according
// to Together's SDK. The guide has the limits: 100 MB, 50,000 lines, a window of 24h that cannot be changed, and 30
// to 60 seconds between polls. The manual of the command has the endpoints: chat
// completions, transcriptions and translations.
func Together() Profile {
	p := Generic()
	p.Name = "together"
	p.BasePath = "/v1"
	p.Hosts = []string{"api.together.xyz", "api.together.ai"}
	p.UploadPath = "files/upload"
	p.Purpose = "batch-api"
	p.UploadNameField = "file_name"
	p.CreateWrapper = "job"
	p.Endpoints = []string{chat, transcriptions, translations}
	p.Windows = []string{"24h"}
	p.MaxBytes = 100 * mb
	p.MinPoll = 30 * time.Second
	return p
}

// Nebius takes files of up to 5,000,000 lines and 10 GB, of one model each, for
// chat completions and embeddings, according to Nebius's guide.
func Nebius() Profile {
	p := Generic()
	p.Name = "nebius"
	p.BasePath = "/v1"
	p.BatchDiscount = 0.5
	p.Hosts = []string{"api.tokenfactory.nebius.com"}
	p.Endpoints = []string{chat, embeddings}
	p.Windows = []string{"24h"}
	p.MaxLines = 5_000_000
	p.MaxBytes = 10_000 * mb
	return p
}

// Novita takes files of one model, for chat completions and completions, within a
// window of 48h that cannot be changed, and deletes files after 15 days, according to
// Novita's API reference. The guide says 24h; the profile sends no window, since the
// parameter is optional. A running batch has the status "PROGRESS".
func Novita() Profile {
	p := Generic()
	p.Name = "novita"
	p.BasePath = "/openai/v1"
	p.Hosts = []string{"api.novita.ai"}
	p.Endpoints = []string{chat, completions}
	p.DefaultWindow, p.OmitWindow = "", true
	return p
}

// Cerebras batches chat completions within 24h, with 50,000 lines or 200 MB a file,
// in a private preview, according to Cerebras's API reference. The guide promised half
// price, and does not name a price any more.
func Cerebras() Profile {
	p := Generic()
	p.Name = "cerebras"
	p.BasePath = "/v1"
	p.Hosts = []string{"api.cerebras.ai"}
	p.Endpoints = []string{chat}
	p.Windows = []string{"24h"}
	return p
}

// Perplexity batches the Agent API, which OpenAI's SDKs call as responses. Files may
// have 50,000 lines and 200 MB, and are kept for 30 days; an expiry is refused with
// 400. The API reference has these rules.
func Perplexity() Profile {
	p := Generic()
	p.Name = "perplexity"
	p.BasePath = "/v1"
	p.Hosts = []string{"api.perplexity.ai"}
	p.Endpoints = []string{responses}
	return p
}

// Parasail mixes models in a file of up to 500 MB, for chat completions and
// embeddings, according to Parasail's own client.
func Parasail() Profile {
	p := Generic()
	p.Name = "parasail"
	p.BasePath = "/v1"
	p.Hosts = []string{"api.parasail.io"}
	p.Endpoints = []string{chat, embeddings}
	p.OneModel = false
	p.MaxBytes = 500 * mb
	return p
}

// DeepInfra follows OpenAI, with one model and one endpoint a file, but refuses
// responses. The documentation has these rules, but no limits. The API reference names
// chat completions and completions, and the announcement embeddings.
func DeepInfra() Profile {
	p := Generic()
	p.Name = "deepinfra"
	p.BasePath = "/v1/openai"
	p.BatchDiscount = 0.2
	p.Hosts = []string{"api.deepinfra.com"}
	p.Endpoints = []string{chat, embeddings, completions}
	p.Windows = []string{"24h"}
	return p
}

// SiliconFlow hands out results by URL, and takes 5,000 lines or 1 GB of one
// model, chat completions only, within 24 to 336 hours, according to the
// documentation.
func SiliconFlow() Profile {
	p := Generic()
	p.Name = "siliconflow"
	p.BasePath = "/v1"
	p.BatchDiscount = 0.5
	p.Hosts = []string{"api.siliconflow.cn", "api.siliconflow.com"}
	p.Endpoints = []string{chat}
	p.MinWindow, p.MaxWindow = day, 14*day
	p.MaxLines = 5_000
	p.MaxBytes = 1_000 * mb
	p.ResultURLs = true
	return p
}

// Moonshot batches chat completions only, within 12 hours to 7 days, according to
// the API specification, at 60 % of the price, according to the list of prices.
func Moonshot() Profile {
	p := Generic()
	p.Name = "moonshot"
	p.BasePath = "/v1"
	p.BatchDiscount = 0.4
	p.Hosts = []string{"api.moonshot.cn", "api.moonshot.ai"}
	p.Endpoints = []string{chat}
	p.MinWindow, p.MaxWindow = 12*time.Hour, 7*day
	return p
}

// Zhipu (abroad: Z.ai) writes /v4 in every path and has no completion window. The guide has the limits: 50,000 lines, 100 MB, chat completions and
// embeddings.
func Zhipu() Profile {
	p := Generic()
	p.Name = "zhipu"
	p.BasePath = "/api/paas/v4"
	p.BatchDiscount = 0.5
	p.Hosts = []string{"open.bigmodel.cn", "api.z.ai"}
	p.LinePrefix, p.EndpointPrefix = "/v4", "/v4"
	p.Endpoints = []string{chat, embeddings}
	p.DefaultWindow, p.OmitWindow = "", true
	p.MaxBytes = 100 * mb
	return p
}

// DashScope is Alibaba Cloud's Model Studio in the OpenAI-compatible mode. The
// older guide allows 100 MB and 24h, the newer guide more. The profile uses the
// smaller file and the wider range of windows, because only a window outside the
// wider range is certain to fail.
func DashScope() Profile {
	p := Generic()
	p.Name = "dashscope"
	p.BasePath = "/compatible-mode/v1"
	p.BatchDiscount = 0.5
	p.Hosts = []string{"dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "*.maas.aliyuncs.com"}
	p.Endpoints = []string{chat, embeddings}
	p.MinWindow, p.MaxWindow = day, 14*day
	p.MaxBytes = 100 * mb
	return p
}

// Voyage batches embeddings and reranking within 12h, at a discount of 33 %. The model and
// all other parameters belong to the batch, and lines have only the texts. A copy of
// Voyage's guide and API reference of 2026 has these rules, 100,000 inputs a batch, the
// metadata, and the shape of lines, results and errors. Not verified, and so careful: 200 MB
// (the announcement says 1 GB), 50,000 lines, and the documents of a reranking count as
// inputs. Embeddings of contextualized chunks, which Voyage batches, too, are left out.
func Voyage() Profile {
	p := Generic()
	p.Name = "voyage"
	p.BasePath = "/v1"
	p.BatchDiscount = 0.33
	p.Hosts = []string{"api.voyageai.com"}
	p.Endpoints = []string{embeddings, rerank}
	p.LineMembers = map[string][]string{embeddings: {"input"}, rerank: {"query", "documents"}}
	p.Windows, p.DefaultWindow = []string{"12h"}, "12h"
	p.MaxInputs = 100_000
	return p
}

// DashScopeBatchChat is Alibaba Cloud's Batch Chat: ordinary chat completions at half
// price, whose connection is held for up to an hour, according to the documentation.
func DashScopeBatchChat() Profile {
	p := Generic()
	p.Name = "dashscope-batch-chat"
	p.BasePath = "/compatible-mode/v1"
	p.Hosts = []string{"batch.dashscope.aliyuncs.com"}
	p.Endpoints = []string{}
	p.SinglePrice, p.FlexTimeout = "half price", time.Hour
	return p
}

// ArkBatchChat is the Batch Chat of Volcengine Ark, abroad BytePlus ModelArk: ordinary
// chat completions, whose model is the id of a batch inference endpoint, at half price
// or less. The documentation advises a timeout of hours.
func ArkBatchChat() Profile {
	p := Generic()
	p.Name = "ark-batch-chat"
	p.BasePath = "/api/v3/batch"
	p.Hosts = []string{"*.volces.com/api/v3/batch", "*.bytepluses.com/api/v3/batch"}
	p.Endpoints = []string{}
	p.SinglePrice, p.FlexTimeout = "half price", 24*time.Hour
	return p
}

// LLMD is the llm-d batch gateway, which people host themselves: select the
// profile by name. According to the source, the gateway allows any model and any
// endpoint on any line, takes any Go duration as a window, honors the expiry of
// input and output files, pages the list of batches by offset, and reads the
// tenant from the header X-MaaS-Username, unless configured otherwise. The gateway
// accepts moderations, too. They are left out, because the gateway finds the server of a
// line by its model, and a moderation need not name a model.
func LLMD() Profile {
	p := Generic()
	p.Name = "llm-d"
	p.AccountHeaders = []string{"X-MaaS-Username"}
	p.Endpoints = []string{chat, embeddings, responses, completions}
	p.OneModel, p.OneEndpoint = false, false
	p.FileExpiryMin, p.FileExpiryMax = time.Hour, 30*day
	p.OutputExpiry = true
	p.ListByOffset = true
	return p
}

// LiteLLM is the LiteLLM proxy, which people host themselves: select the profile
// by name. The proxy forwards a file to the provider of a model, and reads the
// model from a form field of the upload: "model", which works without a
// database. The older field, "target_model_names", fails without a database.
func LiteLLM() Profile {
	p := Generic()
	p.Name = "litellm"
	p.UploadModelField = "model"
	return p
}

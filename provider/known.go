package provider

import "time"

const (
	day = 24 * time.Hour
	mb  = 1_000_000 // where a provider says MB, the smaller meaning is safe
	mib = 1 << 20
)

// Generic is the profile of every host nobody here knows. It keeps OpenAI's
// limits, never mixes models or endpoints in a file, and uses nothing beyond the
// plain Batch API; any completion window is passed on.
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
	p.Hosts = []string{"api.openai.com", "*.api.openai.com"}
	p.Windows = []string{"24h"}
	p.CreationsPerHour = 2_000
	p.FileExpiryMin, p.FileExpiryMax = time.Hour, 30*day
	p.OutputExpiry = true
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
	p.InputDeleteCancels = true
	// Its server takes any expiry; OpenAI's bounds are what SDKs expect.
	p.FileExpiryMin, p.FileExpiryMax = time.Hour, 30*day
	p.ListSearch = true
	return p
}

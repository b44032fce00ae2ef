// Package batchtest provides a Batch API server that runs inside a test.
//
// It speaks OpenAI's batch protocol (files, batches, and the realtime calls beside
// them) strictly, as [net/http/httptest] speaks HTTP.
package batchtest

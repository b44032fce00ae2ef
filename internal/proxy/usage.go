package proxy

// Usage counts the model calls that a Proxy served since New: POST requests to
// chat/completions, embeddings and responses, and to the other routes that
// Options.Profile batches, held or passed through. The token
// counts come from the "usage" objects in responses. A streamed response has a
// usage object only if the client requested one.
type Usage struct {
	PromptTokens, CompletionTokens, TotalTokens int64

	Waiting  int   // calls held now
	Answered int64 // calls that ended with a status below 400
	Realtime int64 // of Answered: calls that passed through in real time, whose cost is not estimated
	Failed   int64 // calls that ended with an error status, were aborted late, or lost their client

	Asked int64 // questions for answers of calls in the background

	BytesIn  int64 // request body bytes of held calls; calls that pass through are not counted
	BytesOut int64 // response body bytes of all model calls
}

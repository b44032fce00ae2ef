// Package batchtest provides a Batch API server for a test, a demo or a sandbox,
// as [net/http/httptest] provides an HTTP server.
//
// The server implements OpenAI's protocol: upload a file of lines, create a batch
// of the file, retrieve the batch until the batch has ended, download the results.
// Six lines are enough to run a client against the server:
//
//	server := batchtest.New(batchtest.Options{})
//	defer server.Close()
//	client := openai.NewClient(
//		option.WithBaseURL(server.URL),
//		option.WithHTTPClient(server.Client()),
//		option.WithAPIKey("any"))
//
// Use [New] if the client can be given a transport: no socket is needed. Use
// [NewServer] for another process, or for a client whose transport is fixed.
//
// # Answers
//
// By default [Echo] answers: the model repeats the question, in the shape of the
// endpoint, and equal questions get equal answers. [Options].Answer decides the
// [Outcome] of each line instead: a success, an HTTP error, an error of the batch,
// a result that comes late or never, a line that is lost, written twice or not
// strict JSON, or garbage.
//
// # Providers
//
// [Options].Behavior selects whose API the server imitates. [OpenAI] is the
// default, and each provider of package provider has a constructor: [Doubleword],
// [Azure], [AzureLegacy], [Groq], [Together], [Nebius], [Parasail], [DeepInfra],
// [SiliconFlow], [Moonshot], [Zhipu], [DashScope], [Voyage], [LLMD] and [LiteLLM]. A
// [Behavior] is plain data: change a limit or a rule and pass the Behavior on.
//
// # Service tiers
//
// A chat completion or a response with "service_tier": "flex" waits for
// [Options].FlexDelay, is executed at the tier flex, and names the tier in the answer
// and in each chunk of a stream. [FlexUnavailable] and [Outcome].FlexRefused refuse flex
// calls for lack of capacity. [Behavior].Tiers and RefuseTiers say which tiers a
// provider has, and whether the provider refuses other tiers or executes the call at the
// full price without an error. [Execution].Tier and [Server.PaidTiers] tell what was
// paid for at which price.
//
// # Background responses
//
// A response with "background": true is answered at once with the status "queued" and an
// id. [Options].ResponseQueued and ResponseRunning say when the response is in progress
// and when the response ends; [Outcome].ResponseStatus chooses another end than
// "completed". Clients retrieve, cancel and delete the response by its id.
// [Server.Responses] returns the state of all background responses. Responses that are
// not made in the background can be retrieved and deleted, too, unless "store" is false.
//
// # Webhooks
//
// [Server.AddWebhook] makes the Server post a signed event at the end of each batch and
// background response, with retries. A [Webhook] has an address or, for tests in
// process, an [http.Handler]. [Server.Deliveries] returns what was posted.
//
// # Keys and accounts
//
// Without further options every key is let in and is an account of its own.
// [Options].Keys gives a key an end, and several keys one account, which sees the
// same files and batches with each key. [Server.AddKey] and [Server.RevokeKey]
// change the keys of a running Server.
//
// # Time
//
// Without webhooks the Server has no goroutines or timers. Each request computes from
// the clock how far each batch has got: [Options].Turnaround spreads the lines over a
// time, and a completion window ends on time. In a testing/synctest bubble a day passes at
// once and every moment is exact. Create the Server in the bubble, with [New]: a
// bubble cannot wait for a socket. [Server.Finish], [Server.Expire] and
// [Server.FailBatch] end a batch at once. [Options].ClockOffset makes the
// provider's clock differ from the clock of the test.
//
// # Faults
//
// [Server.Control] makes one request of a kind fail, and [Server.Keep] every
// request until further notice. A [Fault] is one of the following, or a function
// of your own:
//
//   - [Status], [HTML], [RateLimit], [Unavailable], [Redirect] answer in place of
//     the Server.
//   - [LimitBody] refuses large requests, as a reverse proxy does.
//   - [Reset] breaks the connection before the work, [LoseAnswer] after the work.
//   - [Delay] and [Hang] take time.
//   - [Tear] breaks the connection inside the answer, [Truncate] and
//     [TruncateInLine] end the answer early without an error, and [Prepend] writes
//     bytes before the answer.
//
// For example:
//
//	server.Control(batchtest.OpCreate, batchtest.LoseAnswer())
//	server.Control(batchtest.OpContent, batchtest.Tear(1000), batchtest.HTML(502))
//
// # Log
//
// [Server.Uploads], [Server.Batches], [Server.Responses], [Server.Requests],
// [Server.Executed] and [Server.Deliveries] return what the Server received and did.
// [Server.Paid] and [Server.PaidPrompts] count how often the same work was paid for. The results are copies of the current state.
// Only headers, forms, and the bytes of bodies and files are shared with the
// Server; do not change them.
//
// # Refusals
//
// The Server is as strict as a provider. The Server refuses a request without a
// key, files and batches of another account (404), a form without a file or with
// the wrong purpose, JSON whose type is not application/json, unknown parameters,
// endpoints and windows, metadata that is not text or too large, and in a file a
// byte order mark, lines that are not objects in UTF-8, missing fields, a
// custom_id that is too long, not printable ASCII or used twice, "stream": true,
// and mixed models or endpoints. Of the body of a line or a call the Server checks
// nothing else but the model, "service_tier" and "background": all messages are
// accepted.
//
// # Memory
//
// The Server keeps uploads until the Server is garbage, even deleted uploads, since
// the log returns them. Answers are kept as bodies, and written out as lines
// during a download.
package batchtest

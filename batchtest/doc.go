// Package batchtest provides a Batch API server that lives inside a test, a
// demo or a sandbox, as [net/http/httptest] provides an HTTP server.
//
// It speaks OpenAI's protocol: upload a file of lines, create a batch of it,
// retrieve the batch until it has ended, download the results. Six lines are
// enough to try a client against it:
//
//	server := batchtest.New(batchtest.Options{})
//	defer server.Close()
//	client := openai.NewClient(
//		option.WithBaseURL(server.URL),
//		option.WithHTTPClient(server.Client()),
//		option.WithAPIKey("any"))
//
// Use [New] wherever the client can be given a transport: it needs no socket.
// Use [NewServer] for another process, or a client whose transport is fixed.
//
// # What the model says
//
// By default [Echo] answers: it says back what it was asked, in the shape of the
// endpoint, the same every time. [Options].Answer decides for each line instead,
// and its [Outcome] can be a success, an HTTP error, an error of the batch, a
// result that comes late or never, a line that is lost, or garbage.
//
// # Providers differ
//
// [Options].Manners says whose API this is. [OpenAI] is the default, and each
// provider that package provider knows has its own: [Doubleword], [Azure],
// [AzureLegacy], [Groq], [Together], [Nebius], [Parasail], [DeepInfra],
// [SiliconFlow], [Moonshot], [Zhipu], [DashScope], [LLMD] and [LiteLLM]. A
// [Manners] is plain data: change a limit or a habit and pass it on.
//
// # Time
//
// The Server has no goroutines or timers. Whenever it is asked, it works out from
// the clock where each batch has got to: [Options].Turnaround spreads the lines
// over a time, a completion window runs out when it says. Inside a
// testing/synctest bubble a day passes at once and every moment is exact. Create
// the Server in the bubble, with [New]: a bubble cannot wait for a socket.
// [Server.Finish], [Server.Expire] and [Server.FailBatch] end a batch at will.
//
// # Faults
//
// [Server.Control] lets one request of a kind go wrong: a [Status], a lost answer
// ([LoseAnswer]), a broken connection ([Reset]), a torn download ([Tear]), or any
// function of your own. [Server.Keep] makes an outage of it.
//
//	server.Control(batchtest.OpCreate, batchtest.LoseAnswer())
//	server.Control(batchtest.OpContent, batchtest.Tear(1000), batchtest.HTML(502))
//
// # What happened
//
// [Server.Uploads], [Server.Batches], [Server.Requests] and [Server.Executed]
// tell what came and what became of it, and [Server.Paid] whether the same work
// was done twice. What they return is a copy of that moment; only headers, forms
// and the bytes of bodies and files are shared, and must not be changed.
//
// # What it refuses
//
// The Server is strict where a provider is: a request without a key, another
// key's files and batches (404), a form without a file or with the wrong purpose,
// JSON that is not called application/json, unknown parameters, endpoints and
// windows, metadata that is not text or too much of it, and in the file a byte
// order mark, lines that are not objects in UTF-8, missing fields, a custom_id
// that is too long, not printable ASCII or used twice, "stream": true, and mixed
// models or endpoints. It does not judge the body of a line beyond that: any
// messages will do.
//
// # Memory
//
// Uploads are kept, each byte once, until the Server is gone, deleted or not:
// the log shows them. Answers are kept as bodies, and written out as lines while
// they are downloaded.
package batchtest

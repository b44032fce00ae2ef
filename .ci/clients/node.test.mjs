// Tests of the official npm package with `autobatcher serve --sandbox`. run.sh starts
// the proxy and sets OPENAI_BASE_URL, OPENAI_API_KEY and AUTOBATCHER_EVENTS, the file
// with the lifecycle events of the proxy. run.sh runs the tests a second time with LATE=1
// at a proxy whose answers all come after status 200.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI();
const model = "gpt-4o-mini";
const late = process.env.LATE === "1";
const userMessage = (content) => [{ role: "user", content }];
const tools = [
  {
    type: "function",
    function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
  },
];

function events(name) {
  return readFileSync(process.env.AUTOBATCHER_EVENTS, "utf8")
    .split("\n")
    .slice(0, -1) // the last line may be incomplete
    .map((line) => JSON.parse(line))
    .filter((e) => e.event === name);
}

async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

const text = (chunks) => chunks.map((c) => c.choices[0]?.delta.content ?? "").join("");

test("chat", async () => {
  const { data, response } = await client.chat.completions.create({ model, messages: userMessage("Hello there") }).withResponse();
  assert.equal(data.choices[0].message.content, "You said: Hello there");
  assert.ok(data.usage.total_tokens > 0);
  assert.ok(response.headers.get("autobatcher-custom-id"));
  if (!late) assert.match(response.headers.get("autobatcher-batch-id"), /^batch_/);
});

test("embeddings", async () => {
  const answer = await client.embeddings.create({ model, input: ["one", "two"], dimensions: 16 });
  assert.deepEqual(answer.data.map((e) => e.index), [0, 1]);
  assert.equal(answer.data[0].embedding.length, 16); // the client requests base64 and decodes it
  assert.equal(typeof answer.data[0].embedding[0], "number");
});

test("responses", async () => {
  const answer = await client.responses.create({ model, input: "Hello there" });
  assert.equal(answer.status, "completed");
  assert.equal(answer.output_text, "You said: Hello there");
});

test("chat stream", async () => {
  const chunks = await collect(
    await client.chat.completions.create({
      model, messages: userMessage("Hello there"), stream: true, stream_options: { include_usage: true },
    }),
  );
  assert.equal(text(chunks), "You said: Hello there");
  assert.equal(chunks.filter((c) => c.usage).length, 1);
});

test("chat stream helper", async () => {
  const answer = await client.chat.completions.stream({ model, messages: userMessage("Hello there") }).finalChatCompletion();
  assert.equal(answer.choices[0].message.content, "You said: Hello there");
});

test("responses stream", async () => {
  const stream = await collect(await client.responses.create({ model, input: "Hello there", stream: true }));
  assert.equal(stream[0].type, "response.created");
  assert.equal(stream.at(-1).type, "response.completed");
  assert.deepEqual(stream.map((e) => e.sequence_number), stream.map((_, i) => i));
});

test("responses stream helper", async () => {
  const answer = await client.responses.stream({ model, input: "Hello there" }).finalResponse();
  assert.equal(answer.output_text, "You said: Hello there");
});

const toolPrompt = 'sandbox: call get_weather {"city":"Oslo"}';

test("tool call", async () => {
  const answer = await client.chat.completions.create({ model, messages: userMessage(toolPrompt), tools });
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  assert.deepEqual(JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments), { city: "Oslo" });
});

test("tool call stream", async () => {
  const answer = await client.chat.completions.stream({ model, messages: userMessage(toolPrompt), tools }).finalChatCompletion();
  const [toolCall] = answer.choices[0].message.tool_calls;
  assert.equal(toolCall.function.name, "get_weather");
  assert.deepEqual(JSON.parse(toolCall.function.arguments), { city: "Oslo" });
});

test("tool call responses stream", async () => {
  const answer = await client.responses.stream({ model, input: toolPrompt }).finalResponse();
  assert.equal(answer.output[0].type, "function_call");
  assert.deepEqual(JSON.parse(answer.output[0].arguments), { city: "Oslo" });
});

// isLate reports whether an error is that of a late failure. The error has no status,
// and the client does not retry a broken body. docs/operations.md says the same.
const isLate = (error, stream) =>
  stream
    ? error.constructor === OpenAI.APIError && error.status === undefined && error.message !== ""
    : error instanceof TypeError && error.message === "terminated";

const failures = [
  [400, OpenAI.BadRequestError],
  [401, OpenAI.AuthenticationError],
  [404, OpenAI.NotFoundError],
  [422, OpenAI.UnprocessableEntityError],
  [429, OpenAI.RateLimitError],
  [500, OpenAI.InternalServerError],
];
for (const [status, type] of failures) {
  for (const stream of [false, true]) {
    test(`a line with status ${status} is a ${type.name}, stream: ${stream}`, async () => {
      const passing = status === 429 || status === 500; // the proxy resubmits such a line once, and the client may retry
      const before = events("batch_submitted").length;
      await assert.rejects(
        async () => {
          const answer = await client.chat.completions.create(
            { model, messages: userMessage(`sandbox: status ${status} ${stream} in node`), stream },
            passing ? { maxRetries: 0 } : {},
          );
          if (stream) await collect(answer);
        },
        (error) => (late ? isLate(error, stream) : error instanceof type && error.status === status),
      );
      assert.equal(events("batch_submitted").length, before + (passing ? 2 : 1), "a retry was paid for");
    });
  }
}

test("a line without a response", async () => {
  await assert.rejects(
    client.embeddings.create({ model, input: "sandbox: error request_timeout" }),
    (error) => (late ? isLate(error, false) : error.status === 424),
  );
});

test("invalid calls", async () => {
  await assert.rejects(client.chat.completions.create({ model: "", messages: userMessage("Hello") }), OpenAI.BadRequestError);
  const wrongKey = new OpenAI({ apiKey: "sk-wrong" });
  await assert.rejects(wrongKey.chat.completions.create({ model, messages: userMessage("Hello") }), OpenAI.AuthenticationError);
  await assert.rejects(client.files.retrieve("file-nowhere"), OpenAI.NotFoundError);
});

test("pass through", async () => {
  assert.deepEqual(await collect(await client.models.list()), []);
});

test("heartbeats after the grace", async () => {
  const answer = await client.chat.completions.create({ model, messages: userMessage("sandbox: delay 3s in node") });
  assert.match(answer.choices[0].message.content, /^You said/);
  const chunks = await collect(
    await client.chat.completions.create({ model, messages: userMessage("sandbox: delay 3.1s in node"), stream: true }),
  );
  assert.match(text(chunks), /^You said/);
});

for (const stream of [false, true]) {
  test(`a failure after the first heartbeat, stream: ${stream}`, async () => {
    // Late, the status is 200 already, but the client must report an error.
    await assert.rejects(
      async () => {
        const answer = await client.chat.completions.create(
          { model, messages: userMessage(`sandbox: delay 3s status 400 ${stream} in node`), stream },
          { maxRetries: 0 },
        );
        if (stream) await collect(answer);
      },
      (error) => (late ? isLate(error, stream) : error.status === 400),
    );
  });
}

test("fifty concurrent calls share batches", async () => {
  const before = events("batch_submitted").length;
  const prompts = Array.from({ length: 50 }, (_, i) => `call ${i}`);
  const answers = await Promise.all(prompts.map((p) => client.chat.completions.create({ model, messages: userMessage(p) })));
  assert.deepEqual(
    answers.map((a) => a.choices[0].message.content),
    prompts.map((p) => `You said: ${p}`),
  );
  const batches = events("batch_submitted").slice(before);
  assert.equal(batches.reduce((n, b) => n + b.request_count, 0), 50);
  assert.ok(batches.length <= 3);
});

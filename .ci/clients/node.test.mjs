// The official npm package against `autobatcher serve --sandbox`. run.sh starts
// the proxy and sets OPENAI_BASE_URL, OPENAI_API_KEY and AUTOBATCHER_EVENTS, the
// file of its lifecycle events.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI();
const model = "gpt-4o-mini";
const said = (content) => [{ role: "user", content }];
const tools = [
  {
    type: "function",
    function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
  },
];

function events(name) {
  return readFileSync(process.env.AUTOBATCHER_EVENTS, "utf8")
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line))
    .filter((e) => e.event === name);
}

async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

const text = (chunks) => chunks.map((c) => c.choices[0]?.delta.content ?? "").join("");

test("chat", async () => {
  const { data, response } = await client.chat.completions.create({ model, messages: said("Hello there") }).withResponse();
  assert.equal(data.choices[0].message.content, "You said: Hello there");
  assert.ok(data.usage.total_tokens > 0);
  assert.match(response.headers.get("autobatcher-batch-id"), /^batch_/);
});

test("embeddings", async () => {
  const answer = await client.embeddings.create({ model, input: ["one", "two"], dimensions: 16 });
  assert.deepEqual(answer.data.map((e) => e.index), [0, 1]);
  assert.equal(answer.data[0].embedding.length, 16); // sent as base64
  assert.equal(typeof answer.data[0].embedding[0], "number");
});

test("responses", async () => {
  const answer = await client.responses.create({ model, input: "Hello there" });
  assert.equal(answer.status, "completed");
  assert.equal(answer.output_text, "You said: Hello there");
});

test("chat stream", async () => {
  const chunks = await all(
    await client.chat.completions.create({
      model, messages: said("Hello there"), stream: true, stream_options: { include_usage: true },
    }),
  );
  assert.equal(text(chunks), "You said: Hello there");
  assert.equal(chunks.filter((c) => c.usage).length, 1);
});

test("chat stream helper", async () => {
  const answer = await client.chat.completions.stream({ model, messages: said("Hello there") }).finalChatCompletion();
  assert.equal(answer.choices[0].message.content, "You said: Hello there");
});

test("responses stream", async () => {
  const stream = await all(await client.responses.create({ model, input: "Hello there", stream: true }));
  assert.equal(stream[0].type, "response.created");
  assert.equal(stream.at(-1).type, "response.completed");
  assert.deepEqual(stream.map((e) => e.sequence_number), stream.map((_, i) => i));
});

test("responses stream helper", async () => {
  const answer = await client.responses.stream({ model, input: "Hello there" }).finalResponse();
  assert.equal(answer.output_text, "You said: Hello there");
});

const call = 'sandbox: call get_weather {"city":"Oslo"}';

test("tool call", async () => {
  const answer = await client.chat.completions.create({ model, messages: said(call), tools });
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  assert.deepEqual(JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments), { city: "Oslo" });
});

test("tool call stream", async () => {
  const answer = await client.chat.completions.stream({ model, messages: said(call), tools }).finalChatCompletion();
  const [made] = answer.choices[0].message.tool_calls;
  assert.equal(made.function.name, "get_weather");
  assert.deepEqual(JSON.parse(made.function.arguments), { city: "Oslo" });
});

test("tool call responses stream", async () => {
  const answer = await client.responses.stream({ model, input: call }).finalResponse();
  assert.equal(answer.output[0].type, "function_call");
  assert.deepEqual(JSON.parse(answer.output[0].arguments), { city: "Oslo" });
});

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
    test(`a line that failed with ${status} is a ${type.name}, stream: ${stream}`, async () => {
      const before = events("batch_submitted").length;
      await assert.rejects(
        client.chat.completions.create({ model, messages: said(`sandbox: status ${status} ${stream} in node`), stream }),
        (error) => error instanceof type && error.status === status,
      );
      assert.equal(events("batch_submitted").length, before + 1, "a retry has paid again");
    });
  }
}

test("a line without an answer", async () => {
  await assert.rejects(
    client.embeddings.create({ model, input: "sandbox: error request_timeout" }),
    (error) => error.status === 424,
  );
});

test("bad calls", async () => {
  await assert.rejects(client.chat.completions.create({ model: "", messages: said("Hello") }), OpenAI.BadRequestError);
  const stranger = new OpenAI({ apiKey: "sk-wrong" });
  await assert.rejects(stranger.chat.completions.create({ model, messages: said("Hello") }), OpenAI.AuthenticationError);
  await assert.rejects(client.files.retrieve("file-nowhere"), OpenAI.NotFoundError);
});

test("pass through", async () => {
  assert.deepEqual(await all(await client.models.list()), []);
});

test("kept alive beyond the grace", async () => {
  const answer = await client.chat.completions.create({ model, messages: said("sandbox: delay 3s in node") });
  assert.match(answer.choices[0].message.content, /^You said/);
  const chunks = await all(
    await client.chat.completions.create({ model, messages: said("sandbox: delay 3.1s in node"), stream: true }),
  );
  assert.match(text(chunks), /^You said/);
});

for (const stream of [false, true]) {
  test(`a failure after the answer began, stream: ${stream}`, async () => {
    // The status can no longer be told, but the failure must be.
    await assert.rejects(async () => {
      const answer = await client.chat.completions.create(
        { model, messages: said(`sandbox: delay 3s status 400 ${stream} in node`), stream },
        { maxRetries: 0 },
      );
      if (stream) await all(answer);
    });
  });
}

test("fifty at once ride together", async () => {
  const before = events("batch_submitted").length;
  const prompts = Array.from({ length: 50 }, (_, i) => `call ${i}`);
  const answers = await Promise.all(prompts.map((p) => client.chat.completions.create({ model, messages: said(p) })));
  assert.deepEqual(
    answers.map((a) => a.choices[0].message.content),
    prompts.map((p) => `You said: ${p}`),
  );
  const batches = events("batch_submitted").slice(before);
  assert.equal(batches.reduce((n, b) => n + b.request_count, 0), 50);
  assert.ok(batches.length <= 3);
});

// Tests that JavaScript clients get the same objects in each lane of `autobatcher serve
// --sandbox`: in real time, in a batch, late (after status 200 and heartbeats), at the flex
// tier, late at the flex tier, and in the background. The whole objects must be equal, but for
// the members of mayDiffer. run.sh starts the proxies.
//
// In the background, openai-node submits a response and collects the answer with calls of its
// own. The AI SDK has no option for a background response (it drops options that it does not
// know), and no call that collects one. All calls that are not streamed are made in the
// background with respondAsync, too, which takes the place of fetch in both. Streams are held.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";

const model = "gpt-4o-mini";
const apiKey = process.env.OPENAI_API_KEY;
const { OPENAI_BASE_URL: batch, LATE_BASE_URL: late, FLEX_BASE_URL: flex, FLEX_LATE_BASE_URL: flexLate } = process.env;
const realtime = { "Autobatcher-Mode": "realtime" };

const mayDiffer = new Set([
  "service_tier", "serviceTier", // the tier that was paid for
  "background", // a response at the flex tier runs in the background
  "created", "created_at", "completed_at", // times
  "timestamp", "headers", // the AI SDK's own, and the headers, which name the batch
]);

// The sandbox counts the bytes of the whole body, and lanes differ in "stream" and
// "service_tier". These counts must be there, and be more than zero.
const counts = new Set(["prompt_tokens", "input_tokens", "total_tokens", "inputTokens", "totalTokens", "noCacheTokens"]);

// same returns a value without the members that may differ between lanes.
function same(value) {
  if (Array.isArray(value)) return value.map(same);
  if (typeof value === "string" && /^(chatcmpl-|cmpl-|resp_|msg_)/.test(value)) return "an id of an answer";
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value).filter(([k]) => !mayDiffer.has(k)).map(([k, v]) => [k, counts.has(k) && typeof v === "number" ? v > 0 : same(v)]),
  );
}

const userMessage = (content) => [{ role: "user", content }];
const parameters = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const aiTools = { get_weather: tool({ inputSchema: jsonSchema(parameters) }) };
const sdk = (call) => (baseURL, defaultHeaders, prompt, fetch) => call(new OpenAI({ baseURL, defaultHeaders, fetch }), prompt);

// respondAsync is a fetch that makes each call in the background, and asks for the answer
// until it is there.
async function respondAsync(url, init) {
  const headers = new Headers(init.headers);
  headers.set("Prefer", "respond-async");
  let response = await fetch(url, { ...init, headers });
  assert.equal(response.status, 202, "the call was not made in the background");
  const location = new URL(response.headers.get("Location"), url);
  const question = { headers: { Authorization: headers.get("Authorization") }, signal: init.signal };
  while (response.status === 202) {
    await response.arrayBuffer();
    await new Promise((resolve) => setTimeout(resolve, 100));
    response = await fetch(location, question);
  }
  return response;
}

const metadata = { job: "nightly" };

async function background(client, input) {
  let answer = await client.responses.create({ model, input, metadata, background: true });
  while (answer.status === "queued" || answer.status === "in_progress") {
    await new Promise((resolve) => setTimeout(resolve, 100));
    answer = await client.responses.retrieve(answer.id);
  }
  return answer;
}

// parts are what a result of the AI SDK consists of, without the request, which names
// the headers.
const parts = async ({ content, finishReason, usage, response, providerMetadata, warnings }) => {
  const [c, f, u, r, p, w] = await Promise.all([content, finishReason, usage, response, providerMetadata, warnings]);
  return { content: c, finishReason: f, usage: u, response: { id: r.id, modelId: r.modelId, messages: r.messages, body: r.body }, providerMetadata: p, warnings: w };
};
// ai returns functions that make a call with Vercel's AI SDK, not streamed and streamed.
const ai = (modelAt) => [
  async (baseURL, headers, prompt, fetch) => parts(await generateText({ model: modelAt(baseURL, fetch), headers, prompt, tools: aiTools })),
  async (baseURL, headers, prompt) => {
    const result = streamText({ model: modelAt(baseURL), headers, prompt, tools: aiTools });
    await result.consumeStream();
    return parts(result);
  },
];
const [aiChat, aiChatStream] = ai((baseURL, fetch) => createOpenAI({ baseURL, apiKey, fetch }).chat(model));
const [aiResponses, aiResponsesStream] = ai((baseURL, fetch) => createOpenAI({ baseURL, apiKey, fetch }).responses(model));
const [aiCompatible, aiCompatibleStream] = ai((baseURL, fetch) => createOpenAICompatible({ name: "proxy", baseURL, apiKey, fetch })(model));

const calls = {
  "openai chat": sdk((c, prompt) => c.chat.completions.create({ model, messages: userMessage(prompt), tools })),
  "openai chat stream": sdk((c, prompt) =>
    c.chat.completions.stream({ model, messages: userMessage(prompt), tools, stream_options: { include_usage: true } }).finalChatCompletion()),
  "openai chat, JSON": sdk((c, prompt) => c.chat.completions.create({ model, messages: userMessage(prompt), n: 2, response_format: { type: "json_object" } })),
  "openai response": sdk((c, input) => c.responses.create({ model, input, metadata })),
  "openai response stream": sdk(async (c, input) => {
    let pieces = "";
    const stream = c.responses.stream({ model, input, metadata }).on("response.function_call_arguments.delta", (e) => { pieces += e.delta; });
    return { response: await stream.finalResponse(), pieces };
  }),
  "openai completion": sdk((c, prompt) => c.completions.create({ model, prompt })),
  "openai embeddings": sdk((c, input) => c.embeddings.create({ model, input: [input, "two"], dimensions: 16 })),
  "openai moderation": sdk((c, input) => c.moderations.create({ input: [input, "violence"] })),
  "openai images": sdk((c, prompt) => c.images.generate({ model: "gpt-image-1", prompt, n: 2 })),
  "ai openai chat": aiChat, "ai openai chat stream": aiChatStream,
  "ai openai responses": aiResponses, "ai openai responses stream": aiResponsesStream,
  "ai openai-compatible": aiCompatible, "ai openai-compatible stream": aiCompatibleStream,
};
const noFlex = new Set(["openai completion", "openai embeddings", "openai moderation", "openai images"]); // no provider has these at the flex tier
const prompts = { text: "Hello there", tools: 'sandbox: call get_weather {"city":"Oslo"}' };

for (const [name, ask] of Object.entries(calls)) {
  for (const [kind, prompt] of Object.entries(prompts)) {
    if (kind === "tools" && !/^(openai (chat|response)|ai .*)( stream)?$/.test(name)) continue;
    test(`${name}, ${kind}`, async () => {
      const lanes = { batch: ask(batch, {}, prompt), late: ask(late, {}, prompt) };
      if (!noFlex.has(name)) Object.assign(lanes, { flex: ask(flex, {}, prompt), "flex, late": ask(flexLate, {}, prompt) });
      if (name === "openai response") lanes.background = sdk(background)(batch, {}, prompt);
      if (!name.endsWith(" stream")) lanes["respond-async"] = ask(batch, {}, prompt, respondAsync);
      const want = same(await ask(batch, realtime, prompt));
      assert.ok(want && (kind === "text" || JSON.stringify(want).includes("Oslo")), "there is nothing to compare");
      for (const [lane, call] of Object.entries(lanes)) assert.deepEqual(same(await call), want, lane);
    });
  }
}

// docs/lanes.md says that the AI SDK cannot ask for a background response.
test("the AI SDK drops the option background", async () => {
  const provider = createOpenAI({ baseURL: batch, apiKey });
  const { text, response } = await generateText({ model: provider.responses(model), prompt: "hello", providerOptions: { openai: { background: true } } });
  assert.deepEqual([text, response.body.status, response.body.background ?? false], ["You said: hello", "completed", false]);
});

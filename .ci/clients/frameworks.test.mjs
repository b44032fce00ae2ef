// Tests of JavaScript clients with `autobatcher serve --sandbox`. Each client makes each
// kind of call at two proxies: at OPENAI_BASE_URL the answer is in time, at
// LATE_BASE_URL the answer comes after status 200 and several heartbeats. same.test.mjs
// compares the whole objects in all lanes, and in the background.
import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, RetryError, streamText } from "ai";
import OpenAI from "openai";

const model = "gpt-4o-mini";
const apiKey = process.env.OPENAI_API_KEY;

// sdk returns a function that makes a call with Vercel's AI SDK.
const sdk = (modelAt) => async (baseURL, prompt, stream) => {
  if (!stream) return (await generateText({ model: modelAt(baseURL), prompt })).text;
  let text = "";
  for await (const part of streamText({ model: modelAt(baseURL), prompt, onError() {} }).fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") text += part.text;
  }
  return text;
};

const clients = {
  "openai chat": async (baseURL, prompt, stream) => {
    const body = { model, messages: [{ role: "user", content: prompt }] };
    const completions = new OpenAI({ baseURL }).chat.completions;
    const answer = stream ? await completions.stream(body).finalChatCompletion() : await completions.create(body);
    return answer.choices[0].message.content;
  },
  "openai responses": async (baseURL, prompt, stream) => {
    const { responses } = new OpenAI({ baseURL });
    const body = { model, input: prompt };
    return (stream ? await responses.stream(body).finalResponse() : await responses.create(body)).output_text;
  },
  "ai openai chat": sdk((baseURL) => createOpenAI({ baseURL, apiKey }).chat(model)),
  "ai openai responses": sdk((baseURL) => createOpenAI({ baseURL, apiKey }).responses(model)),
  "ai openai-compatible": sdk((baseURL) => createOpenAICompatible({ name: "proxy", baseURL, apiKey })(model)),
};

// What a late failure throws, not streamed and streamed: docs/operations.md has the same
// table. The AI SDK retries a broken answer, and the retry gets the failure with its status.
const nodeLate = [
  (e) => e instanceof TypeError && e.message === "terminated",
  (e) => e.constructor === OpenAI.APIError && e.status === undefined && e.message === "Bad Request.",
];
const retried = (e) => RetryError.isInstance(e) && APICallError.isInstance(e.lastError) && e.lastError.statusCode === 400;
const lateFailures = {
  "openai chat": nodeLate,
  "openai responses": nodeLate,
  "ai openai chat": [retried, (e) => APICallError.isInstance(e) && e.statusCode === 400],
  "ai openai responses": [retried, (e) => APICallError.isInstance(e) && e.statusCode === 400],
  "ai openai-compatible": [retried, (e) => !(e instanceof Error) && e.message === "Bad Request." && statusOf(e) === undefined],
};

// statusOf returns the HTTP status that an error or one of its causes names.
function statusOf(error) {
  for (let e = error; e; e = e.cause ?? e.lastError) {
    const status = e.status ?? e.statusCode;
    if (status) return status;
  }
}

test("frameworks", { concurrency: true }, async (t) => {
  const cases = [];
  for (const name of Object.keys(clients)) {
    for (const late of [false, true]) {
      for (const failure of [false, true]) {
        for (const stream of [false, true]) cases.push({ name, late, failure, stream });
      }
    }
  }
  const tests = cases.map(({ name, late, failure, stream }) => {
    const title = `${name}, ${late ? "late" : "in time"}, ${failure ? "failure" : "success"}, ${stream ? "stream" : "complete"}`;
    return t.test(title, async () => {
      const prompt = `sandbox: ${late ? "delay 3s " : ""}${failure ? "status 400 " : ""}${name} ${stream} in node`;
      const base = late ? process.env.LATE_BASE_URL : process.env.OPENAI_BASE_URL;
      const call = clients[name](base, prompt, stream);
      if (!failure) {
        assert.equal(await call, `You said: ${prompt}`);
        return;
      }
      let answer, error;
      try {
        answer = await call;
      } catch (e) {
        error = e;
      }
      assert.ok(error, `a failure became the answer ${answer}`);
      if (late) assert.ok(lateFailures[name][Number(stream)](error), inspect(error));
      else assert.equal(statusOf(error), 400);
    });
  });
  await Promise.all(tests);
});

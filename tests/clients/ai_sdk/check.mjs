// Vercel's AI SDK against a server: node check.mjs URL MODEL. Prints `ok NAME` per check; fails loudly.

import assert from "node:assert/strict";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const [url, name] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "tallow", baseURL: `${url}/v1`, apiKey: "none", supportsStructuredOutputs: true, includeUsage: true,
});
const asked = { model: provider(name), prompt: "What is the capital of France?", maxRetries: 0, seed: 3 };
const schema = z.object({ city: z.string().max(20), people: z.number().int().min(0).max(9999) });
const call = { tools: { find_city: tool({ inputSchema: schema }) }, toolChoice: "required", maxOutputTokens: 400 };

// Stream errors are told to a function, not thrown.
const onError = ({ error }) => {
  throw error;
};

async function textStreamsAsItAnswers() {
  const whole = await generateText({ ...asked, maxOutputTokens: 12 });
  const stream = streamText({ ...asked, maxOutputTokens: 12, onError });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, whole.text);
  assert.equal(await stream.finishReason, whole.finishReason);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
}

async function aRequiredToolIsCalled() {
  const { toolCalls, finishReason } = await generateText({ ...asked, ...call });
  if (finishReason === "length") return;
  assert.equal(toolCalls[0].toolName, "find_city");
  schema.parse(toolCalls[0].input);
  const stream = streamText({ ...asked, ...call, onError });
  await stream.consumeStream();
  assert.deepEqual((await stream.toolCalls).map((c) => c.input), toolCalls.map((c) => c.input));
}

async function anObjectIsTheSchema() {
  const { object } = await generateObject({ ...asked, schema, maxOutputTokens: 400 });
  schema.parse(object);
  const stream = streamObject({ ...asked, schema, maxOutputTokens: 400, onError });
  let numPartial = 0;
  for await (const _ of stream.partialObjectStream) numPartial += 1;
  assert.deepEqual(await stream.object, object);
  assert(numPartial > 1);
}

async function aRefusalIsTold() {
  const refused = generateText({ ...asked, model: provider("no such") });
  await assert.rejects(refused, (e) => e.statusCode === 404 && e.responseBody.includes("model_not_found"));
}

for (const check of [textStreamsAsItAnswers, aRequiredToolIsCalled, anObjectIsTheSchema, aRefusalIsTold]) {
  await check();
  console.log("ok", check.name);
}

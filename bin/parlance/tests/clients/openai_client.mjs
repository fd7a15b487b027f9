// The official JavaScript client, unmodified, against a node with the scripted model. Called as: openai_client.mjs BASE_URL MODULES

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createRequire } from "node:module";

const [baseURL, modules] = process.argv.slice(2);
const OpenAI = createRequire(`${modules}/`)("openai");
const client = new OpenAI({ baseURL, apiKey: "any" });

// What every scripted answer begins with.
const mark = (text) => createHash("sha256").update(text).digest("hex").slice(0, 16);

async function chat() {
  const answer = await client.chat.completions.create({ model: "scripted", messages: [{ role: "user", content: "one" }] });
  assert.ok(answer.choices[0].message.content.startsWith(mark("one")));
  assert.equal(answer.choices[0].finish_reason, "stop");
}

async function chatStream() {
  const messages = [{ role: "user", content: "two" }];
  const stream = client.chat.completions.stream({ model: "scripted", messages, stream_options: { include_usage: true } });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  assert.ok(text.startsWith(mark("two")));
  assert.equal(await stream.finalContent(), text);
}

// The client runs the tool and goes on until there is an answer.
async function tools() {
  const asked = [];
  const call = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>';
  const weather = (city) => asked.push(city) && "cloudy";
  const parameters = { type: "object", properties: { city: { type: "string" } } };
  const tool = { type: "function", function: { name: "weather", function: weather, parse: JSON.parse, parameters } };
  const runner = client.chat.completions.runTools({
    model: "scripted", stream: true, messages: [{ role: "user", content: call }], tools: [tool],
  });
  assert.ok((await runner.finalContent()).startsWith(mark("cloudy")));
  assert.deepEqual(asked, [{ city: "Paris" }]);
}

async function responses() {
  const first = await client.responses.create({ model: "scripted", input: "three" });
  assert.ok(first.output_text.startsWith(mark("three")));
  const second = await client.responses.create({ model: "scripted", input: "four", previous_response_id: first.id });
  assert.ok(second.output_text.startsWith(mark("four")));
}

async function responsesStream() {
  const conversation = await client.conversations.create({ metadata: { topic: "tests" } });
  const stream = client.responses.stream({ model: "scripted", input: "five", conversation: conversation.id });
  let text = "";
  stream.on("response.output_text.delta", (event) => (text += event.delta));
  const final = await stream.finalResponse();
  assert.ok(text.startsWith(mark("five")));
  assert.equal(final.output_text, text);
  const roles = [];
  for await (const item of client.conversations.items.list(conversation.id, { order: "asc" })) roles.push(item.role);
  assert.deepEqual(roles, ["user", "assistant"]);
}

async function errors() {
  const unknown = client.chat.completions.create({ model: "nobody", messages: [{ role: "user", content: "x" }] });
  await assert.rejects(unknown, (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
}

for (const check of [chat, chatStream, tools, responses, responsesStream, errors]) {
  await check();
  console.log(`ok ${check.name}`);
}

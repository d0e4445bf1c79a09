// Drives the openai package for Node against the server whose base URL is the only argument; fails by an exit code.
const assert = require("node:assert/strict");
const OpenAI = require("openai");

const model = "slimstory";
const messages = [{ role: "user", content: "Tell me a story about a little dog." }];
const schema = { type: "object", properties: { kind: { enum: ["cat", "dog"] } }, required: ["kind"], additionalProperties: false };

async function main(baseURL) {
  const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
  const fields = { model, messages, max_tokens: 60, temperature: 0 };

  const whole = await client.chat.completions.create(fields);
  const stream = await client.chat.completions.create({ ...fields, stream: true, stream_options: { include_usage: true } });
  let said = "";
  let usage = null;
  for await (const chunk of stream) {
    said += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.notEqual(said, "");
  assert.equal(said, whole.choices[0].message.content);
  assert.equal(usage.total_tokens, whole.usage.total_tokens);

  const helper = client.chat.completions.stream(fields);
  assert.equal(await helper.finalContent(), said);

  const text = await client.completions.create({ model, prompt: "Once upon a time", max_tokens: 8 });
  assert.equal(text.usage.completion_tokens, 8);

  const format = { type: "json_schema", json_schema: { name: "pet", schema, strict: true } };
  const object = await client.chat.completions.parse({ ...fields, response_format: format });
  assert.ok(["cat", "dog"].includes(object.choices[0].message.parsed.kind));

  await assert.rejects(client.chat.completions.create({ ...fields, model: "slimstori" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
  await assert.rejects(client.chat.completions.create({ ...fields, temperature: 9 }), OpenAI.BadRequestError);

  const models = await client.models.list();
  assert.ok(models.data[0].id.startsWith(model));
  console.log("ok");
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});

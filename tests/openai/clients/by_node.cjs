// OpenAI's package for Node: see `tests/openai/test_clients.py` for what is told.
const OpenAI = require("openai");

const [url, dictatedUrl, asked] = [process.argv[2], process.argv[3], JSON.parse(process.argv[4])];
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const dictated = new OpenAI({ baseURL: `${dictatedUrl}/v1`, apiKey: "none", maxRetries: 0 });
const { messages, question, tools, prompt, seed, num_tokens } = asked;
const sampling = { model: "target", seed, max_tokens: num_tokens };

async function streamed() {
  let text = "";
  let usage = null;
  const stream = await client.chat.completions.create({
    ...sampling, messages, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return [text, usage.completion_tokens];
}

const told = (calls) => calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);

async function calls() {
  const request = { model: "target", messages: question, tools };
  const whole = (await dictated.chat.completions.create(request)).choices[0];
  const stream = dictated.chat.completions.stream(request);
  const joined = (await stream.finalChatCompletion()).choices[0];
  const results = joined.message.tool_calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: "3" }));
  const next = { ...request, messages: [...question, joined.message, ...results] };
  const answer = (await dictated.chat.completions.create(next)).choices[0].message.content;
  return {
    whole_calls: told(whole.message.tool_calls),
    calls: told(joined.message.tool_calls),
    call_ids: joined.message.tool_calls.map((call) => call.id),
    finish_reasons: [whole.finish_reason, joined.finish_reason],
    answer,
  };
}

async function refused(changes) {
  try {
    await client.chat.completions.create({ ...sampling, messages, ...changes });
  } catch (error) {
    return [error.constructor.name, error.status];
  }
}

async function leave() {
  const body = { ...sampling, prompt, max_tokens: 900, ignore_eos: true, stream: true };
  const stream = await client.completions.create(body);
  for await (const _ of stream) {
    stream.controller.abort();
  }
}

async function main() {
  const whole = (await client.chat.completions.create({ ...sampling, messages })).choices[0].message.content;
  const [text, num_tokens] = await streamed();
  const completion = (await client.completions.create({ ...sampling, prompt })).choices[0].text;
  const called = await calls();
  const errors = [await refused({ model: "gpt-4" }), await refused({ temperature: -1 })];
  await leave();
  console.log(JSON.stringify({ whole, streamed: text, num_tokens, completion, ...called, errors }));
  process.stdin.resume(); // until the test has seen what has become of the stream that was left
}

main();

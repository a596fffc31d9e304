// Assistant: talks to OpenAI through its npm package.

import OpenAI from "openai";

const client = new OpenAI({ apiKey: "sk-placeholder-assistant", maxRetries: 0 });
const messages = [{ role: "user", content: "good morning" }];

for (let turn = 0; ; turn += 1) {
  try {
    if (turn % 2) {
      for await (const _ of await client.chat.completions.create({ model: "gpt-4o-mini", messages, stream: true }));
    } else {
      await client.chat.completions.create({ model: "gpt-4o-mini", messages });
    }
    console.log("ok");
  } catch (error) {
    console.log("failed", error.name, String(error.message).slice(0, 200), error.cause?.message ?? "");
  }
  await new Promise((wake) => setTimeout(wake, 300));
}

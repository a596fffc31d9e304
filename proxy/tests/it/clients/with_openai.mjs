// A service that talks to OpenAI through its npm package, with a placeholder for a key.

import OpenAI from "openai";

const client = new OpenAI({ apiKey: "placeholder" });
const messages = [{ role: "user", content: "good morning" }];

const { data, response } = await client.chat.completions.create({ model: "gpt-4o-mini", messages }).withResponse();
console.log(response.status, Object.fromEntries(response.headers));
console.log(data.choices[0].message.content);

let pieces = 0;
for await (const chunk of await client.chat.completions.create({ model: "gpt-4o-mini", messages, stream: true })) {
  console.log(JSON.stringify(chunk));
  pieces += 1;
}
console.log("pieces:", pieces);

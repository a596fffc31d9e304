// A service that calls api.example.com with Node's own fetch.

const headers = { authorization: "Bearer out-of-date" };

let response = await fetch("https://api.example.com/echo", { headers });
console.log(response.status, Object.fromEntries(response.headers), await response.text());

response = await fetch("https://api.example.com/upload", { method: "POST", headers, body: "x".repeat(100_000) });
console.log(response.status, await response.json());

response = await fetch("https://api.example.com/sse?n=4&ms=5", { headers });
const decoder = new TextDecoder();
for await (const piece of response.body) console.log(decoder.decode(piece));

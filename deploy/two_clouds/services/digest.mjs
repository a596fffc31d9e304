// Digest: sends mail through SendGrid with Node's own fetch.

const headers = { authorization: "Bearer SG.placeholder-digest", "content-type": "application/json" };
const body = JSON.stringify({
  personalizations: [{ to: [{ email: "ada@example.com" }] }],
  from: { email: "shop@example.com" },
  subject: "This week",
  content: [{ type: "text/plain", value: "Nothing happened." }],
});

for (;;) {
  try {
    const answer = await fetch("https://api.sendgrid.com/v3/mail/send", { method: "POST", headers, body });
    const text = await answer.text();
    console.log(answer.ok ? "ok" : `failed ${answer.status} ${text.slice(0, 200)}`);
  } catch (error) {
    console.log("failed", error.name, error.message, error.cause?.message ?? "");
  }
  await new Promise((wake) => setTimeout(wake, 300));
}

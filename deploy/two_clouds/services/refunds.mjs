// Refunds: asks Stripe with Node's own fetch.

const headers = { authorization: "Bearer sk_test_placeholder_refunds" };

for (;;) {
  try {
    const answer = await fetch("https://api.stripe.com/v1/balance", { headers });
    const text = await answer.text();
    console.log(answer.ok ? "ok" : `failed ${answer.status} ${text.slice(0, 200)}`);
  } catch (error) {
    console.log("failed", error.name, error.message, error.cause?.message ?? "");
  }
  await new Promise((wake) => setTimeout(wake, 300));
}

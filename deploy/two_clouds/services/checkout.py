"""Checkout: takes payments through Stripe's SDK, once every third of a second."""

import time

import stripe

stripe.api_key = "sk_test_placeholder_checkout"
stripe.max_network_retries = 0

orders = 0
while True:
    try:
        stripe.Customer.create(email="ada@example.com", idempotency_key=f"order-{orders}")
        print("ok", flush=True)
    except Exception as error:
        print("failed", type(error).__name__, str(error)[:200].replace("\n", " "), flush=True)
    orders += 1
    time.sleep(0.3)

"""Balance: looks at the account with requests, and a new connection each time."""

import time

import requests

while True:
    try:
        requests.get("https://api.stripe.com/v1/balance", auth=("sk_test_placeholder_balance", ""), timeout=30).raise_for_status()
        print("ok", flush=True)
    except Exception as error:
        print("failed", type(error).__name__, str(error)[:200].replace("\n", " "), flush=True)
    time.sleep(0.5)

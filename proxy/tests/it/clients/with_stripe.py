"""A service that takes payments through Stripe's SDK, which trusts its own CA bundle."""

import stripe

stripe.api_key = "sk_test_placeholder"
stripe.max_network_retries = 0

customer = stripe.Customer.create(email="ada@example.com", name="Ada", idempotency_key="order-1")
print(customer, customer.last_response.headers)
balance = stripe.Balance.retrieve()
print(balance, balance.last_response.code)

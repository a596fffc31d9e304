"""Receipts: sends mail through SendGrid's SDK."""

import time

from sendgrid import SendGridAPIClient
from sendgrid.helpers.mail import Mail

client = SendGridAPIClient("SG.placeholder-receipts")
message = Mail(from_email="shop@example.com", to_emails="ada@example.com", subject="Your order", plain_text_content="It is on its way.")

while True:
    try:
        client.send(message)
        print("ok", flush=True)
    except Exception as error:
        print("failed", type(error).__name__, str(error)[:200].replace("\n", " "), flush=True)
    time.sleep(0.3)

"""A service that sends mail through SendGrid's SDK."""

from sendgrid import SendGridAPIClient
from sendgrid.helpers.mail import Mail

message = Mail(
    from_email="shop@example.com",
    to_emails="ada@example.com",
    subject="Your order",
    plain_text_content="It is on its way.",
)
response = SendGridAPIClient("SG.placeholder").send(message)
print(response.status_code, response.headers, response.body)

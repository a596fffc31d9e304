"""A service that calls Gemini's REST interface with the key in the query, as the quick start shows it."""

import httpx

answer = httpx.post(
    "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.0-flash:generateContent",
    params={"key": "AIza-placeholder", "alt": "json"},
    json={"contents": [{"role": "user", "parts": [{"text": "good morning"}]}]},
    timeout=30,
)
print(answer.status_code, dict(answer.headers), answer.json())

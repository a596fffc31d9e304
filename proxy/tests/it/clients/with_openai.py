"""A service that talks to OpenAI through its SDK, with a key that is a placeholder."""

from openai import OpenAI

client = OpenAI(api_key="placeholder")
messages = [{"role": "user", "content": "good morning"}]

raw = client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=messages)
print(raw.status_code, dict(raw.headers))
print(raw.parse().choices[0].message.content)

print([model.id for model in client.models.list().data])

pieces = 0
for chunk in client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True, stream_options={"include_usage": True}):
    print(chunk.model_dump_json())
    pieces += 1
print("pieces:", pieces)

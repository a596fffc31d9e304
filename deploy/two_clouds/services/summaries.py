"""Summaries: talks to OpenAI through its SDK, whole answers and streamed ones in turn."""

import time

from openai import OpenAI

client = OpenAI(api_key="sk-placeholder-summaries", max_retries=0)
messages = [{"role": "user", "content": "good morning"}]

turn = 0
while True:
    try:
        if turn % 2:
            for _ in client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True):
                pass
        else:
            client.chat.completions.create(model="gpt-4o-mini", messages=messages)
        print("ok", flush=True)
    except Exception as error:
        print("failed", type(error).__name__, str(error)[:200].replace("\n", " "), flush=True)
    turn += 1
    time.sleep(0.3)

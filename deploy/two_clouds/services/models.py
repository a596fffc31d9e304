"""Models: asks OpenAI which models there are, with requests and a session that is kept."""

import time

import requests

session = requests.Session()
session.headers["Authorization"] = "Bearer sk-placeholder-models"

while True:
    try:
        session.get("https://api.openai.com/v1/models", timeout=30).raise_for_status()
        print("ok", flush=True)
    except Exception as error:
        print("failed", type(error).__name__, str(error)[:200].replace("\n", " "), flush=True)
    time.sleep(0.3)

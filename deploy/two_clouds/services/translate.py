"""Translate: asks OpenAI with httpx, several at once."""

import asyncio

import httpx

BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "good morning"}]}


async def main():
    async with httpx.AsyncClient(base_url="https://api.openai.com", headers={"Authorization": "Bearer sk-placeholder-translate"}) as client:
        while True:
            for answer in await asyncio.gather(*(client.post("/v1/chat/completions", json=BODY) for _ in range(3)), return_exceptions=True):
                if isinstance(answer, Exception):
                    print("failed", type(answer).__name__, str(answer)[:200], flush=True)
                else:
                    print("ok" if answer.status_code == 200 else f"failed {answer.status_code} {answer.text[:200]}", flush=True)
            await asyncio.sleep(0.6)


asyncio.run(main())

"""A service that calls api.example.com with httpx, and has no key at all."""

import asyncio

import httpx

with httpx.Client(base_url="https://api.example.com") as client:
    response = client.get("/echo")
    print(response.status_code, response.http_version, dict(response.headers))
    print(response.text)
    with client.stream("GET", "/sse", params={"n": 4, "ms": 5}) as response:
        print(response.status_code, dict(response.headers))
        for line in response.iter_lines():
            print(line)


async def several():
    async with httpx.AsyncClient(base_url="https://api.example.com") as client:
        answers = await asyncio.gather(*(client.get(f"/echo?n={n}") for n in range(8)))
        print("at once:", [answer.status_code for answer in answers])


asyncio.run(several())

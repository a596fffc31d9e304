"""A service that calls api.example.com with requests and a key that is long out of date."""

import requests

session = requests.Session()
session.headers["Authorization"] = "Bearer out-of-date"
for path in ("/echo", "/echo?api_key=out-of-date&page=2", "/bytes/100000", "/status/404"):
    response = session.get("https://api.example.com" + path, timeout=30)
    print(path, response.status_code, dict(response.headers))
    print(response.text if len(response.content) < 10_000 else len(response.content))
response = session.post("https://api.example.com/upload", data=b"x" * 100_000, timeout=30)
print("/upload", response.status_code, response.json())

"""Small requests to an engine or a gateway, straight through the standard library."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit


def request(url: str, body: object = None, key: str = "", timeout: float = 60.0) -> tuple[int, bytes]:
    """GET, or POST where there is a body. (status, body)"""
    connection, response = _open(url, body, key, timeout)
    with connection:
        return response.status, response.read()


def answer_of(url: str, body: object) -> tuple[int, int | None, str]:
    """Status, `Retry-After` and text of the answer to a POST."""
    connection, response = _open(url, body, "", 100.0)
    with connection:
        after = response.headers["Retry-After"]
        return response.status, None if after is None else int(after), response.read().decode()


def get_json(url: str, key: str = "", timeout: float = 60.0) -> Any:
    status, data = request(url, key=key, timeout=timeout)
    assert status == 200, f"GET {url}: {status} {data[:500]!r}"
    return json.loads(data)


def post_json(url: str, body: object, key: str = "", timeout: float = 60.0) -> Any:
    status, data = request(url, body, key, timeout)
    assert status == 200, f"POST {url}: {status} {data[:500]!r}"
    return json.loads(data)


def chat(endpoint: str, key: str = "", tokens: int = 8, text: str = "Say hi in one word.") -> str:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0}
    answer = post_json(f"{endpoint}/v1/chat/completions", body, key)
    content: str = answer["choices"][0]["message"]["content"]
    return content


class Stream:
    """A chat stream held open: `first()` returns after the first data line."""

    def __init__(self, endpoint: str, key: str = "", tokens: int = 4000, timeout: float = 60.0) -> None:
        body = {
            "messages": [{"role": "user", "content": "Count from one to one thousand in words."}],
            "max_tokens": tokens,
            "stream": True,
            "ignore_eos": True,
        }
        self.connection, self.response = _open(f"{endpoint}/v1/chat/completions", body, key, timeout)

    def first(self) -> bytes:
        assert self.response.status == 200
        while line := self.response.readline():
            if line.startswith(b"data: "):
                return line
        raise AssertionError("the stream ended before its first data line")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


class _Connection(http.client.HTTPConnection):
    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(url: str, body: object, key: str, timeout: float) -> tuple[_Connection, http.client.HTTPResponse]:
    parts = urlsplit(url)
    assert parts.hostname
    connection = _Connection(parts.hostname, parts.port, timeout=timeout)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    if body is None:
        connection.request("GET", path, headers=headers)
    else:
        headers["Content-Type"] = "application/json"
        connection.request("POST", path, json.dumps(body), headers)
    return connection, connection.getresponse()

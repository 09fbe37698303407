"""One real daemon, its gateway, and services on the fake runtime behind it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import process
from support.daemon import Daemon
from support.http import get_json, request
from support.spec import fake
from support.wait import wait_until

Json = dict[str, Any]
BODY = {"model": "chat", "messages": [{"role": "user", "content": "Say hi in one word."}], "max_tokens": 8}


class Box:
    """Services on the fake runtime behind one gateway. `url` is the gateway's."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.listen = f"127.0.0.1:{process.free_ports(1)[0]}"

    @property
    def url(self) -> str:
        return f"http://{self.listen}"

    @property
    def chat_url(self) -> str:
        return f"{self.url}/v1/chat/completions"

    def write(self, services: dict[str, Json] | None = None, gateway: Json | None = None, **knobs: Any) -> None:
        services = services or {"chat": self.service(**knobs)}
        self.daemon.write(services, gateway={"listen": self.listen, **(gateway or {})})

    def service(self, **knobs: Any) -> Json:
        return fake(self.daemon.folder / "model.gguf", knobs={"token_ms": 2, **knobs}, aliases=["smollm2"])

    def up(self, **knobs: Any) -> Json:
        self.write(**knobs)
        self.daemon.up()
        return self.ready()

    def ready(self) -> Json:
        """The service READY, the gateway too, and its view the present one."""
        found = self.daemon.wait_state("chat", "READY")
        self.gateway()
        wait_until(lambda: request(f"{self.url}/readyz")[0] == 200, 10, "the gateway to be open")
        return found

    def gateway(self) -> Json:
        def ready() -> Json | None:
            said: Json | None = self.daemon.status()["gateway"]
            return said if said and said["state"] == "READY" else None

        found = wait_until(ready, 15, lambda: f"the gateway: {self.daemon.status()['gateway']}\n{self.daemon.told()}")
        assert found and found["listen"] == self.listen
        return found

    def post(self, **changes: Any) -> tuple[int, Json]:
        status, data = request(self.chat_url, BODY | changes)
        return status, json.loads(data)

    def stream(self, tokens: int = 400, secret: str = "", **changes: Any) -> Answer:
        body = BODY | {"max_tokens": tokens, "stream": True, "ignore_eos": True} | changes
        stream = Answer(self.listen, body, secret)
        stream.first()
        return stream

    def conditions(self) -> dict[str, str]:
        return {c["id"]: c["text"] for c in self.daemon.status()["daemon"]["conditions"]}

    def running(self) -> int:
        """Requests at the engine, asked directly."""
        endpoint = self.daemon.service("chat")["endpoint"]
        count: int = get_json(f"{endpoint}/fault", self.daemon.key("chat"))["in_flight"]
        return count

    def hello(self) -> Json:
        """What a second daemon would be told."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.daemon.run / "gateway" / "gateway.sock"))
            hello: Json = json.loads(sock.makefile("rb").readline())
        return hello

    def records(self, n: int | None = None, timeout: float = 10.0) -> list[Json]:
        """What `requests --json` says; once there are `n`, where it is given."""

        def read() -> list[Json]:
            done = self.daemon.cli("requests", "--json", "-n", str(max(2000, n or 0)), timeout=120)
            assert done.returncode == 0, done.stderr
            return [json.loads(line) for line in done.stdout.splitlines()]

        if n is not None:
            wait_until(lambda: len(read()) >= n, timeout, f"{n} records")
        return read()

    def leases(self) -> Json:
        held: Json = self.hello()["leases"]
        return held


class Answer:
    """One request through the gateway, its answer read as it comes."""

    def __init__(self, listen: str, body: Json, secret: str = "", path: str = "/v1/chat/completions") -> None:
        host, _, port = listen.rpartition(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=300)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {secret}"} if secret else {})
        self.connection.request("POST", path, json.dumps(body), headers)
        self.response = self.connection.getresponse()

    def first(self) -> bytes:
        """Until the first event."""
        assert self.response.status == 200
        while line := self.response.readline():
            if line.startswith(b"data: "):
                return line
        raise AssertionError("the stream ended before its first event")

    def rest(self) -> bytes:
        """To the end. IncompleteRead where it breaks off."""
        return self.response.read()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def attempts(listen: str, until: threading.Event, failures: list[str]) -> int:
    """Connects again and again; a refusal is a failure."""
    host, _, port = listen.rpartition(":")
    n = 0
    while not until.is_set():
        try:
            socket.create_connection((host, int(port)), timeout=60).close()
            n += 1
        except OSError as error:
            failures.append(repr(error))
        time.sleep(0.002)
    return n


@contextlib.contextmanager
def no_connection_refused(listen: str) -> Iterator[None]:
    until, failures, count = threading.Event(), list[str](), list[int]()
    thread = threading.Thread(target=lambda: count.append(attempts(listen, until, failures)))
    thread.start()
    try:
        yield
    finally:
        until.set()
        thread.join()
    assert failures == [] and count[0] > 10


def listens(pid: int, fd: str, listen: str) -> bool:
    port = int(listen.rpartition(":")[2])
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if int(line.split()[1].rpartition(":")[2], 16) == port and line.split()[3] == process.LISTEN
    }
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{fd}") in {f"socket:[{inode}]" for inode in inodes}
    return False

"""A gateway by itself: its process, an engine that does what the test says, and the test in the daemon's place."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support.daemon import clean_environ
from support.wait import wait_until

from llmsupervisor.link.history import to_record

Json = dict[str, Any]
Act = Callable[[socket.socket, bytes], bytes | None]
"""What the engine does with a connection on which a whole request has come. Bytes that it returns are sent when it no
longer counts as in flight: the gateway may send the next one at the last of them."""


class Engine:
    """Answers each connection in a thread with `act`, and keeps what it was sent."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self.in_flight = self.most = 0
        """Requests whose `act` runs now, and at most."""
        self._lock = threading.Lock()
        self.act: Act = lambda sock, request: sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        self.health: Act = lambda sock, request: sock.sendall(whole(b"{}"))
        """What it does when it is asked whether it lives, which is no request."""
        self.asked = 0
        self.hung_up = threading.Event()
        """The gateway closed a connection, or reset it."""
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while request := self._read(sock):
                if request.startswith(b"GET /health "):
                    self.asked += 1
                    self.health(sock, request)
                    continue
                self.requests.append(request)
                self._count(1)
                try:
                    rest = self.act(sock, request)
                finally:
                    self._count(-1)
                if rest:
                    sock.sendall(rest)
        self.hung_up.set()

    def _read(self, sock: socket.socket) -> bytes:
        request = b""
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in request or len(request.split(b"\r\n\r\n", 1)[1]) < length(request):
                if not (piece := sock.recv(65536)):
                    return b""
                request += piece
        return request

    def _count(self, n: int) -> None:
        with self._lock:
            self.in_flight += n
            self.most = max(self.most, self.in_flight)

    def said(self) -> list[Json]:
        """The bodies it was sent, in order."""
        return [json.loads(request.split(b"\r\n\r\n", 1)[1]) for request in self.requests]

    def close(self) -> None:
        """Not before its thread is out of `accept`: that may go on with another socket of the same number."""
        with contextlib.suppress(OSError):  # closed before
            self.listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(60)
        self.listener.close()


def length(request: bytes) -> int:
    lines = request.split(b"\r\n\r\n")[0].lower().split(b"\r\n")
    return next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))


class Standalone:
    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder, self.engine = folder, engine
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self.listener.getsockname()[1]
        self.output = folder / "log"
        self.generation = 0
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """As a shim does: the listener as descriptor 3."""
        fd = self.listener.fileno()
        script = f'exec 3<&{fd}; [ {fd} = 3 ] || exec {fd}<&-; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        command = [sys.executable, "-m", "llmsupervisor.gateway", str(self.folder)]
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                ["bash", "-c", script, "bash", *command], env=clean_environ(), stderr=output, pass_fds=[fd]
            )
        self.process = process
        self.link = self.connect()
        return process

    def connect(self) -> socket.socket:
        def connected() -> socket.socket | None:
            assert self.process.poll() is None, self.output.read_text()
            sock = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(OSError):
                sock.connect(str(self.folder / "gateway.sock"))
                sock.settimeout(60)
                return sock
            sock.close()
            return None

        if hasattr(self, "link"):
            self.lines.close()
            self.link.close()
        link = wait_until(connected, 10, "the link")
        assert link
        self.lines = link.makefile("rb")
        self.hello = self.hear("hello")
        return link

    def hear(self, kind: str) -> Json:
        """The next message of this kind."""
        while line := self.lines.readline():
            message: Json = json.loads(line)
            if message["type"] == kind:
                return message
        raise AssertionError(f"the gateway closed the link before {kind}\n{self.output.read_text()}")

    def send(self, view: Json) -> None:
        self.link.sendall(json.dumps(view).encode() + b"\n")

    def view(
        self, *, keys: Sequence[Json] = (), limits: Json | None = None, more: Sequence[Json] = (), **changes: Any
    ) -> Json:
        """`changes` of the one target, `chat`; `more`: what differs from it in further ones."""
        self.generation += 1
        target = {
            "target": "chat",
            "service": "chat",
            "endpoint": "chat@1",
            "address": self.engine.address,
            "state": "open",
            "reason": "",
            "parallel": 2,
            "kv_tokens": None,
            "names": ["chat", "smollm2"],
            "inject": {"headers": {"Authorization": "Bearer engine-key"}},
        }
        return {
            "type": "view",
            "generation": self.generation,
            "targets": [target | changes, *(target | each for each in more)],
            "keys": list(keys),
            "limits": limits or {},
        }

    def apply(self, **changes: Any) -> None:
        self.send(self.view(**changes))
        while self.hear("applied")["generation"] != self.generation:
            pass

    def client(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        return sock

    def say(self, *parts: bytes) -> bytes:
        """Everything that comes back until the gateway closes; `Connection: close` is the caller's."""
        with self.client() as sock:
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    sock.sendall(part)
            return drain(sock)

    def ask(self, body: object = None, path: str = "/v1/chat/completions", headers: str = "") -> Answer:
        """One whole request on a connection of its own, and its answer."""
        return Answer(self.say(post(body, path, headers + "Connection: close\r\n")))

    def get(self, path: str, headers: str = "") -> Answer:
        return Answer(self.say(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n".encode()))

    def running(self) -> int:
        """Requests at engines, as the gateway counts them: what a second daemon is told at once."""
        with socket.socket(socket.AF_UNIX) as sock, contextlib.closing(sock.makefile("rb")) as lines:
            sock.settimeout(60)
            sock.connect(str(self.folder / "gateway.sock"))
            leases: dict[str, int] = json.loads(lines.readline())["leases"]
        return sum(leases.values())

    def queued(self) -> int:
        return int(sum(value for _, value in self.samples("llmsupervisor_requests_queued")))

    def samples(self, name: str) -> list[tuple[str, float]]:
        """(labels, value) of one metric."""
        lines = self.get("/metrics").body.decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line.startswith((name + "{", name + " ")))
        return [(labels[len(name) :], float(value)) for labels, _, value in pairs]

    def records(self, n: int) -> list[Json]:
        """What was written of ended requests, in the order of their ends, once there are `n`."""

        def read() -> list[Json]:
            with contextlib.closing(sqlite3.connect(self.folder / "requests.db")) as db:
                rows = db.execute("SELECT * FROM requests ORDER BY rowid")
                names = [column[0] for column in rows.description]
                return [{**to_record(names[1:], row[1:])} for row in rows]

        def enough() -> list[Json]:
            with contextlib.suppress(sqlite3.OperationalError):
                return found if len(found := read()) >= n else []
            return []

        return wait_until(enough, 10, f"{n} records")

    def resident(self) -> int:
        """Bytes of memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """Without those of its history, which another thread opens in its own time."""
        found = []
        for fd in os.listdir(folder := f"/proc/{self.process.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(f"{folder}/{fd}"))
        return sum("/requests.db" not in name for name in found)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.lines.close()
        self.link.close()
        self.listener.close()
        self.engine.close()


class Answer:
    """A whole answer from its bytes; `complete` is False where its framing broke off."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        response = http.client.HTTPResponse(_Said(data))  # type: ignore[arg-type]
        response.begin()
        self.status, self.headers = response.status, response.headers
        self.complete = True
        try:
            self.body = response.read()
        except http.client.IncompleteRead as cut:
            self.complete, self.body = False, cut.partial

    @property
    def json(self) -> Json:
        found: Json = json.loads(self.body)
        return found

    @property
    def error(self) -> Json:
        """The error object: of the body, or of an event stream's `event: error`."""
        text = self.body.split(b"event: error\ndata: ")[-1].split(b"\n\n")[0]
        found: Json = json.loads(text)["error"]
        return found

    @property
    def code(self) -> str:
        return str(self.error["code"])


class _Said:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def drain(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    return data


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def whole(body: bytes, head: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: application/json") -> bytes:
    return head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def key(name: str, secret: str, models: Sequence[str] | None = None, share: float = 1.0) -> Json:
    """As a view has it."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return {"name": name, "sha256": digest, "models": models, "share": share}


def reset(sock: socket.socket) -> None:
    """Closes it with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def post(body: object = None, path: str = "/v1/chat/completions", headers: str = "") -> bytes:
    data = json.dumps(body or {"model": "chat"}).encode()
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n{headers}\r\n".encode() + data

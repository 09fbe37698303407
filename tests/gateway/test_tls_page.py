"""The proxies of docs/tls.md as they stand there: each event of a stream comes through as it is sent, and a client is known by
its own address."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway.standalone import CHUNKED, LAST, Standalone, chunk, drain, key, post
from support import process
from support.wait import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "tls.md"
NAME = "llm.example.org"
SECRET = "the-key-of-alice-0"
PATIENCE = 60.0


def config(kind: str, folder: Path, port: int, gateway: int) -> list[str]:
    """Its command; what differs from the page: places of files, ports, and what a whole configuration needs around it."""
    found = re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found and found[1].count(":8088") == 1
    said = found[1].replace(":8088", f":{gateway}").replace("/etc/ssl/", f"{folder}/")
    if kind == "nginx":
        own = " ".join(
            f"{name}_temp_path {folder}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi", "client_body")
        )
        said = said.replace("listen 443 ", f"listen 127.0.0.1:{port} ")
        said = f"daemon off; pid {folder}/pid; error_log {folder}/error; events {{}} http {{ access_log off; {own} {said} }}"
        command = ["nginx", "-e", f"{folder}/error", "-c", f"{folder}/conf"]
    else:
        said = said.replace("bind :443 ", f"bind 127.0.0.1:{port} ")
        said = f"defaults\n    mode http\n    timeout connect 5s\n    timeout client 1h\n{said}"
        command = ["haproxy", "-db", "-f", f"{folder}/conf"]
    assert f"127.0.0.1:{port} " in said and f"127.0.0.1:{gateway}" in said
    (folder / "conf").write_text(said)
    return command


@contextmanager
def proxy(kind: str, folder: Path, gateway: int) -> Iterator[int]:
    (port,) = process.free_ports(1)
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
    made += ["-addext", f"subjectAltName=DNS:{NAME}", "-keyout", f"{folder}/{NAME}.key", "-out", f"{folder}/{NAME}.crt"]
    subprocess.run(made, check=True, capture_output=True)
    (folder / f"{NAME}.pem").write_text((folder / f"{NAME}.crt").read_text() + (folder / f"{NAME}.key").read_text())
    running = subprocess.Popen(config(kind, folder, port, gateway), stderr=(folder / "log").open("wb"))
    try:

        def up() -> bool:
            assert running.poll() is None, (folder / "log").read_text()
            return bool(process.listening(range(port, port + 1)))

        wait_until(up, PATIENCE, f"{kind} to listen")
        yield port
    finally:
        running.terminate()
        running.wait(PATIENCE)


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_a_stream_through_a_proxy(gateway: Standalone, tmp_path: Path, kind: str) -> None:
    if shutil.which(kind) is None or shutil.which("openssl") is None:
        pytest.skip(f"no {kind}, or no openssl to make a certificate")
    limits = {"hosts": [NAME], "trusted_proxies": ["127.0.0.1/32"]}
    gateway.apply(limits=limits, keys=[key("alice", SECRET)])
    turn = threading.Semaphore(0)

    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(CHUNKED)
        for number in range(3):
            sock.sendall(chunk(b"data: %d\n\n" % number))
            assert turn.acquire(timeout=PATIENCE)
        sock.sendall(LAST)

    gateway.engine.act = act
    with proxy(kind, tmp_path, gateway.port) as port:
        context = ssl.create_default_context(cafile=tmp_path / f"{NAME}.crt")

        def ask(request: bytes) -> ssl.SSLSocket:
            plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            sock = context.wrap_socket(plain, server_hostname=NAME)
            sock.sendall(request.replace(b"Host: localhost", f"Host: {NAME}".encode()))
            return sock

        with ask(post(headers="Connection: close\r\n")) as refused:
            assert b" 401 " in refused.recv(65536)
        got = b""
        with ask(
            post({"model": "chat", "stream": True}, headers=f"x-api-key: {SECRET}\r\nConnection: close\r\n")
        ) as sock:
            for number in range(3):
                while b"data: %d\n\n" % number not in got:
                    piece = sock.recv(65536)
                    assert piece, got
                    got += piece
                turn.release()
            got += drain(sock)
        assert got.startswith(b"HTTP/1.1 200 ") and got.endswith(b"0\r\n\r\n")
        scrape = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n{}Connection: close\r\n\r\n"
        for said, status in (("", b" 200 "), ("X-Forwarded-For: 192.0.2.7\r\n", b" 401 ")):
            with ask(scrape.format(said).encode()) as sock:
                assert status in sock.recv(65536), "of this machine; of where another trusted proxy says"
    assert len(gateway.engine.requests) == 1

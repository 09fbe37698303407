"""Faults of security that concern the gateway: S2–S6, S9, S13–S15 of the catalogue."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gateway.box import BODY, Box
from gateway.standalone import Answer, Engine, Standalone, drain, key, post, whole
from support import process
from support.daemon import Daemon
from support.http import request
from support.wait import wait_until

ALICE, BOB = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef"


def bearer(secret: str) -> str:
    return f"Authorization: Bearer {secret}\r\n"


# --- pages --------------------------------------------------------------------------------------------------------


def under(gateway: Standalone, host: str, more: str = "", method: str = "GET", path: str = "/v1/models") -> Answer:
    body = b'{"model": "chat"}' if method == "POST" else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return Answer(gateway.say(head.encode() + body))


def test_S2_a_name_that_was_bent_to_our_address(gateway: Standalone) -> None:
    """DNS rebinding: the page asks under its own name."""
    gateway.apply(limits={"hosts": ["box.example"]})
    for host in ("localhost", "LOCALHOST:8088", "127.0.0.1:8088", "[::1]:8088", "127.0.0.2", "box.example"):
        assert under(gateway, host).status == 200, host
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8088",
        "192.168.0.1",
        "box.example.a",
    ):
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/metrics")):
            answer = under(gateway, host, "", method, path)
            assert answer.status == 403 and answer.code == "host_not_allowed", host
    assert gateway.engine.requests == []


PAGES = ["Origin: https://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"]


@pytest.mark.parametrize("page", PAGES)
def test_S2_a_page_that_posts(gateway: Standalone, page: str) -> None:
    """Also without a preflight, which text/plain needs none of."""
    gateway.apply(limits={"origins": ["https://page.example"]})
    answer = under(gateway, "localhost", page + "Content-Type: text/plain\r\n", "POST", "/v1/chat/completions")
    assert answer.status == 403 and "Access-Control-Allow-Origin" not in answer.headers
    assert gateway.engine.requests == []


def test_S2_a_page_that_may(gateway: Standalone) -> None:
    """Its browser hands it the answer of an engine, and a refusal."""
    gateway.apply(limits={"origins": ["https://page.example"]})
    origin = "Origin: https://page.example\r\n"
    for body in ({"model": "chat"}, {"model": "nobody"}):
        answer = gateway.ask(body, headers=origin)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example", answer.status
        assert "Origin" in answer.headers["Vary"]
    assert len(gateway.engine.requests) == 1


# --- keys ---------------------------------------------------------------------------------------------------------


def test_S3_no_open_door(daemon: Daemon) -> None:
    """An address that others reach, without keys: refused before anything is listened on."""
    box = Box(daemon)
    port = process.free_ports(1)[0]
    for gateway, code in (
        ({"listen": f"0.0.0.0:{port}"}, 3),
        ({"listen": f"[::]:{port}"}, 3),
        ({"listen": f"0.0.0.0:{port}", "allow_unauthenticated": True}, 0),
    ):
        daemon.write({"chat": box.service()}, gateway=gateway)
        done = daemon.cli("check", "-c", str(daemon.spec_path))
        assert done.returncode == code, done.stderr + done.stdout
    daemon.write({"chat": box.service()}, gateway={"listen": f"0.0.0.0:{port}"})
    daemon.launch()
    assert daemon.wait_exit() == 3 and "allow_unauthenticated" in daemon.told()


def test_S3_a_key_opens_and_nothing_else_does(gateway: Standalone) -> None:
    gateway.apply(keys=[key("alice", ALICE, ["chat"]), key("bob", BOB)])
    assert gateway.ask(headers=bearer(ALICE)).status == gateway.ask(headers=f"X-Api-Key: {BOB}\r\n").status == 200
    for wrong in (
        "",
        bearer(""),
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        bearer("engine-key"),
        f"Cookie: {ALICE}\r\n",
    ):
        answer = gateway.ask(headers=wrong)
        assert answer.status == 401 and answer.code == "invalid_api_key" and "WWW-Authenticate" in answer.headers
    assert gateway.ask(path=f"/v1/chat/completions?key={ALICE}").status == 401
    answer = gateway.ask({"model": "smollm2"}, headers=bearer(ALICE))
    assert answer.status == 403 and answer.code == "model_not_allowed"
    assert gateway.ask({"model": "smollm2"}, headers=bearer(BOB)).status == 200
    assert gateway.get("/v1/models").status == 401
    assert [m["id"] for m in gateway.get("/v1/models", bearer(ALICE)).json["data"]] == ["chat"]
    assert gateway.get("/healthz").status == 200
    assert len(gateway.engine.requests) == 3
    assert not any(secret.encode() in sent for sent in gateway.engine.requests for secret in (ALICE, BOB))


@pytest.mark.parametrize("key_", ["Model", "MODEL", "Keep_Alive", "\u212aeep_alive", "option\u017f"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_S3_a_key_in_other_letters_is_no_way_around(gateway: Standalone, key_: str, path: str) -> None:
    """Go reads them, and two more letters that fold to k and s; an engine of exact keys may have its own."""
    gateway.apply(traits={"routes": {"/api/chat": "api.chat", "/v1/chat/completions": "chat.completions"}})
    answer = gateway.ask({"model": "chat", key_: "other"}, path)
    assert answer.status == 400 and key_.casefold() in str(answer.json) and gateway.engine.requests == []
    assert gateway.ask({"model": "chat", "options": {"Any": 1}}, path).status == 200
    gateway.apply()
    assert gateway.ask({"model": "chat", key_: "other"}).status == 200


def test_S3_who_asks_before_the_first_view_is_asked_for_a_key_too(short_folder: Path) -> None:
    """Until then nobody knows that keys are needed."""
    gateway = Standalone(short_folder, Engine())
    try:
        assert gateway.hello["generation"] == 0
        assert gateway.get("/healthz").status == 200 and gateway.get("/v1/models").status == 503
        with gateway.client() as stranger, gateway.client() as alice:
            stranger.sendall(post(headers="Connection: close\r\n"))
            alice.sendall(post(headers=bearer(ALICE) + "Connection: close\r\n"))
            gateway.apply(keys=[key("alice", ALICE)])
            assert Answer(drain(stranger)).status == 401 and Answer(drain(alice)).status == 200
        assert len(gateway.engine.requests) == 1
    finally:
        gateway.close()


def test_S3_keys_are_live(gateway: Standalone) -> None:
    """A key that is taken away is refused at the next request of a connection that had it."""
    gateway.apply(keys=[key("alice", ALICE)])
    with gateway.client() as sock:
        sock.sendall(post(headers=bearer(ALICE)))
        assert sock.recv(65536).split()[1] == b"200"
        gateway.apply(keys=[key("bob", BOB)])
        sock.sendall(post(headers=bearer(ALICE)))
        assert sock.recv(65536).split()[1] == b"401"
        gateway.apply(keys=[key("alice", "")])
        sock.sendall(post(headers=bearer("")))
        assert sock.recv(65536).split()[1] == b"401"


NAMES = [
    "../../etc/passwd",
    "..%2f..%2fetc",
    "/etc/passwd",
    "a\0b",
    "chat\0",
    "chat/../x",
    "\u202echat",
    "é" * 300,
    "\x1b[31m",
]


@pytest.mark.parametrize("name", NAMES)
def test_S4_names_that_are_paths(shared: Standalone, name: str) -> None:
    """Looked up, never joined; told without what a terminal obeys."""

    def files() -> list[str]:
        """Without the records, which another thread opens in its own time."""
        return sorted(name for name in os.listdir(shared.folder) if not name.startswith("requests.db"))

    before = files()
    answer = shared.ask({"model": name})
    assert answer.status == 404 and answer.code == "model_not_found"
    assert b"\x1b" not in answer.data and b"\0" not in answer.data and len(answer.data) < 4096
    assert files() == before and shared.engine.requests == []


@pytest.mark.parametrize("path", ["/%2e%2e/x", "/v1/%6dodels", "/v1//models", "/v1/models%00", "/v1/models;a", "/\xff"])
def test_S4_paths_are_compared_as_they_are(shared: Standalone, path: str) -> None:
    answer = Answer(shared.say(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1")))
    assert answer.status in (400, 404) and b"\xff" not in answer.data


def test_S5_S6_S9_no_secret_and_no_prompt_anywhere(daemon: Daemon) -> None:
    """In no file, command line, status, record or metric: not after answers, aborts, refusals and a crash."""
    box = Box(daemon)
    canary, made_up = "PROMPT-CANARY-4711", "sk-made-up-0123456789abcdef"
    files = {"alice": daemon.folder / "alice.key", "bob": daemon.folder / "bob.key"}
    for name, secret in (("alice", ALICE), ("bob", BOB)):
        files[name].write_text(secret + "\n")
        files[name].chmod(0o600)
    box.write(gateway={"keys": {name: {"file": str(path)} for name, path in files.items()}}, token_ms=5)
    daemon.up()
    daemon.wait_state("chat", "READY")
    wait_until(lambda: request(f"{box.url}/readyz")[0] == 200, 15, "the gateway to be open")
    engine_key = daemon.key("chat")
    said = {"messages": [{"role": "system", "content": f"You are {canary}."}, {"role": "user", "content": canary}]}
    for secret in (ALICE, made_up):
        for more in ({}, {"stream": True}, {"model": "nobody"}, {"max_tokens": canary}, {"user": "session"}):
            request(box.chat_url, BODY | said | more, secret)
    with box.stream(1000, secret=BOB, **said):
        os.kill(daemon.service("chat")["pid"], signal.SIGSEGV)
        daemon.wait_service("chat", lambda s: s["state"] == "READY" and s["restarts"] == 1, 30)
    os.kill(box.gateway()["pid"], signal.SIGKILL)
    box.gateway()

    secrets = {ALICE, BOB, made_up, canary, engine_key, daemon.key("chat")}
    told = [daemon.cli(*words).stdout for words in (["status", "--json"], ["plan", "--json"], ["events", "--json"])]
    told += [daemon.cli("requests", "--json", "-n", "1000").stdout, request(f"{box.url}/metrics")[1].decode()]
    assert all(told), "each says something"
    commands = [*process.inside(daemon.folder).values()]
    assert len(commands) >= 3
    for text in [*told, *commands]:
        assert not [secret for secret in secrets if secret in text], text[:2000]
    known = {*files.values(), daemon.run_folder("chat") / "secrets"}
    view = daemon.run / "gateway" / "view.json"
    views = (view, view.with_suffix(".tmp"))
    for path in daemon.folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
            if path.is_file() and path not in known:
                found = [secret for secret in secrets if secret.encode() in path.read_bytes()]
                assert not found or (path in views and not {ALICE, BOB, made_up, canary} & {*found}), (path, found)
                if path.name.startswith("requests.db"):
                    assert path.stat().st_mode & 0o077 == 0
    assert view.stat().st_mode & 0o077 == 0


# --- headers, metrics, shares -------------------------------------------------------------------------------------


def test_S13_no_header_of_a_client_becomes_one_of_ours(gateway: Standalone) -> None:
    odd = [
        "Authorization: Bearer theirs\r\n",
        "X-Api-Key: theirs\r\n",
        "X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\nX-Real-Ip: 127.0.0.1\r\n",
        "Proxy-Authorization: theirs\r\nCookie: theirs\r\n",
        "X-Request-Id: a\tb\r\n",
        "Accept-Encoding: gzip\r\nAccept-Encoding: br\r\n",
        "Transfer-Encoding: \r\n",
    ]
    for headers in odd:
        gateway.ask(headers=headers)
    for sent in gateway.engine.requests:
        lines = sent.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        names = [line.partition(b":")[0].lower() for line in lines]
        assert len(set(names)) == len(names), "each once"
        assert names.count(b"authorization") == 1 and b"Bearer engine-key" in sent
        assert not {b"x-forwarded-for", b"forwarded", b"x-real-ip", b"cookie", b"x-api-key"} & set(names)
        assert b"theirs" not in sent and b"gzip" not in sent


def test_S13_an_address_is_believed_of_a_trusted_proxy_only(gateway: Standalone) -> None:
    """/metrics is for this machine: the proxy's word counts, a stranger's does not."""
    assert gateway.get("/metrics").status == 200
    gateway.apply(limits={"trusted_proxies": ["127.0.0.0/8"]})
    assert gateway.get("/metrics", "X-Forwarded-For: 8.8.8.8\r\n").status == 403
    assert gateway.get("/metrics", "X-Forwarded-For: 127.0.0.1, 8.8.8.8\r\n").status == 403
    gateway.apply(limits={"trusted_proxies": ["10.0.0.0/8"]})
    assert gateway.get("/metrics", "X-Forwarded-For: 127.0.0.1\r\n").status == 403


def test_S14_who_may_scrape(gateway: Standalone) -> None:
    keys = [key("alice", ALICE)]
    for scrape, bare, with_key in (("loopback", 200, 200), ("keys", 401, 200), ("all", 200, 200)):
        gateway.apply(keys=keys, limits={"scrape": scrape})
        assert gateway.get("/metrics").status == bare
        assert gateway.get("/metrics", bearer(ALICE)).status == with_key


def test_S14_clients_cannot_make_series(gateway: Standalone) -> None:
    """Names of models, keys, paths and methods that nobody configured are no labels."""

    def series() -> set[str]:
        lines = gateway.get("/metrics").body.decode().splitlines()
        return {line.rpartition(" ")[0] for line in lines if line and not line.startswith("#")}

    gateway.apply(keys=[key("alice", ALICE)])
    for i in range(2):
        gateway.ask({"model": f"warm-{i}"}, headers=bearer(ALICE))
        gateway.ask(headers=bearer(f"warm-{i}"))
        gateway.ask(headers=bearer(ALICE))
        gateway.get(f"/warm-{i}")
    before = series()
    assert any("llmsupervisor_requests_total" in name for name in before)
    for i in range(40):
        gateway.ask({"model": f"canary-{i}", "user": f"canary-{i}"}, headers=bearer(ALICE))
        gateway.ask(headers=bearer(f"canary-{i}"))
        gateway.get(f"/canary-{i}")
        gateway.ask(headers=bearer(ALICE) + f"X-Request-Id: canary-{i}\r\nUser-Agent: canary-{i}\r\n")
    assert series() == before and not any("canary" in name or ALICE in name for name in before)


def herd(gateway: Standalone, pool: ThreadPoolExecutor, secrets: list[str]) -> list[str]:
    """Keys in the order in which they were served."""
    order: list[str] = []

    def act(sock: object, request: bytes) -> bytes:
        order.append(json.loads(request.partition(b"\r\n\r\n")[2])["user"])
        return whole(b"{}")

    gateway.engine.act = act
    body = {"model": "chat", "prompt": "x" * 8192}
    asked = [pool.submit(gateway.ask, {**body, "user": s}, headers=bearer(s)) for s in secrets]
    wait_until(lambda: gateway.queued() == len(secrets), 10, "all of them to wait")
    gateway.apply(parallel=1, keys=KEYS)
    assert {each.result().status for each in asked} == {200}
    return order


KEYS = [key("alice", ALICE, share=3.0), key("bob", BOB, share=1.0)]


def test_S15_shares(gateway: Standalone) -> None:
    """Three to one while both want, whoever has more connections."""
    gateway.apply(state="hold", keys=KEYS, parallel=1)
    with ThreadPoolExecutor(200) as pool:
        order = herd(gateway, pool, [ALICE] * 60 + [BOB] * 140)
    first = order[:60]
    assert 38 <= first.count(ALICE) <= 52, first.count(ALICE)


def test_S15_one_key_cannot_take_all_the_room(gateway: Standalone) -> None:
    limits = {"queue_size": 20, "queue_deadline_s": 100}
    gateway.apply(state="hold", keys=KEYS, limits=limits)
    with ThreadPoolExecutor(60) as pool:
        greedy = [pool.submit(gateway.ask, headers=bearer(ALICE)) for _ in range(40)]
        wait_until(lambda: sum(each.done() for each in greedy) == 20, 10, "the queue to be full")
        assert {each.result().code for each in greedy if each.done()} == {"queue_full"}
        other = pool.submit(gateway.ask, headers=bearer(BOB))
        threading.Event().wait(0.2)
        gateway.apply(keys=KEYS, limits=limits)
        assert other.result().status == 200
        assert sum(each.result().status == 200 for each in greedy) >= 19

"""Loaded on demand, unloaded when idle, and swapped on one GPU: real daemon, real gateway, fake engines, NVML played."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gateway.box import BODY, Answer, Box
from support import nvml, process
from support.daemon import Daemon
from support.gguf_files import decoder, write
from support.http import get_json, post_json, request
from support.journal import starts
from support.spec import fake
from support.wait import undisturbed, wait_until

pytestmark = pytest.mark.slow

Json = dict[str, Any]
GIB = 1024
"""In MiB."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Box]:
    box = Box(daemon)
    yield box
    daemon.down() if daemon.process and daemon.process.poll() is None else daemon.close()
    port = int(box.listen.rpartition(":")[2])
    assert not process.listening(range(port, port + 1)), "the gateway's port is still listened on"


class Swap:
    """Services on one card of 12 GiB."""

    def __init__(self, box: Box, library: Path) -> None:
        self.box, self.daemon = box, box.daemon
        self.scenario = box.daemon.folder / "scenario"
        box.daemon.environ |= {"LD_LIBRARY_PATH": str(library), "NVML_SCENARIO": str(self.scenario)}
        self.card: nvml.Card | None = None

    def up(self, sizes: dict[str, int], listed: bool = True, **services: Json) -> None:
        """Every service that is not said otherwise waits for a demand, may be unloaded, and says no size."""
        folder = self.daemon.run / "services"
        self.card = nvml.Card(folder, self.scenario, 12 * GIB, sizes, listed)
        self.box.write({name: self.service(**services.get(name, {})) for name in sizes})
        self.daemon.up()
        self.box.gateway()

    def service(self, knobs: Json | None = None, **settings: Any) -> Json:
        settings = {"gpus": [0], "start": "demand", "keep_alive": "10m"} | settings
        knobs = {"token_ms": 2, "ready_after": 0.3} | (knobs or {})
        model = settings.pop("model", self.daemon.folder / "model.gguf")
        return fake(model, self.daemon.journal, knobs, **settings)

    def ask(self, model: str, **changes: Any) -> int:
        status, body = request(self.box.chat_url, BODY | {"model": model} | changes)
        assert status == 200, body
        return status

    def state(self, name: str) -> str:
        return str(self.daemon.service(name)["state"])

    def starts(self, name: str) -> int:
        return len(starts(self.daemon.journal, name))


@pytest.fixture
def swap(box: Box, library: Path) -> Iterator[Swap]:
    swap = Swap(box, library)
    yield swap
    if box.daemon.process and box.daemon.process.poll() is None:
        box.daemon.down()
    if swap.card:
        swap.card.close()


# --- demand -------------------------------------------------------------------------------------------------------


def queued(daemon: Daemon) -> object:
    return daemon.service("chat")["targets"][0]["requests_queued"]


@pytest.mark.timeout(400)
def test_a_thousand_requests_wait_for_one_load(box: Box) -> None:
    daemon = box.daemon
    knobs = {"ready_after": 600, "token_ms": 0}
    chat = fake(daemon.folder / "model.gguf", daemon.journal, knobs, start="demand", parallel=16)
    box.write({"chat": chat}, gateway={"queue_deadline": "5m"})
    daemon.up()
    box.gateway()
    assert daemon.wait_state("chat", "IDLE")["pid"] is None
    host, _, port = box.listen.rpartition(":")
    body = json.dumps(BODY | {"max_tokens": 1}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {box.listen}\r\nContent-Length: {len(body)}\r\n"

    async def one() -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        return answer.partition(b"\r\n")[0]

    async def all_of_them() -> set[bytes]:
        async with asyncio.timeout(250):
            return set(await asyncio.gather(*(one() for _ in range(1000))))

    with ThreadPoolExecutor() as pool:
        answers = pool.submit(asyncio.run, all_of_them())
        wait_until(lambda: queued(daemon) == 1000, 100, lambda: f"1000 in the queue, not {queued(daemon)}")
        assert daemon.service("chat")["state"] == "STARTING"
        post_json(f"{daemon.service('chat')['endpoint']}/fault", {"ready_after": 0})
        assert {line.split()[1] for line in answers.result()} == {b"200"}
    assert len(starts(daemon.journal)) == 1
    assert daemon.service("chat")["restarts"] == 0
    wait_until(lambda: queued(daemon) == 0, 5, "an empty queue")


def test_who_waited_has_gone_and_nothing_is_loaded(swap: Swap) -> None:
    """The card is full of what may not be unloaded: a service waits for memory, and then nobody waits for it."""
    swap.up({"big": 10 * GIB, "late": 8 * GIB}, big={"keep_alive": "forever"}, late={"gpu_memory": "8GiB"})
    swap.ask("big")
    with contextlib.closing(http.client.HTTPConnection(swap.box.listen)) as waiting:
        waiting.request("POST", "/v1/chat/completions", json.dumps(BODY | {"model": "late"}))
        reason = "waits for 8.0 GiB on GPU 0, 1.5 GiB free; nothing there may be unloaded"
        swap.daemon.wait_service("late", lambda s: s["reason"] == reason, 10, reason)
    swap.daemon.wait_service("late", lambda s: s["state"] == "IDLE", 15, "withdrawn")
    assert swap.state("big") == "READY" and swap.starts("late") == 0


# --- keep_alive ---------------------------------------------------------------------------------------------------


def test_idle_for_keep_alive(box: Box) -> None:
    daemon = box.daemon
    box.write({"chat": fake(daemon.folder / "model.gguf", daemon.journal, {"token_ms": 10}, keep_alive="3s")})
    daemon.up()
    box.ready()
    with box.stream(700) as stream:  # twice keep_alive
        looks = [time.time()]
        while stream.response.readline():
            looks.append(time.time())
    began, ended = looks[0], looks[-20]  # a little earlier: whatever held this process up is no time of the service
    daemon.wait_service("chat", lambda s: s["pid"] is None, 15)
    daemon.wait_state("chat", "IDLE")
    unloads = daemon.events(service="chat", to="DRAINING")
    assert {each["reason"] for each in unloads} == {"idle for 3s"}
    assert ended - began > 5 and not [each for each in unloads if began < each["time"] < ended + 2], unloads
    loads = len(starts(daemon.journal))
    assert daemon.service("chat")["restarts"] == loads - 1

    daemon.restart()
    box.gateway()
    daemon.wait_state("chat", "IDLE")
    assert len(starts(daemon.journal)) == loads, "our own restart loads nothing that was unloaded"
    assert box.post()[0] == 200
    assert len(starts(daemon.journal)) == loads + 1


def test_the_time_of_an_earlier_daemon_counts(box: Box) -> None:
    daemon = box.daemon
    box.write({"chat": fake(daemon.folder / "model.gguf", keep_alive="20s")})
    daemon.up()
    box.ready()

    def when(state: str) -> float:
        events = wait_until(lambda: daemon.events(service="chat", kind="state", to=state), 10, state)
        return float(events[0]["time"])

    ready = when("READY")
    daemon.restart()
    wait_until(lambda: time.time() > ready + 15, 40, "most of keep_alive")
    restarted = time.time()
    daemon.restart()
    box.gateway()
    daemon.wait_service("chat", lambda s: s["pid"] is None, 40)
    assert when("DRAINING") - restarted < 19.5 and when("DRAINING") - ready > 19


def test_without_a_gateway_they_say_that_they_have_no_effect(daemon: Daemon) -> None:
    daemon.write({"chat": fake(daemon.folder / "model.gguf", keep_alive="1s", start="demand")})
    daemon.up()
    found = daemon.wait_service("chat", lambda s: len(s["conditions"]) == 2, 10)
    texts = {c["id"]: c["text"] for c in found["conditions"]}
    assert "add [gateway] to the spec" in texts["keep-alive"]
    assert "llmsupervisor start chat" in texts["demand"]
    daemon.call("start", service="chat", by="test", wait=False)
    daemon.wait_state("chat", "READY")


# --- room ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [True, False], ids=["pids", "container"])
def test_an_idle_service_makes_room_and_comes_back(swap: Swap, listed: bool) -> None:
    """What a start needs is learned: nothing in the spec says it."""
    sizes = {"a": 8 * GIB, "b": 7 * GIB, "small": 1 * GIB}
    swap.up(sizes, listed, b={"gpu_memory": "7GiB"})
    swap.ask("small")
    swap.daemon.wait_service("small", lambda s: s["vram_bytes"] == 1024**3, 30, "its memory")
    swap.ask("a")
    held = swap.daemon.wait_service("a", lambda s: s["vram_bytes"], 30, "its memory")["vram_bytes"]
    assert held == 8 * 1024**3
    swap.ask("b")
    assert (swap.state("a"), swap.state("b"), swap.state("small")) == ("IDLE", "READY", "READY")
    wanted = [e["reason"] for e in swap.daemon.events(service="b", to="PENDING")]
    assert "waits for 7.0 GiB on GPU 0, 2.5 GiB free; asks a to unload" in wanted
    assert [e["reason"] for e in swap.daemon.events(service="a", to="DRAINING")] == ["makes room for b"]
    swap.ask("a")
    assert (swap.state("a"), swap.state("b"), swap.starts("small")) == ("READY", "IDLE", 1)
    assert any("waits for 8.0 GiB on GPU 0" in e["reason"] for e in swap.daemon.events(service="a", to="PENDING"))
    assert (swap.starts("a"), swap.starts("b")) == (2, 1)


def test_what_a_start_needs_is_known_before_it_was_ever_made(swap: Swap, tmp_path: Path) -> None:
    """From the header of its model: the plan's sum decides who goes, and that nothing is tried that never fits."""
    shape = decoder(layers=32, heads=8, heads_kv=8, head=512)
    model = write(shape, tmp_path / "shape.gguf")
    known = {"model": model, "context_length": 8192, "kv_cache_type": "f16"}
    wide = known | {"context_length": 131072, "start": "boot"}
    swap.up({"a": 9 * GIB, "b": 9 * GIB, "wide": 1}, a=known, b=known, wide=wide)
    never = swap.daemon.wait_state("wide", "PENDING")["reason"]
    assert (
        "KV cache 128.0 GiB" in never
        and "on GPU 0, and may take 11.5 GiB (all that there is); context_length = " in never
    )
    swap.ask("a")
    swap.ask("b")
    assert (swap.state("a"), swap.state("b"), swap.starts("b"), swap.starts("wide")) == ("IDLE", "READY", 1, 0)
    waited = [e["reason"] for e in swap.daemon.events(service="b", to="PENDING") if "KV cache 8.0 GiB" in e["reason"]]
    assert any("on GPU 0, 2.5 GiB free; asks a to unload" in reason for reason in waited), waited


def test_who_did_not_find_enough_memory_gets_room(swap: Swap) -> None:
    """Nobody knows what `b` needs: its first start finds too little, `a` goes, its second succeeds. No request fails."""
    swap.up({"a": 8 * GIB, "b": 8 * GIB}, b={"knobs": {"oom": 1, "times": 1}})
    swap.ask("a")
    swap.ask("b")
    assert (swap.state("a"), swap.state("b"), swap.starts("b")) == ("IDLE", "READY", 2)
    assert "waits" not in swap.daemon.service("b")["reason"]


def test_a_running_request_ends_before_its_service_goes(swap: Swap) -> None:
    """A busy service gives way after the fair wait; what runs there ends, and what comes meanwhile waits and is served."""
    size = {"gpu_memory": "8GiB"}
    swap.up({"a": 8 * GIB, "b": 8 * GIB}, a={**size, "knobs": {"token_ms": 20}}, b=size)
    swap.ask("a")
    listen = swap.box.listen
    with Answer(listen, BODY | {"model": "a", "max_tokens": 2000, "stream": True}) as running:  # 20 s: `a` keeps 10
        running.first()
        answered: list[str] = []
        with ThreadPoolExecutor() as pool:
            began = time.monotonic()
            other = pool.submit(swap.ask, "b")
            other.add_done_callback(lambda _: answered.append("b"))
            swap.daemon.wait_service("b", lambda s: "gives way after 5s" in s["reason"], 10)
            swap.daemon.wait_state("a", "DRAINING", 20)
            assert time.monotonic() - began > 5
            late = pool.submit(swap.ask, "a")
            late.add_done_callback(lambda _: answered.append("a"))
            assert running.rest().rstrip().endswith(b"data: [DONE]")
            assert other.result() == late.result() == 200
        assert answered == ["b", "a"]
    assert (swap.starts("a"), swap.starts("b")) == (2, 1)


def test_two_busy_services_share_a_gpu_and_nobody_starves(swap: Swap) -> None:
    """Both asked without a pause: each is served, none is thrown out before its time, no request fails."""
    # Who does not ask for as long as a load takes counts as idle: a load that no stall of the machine reaches.
    size = {"gpu_memory": "8GiB", "drain_timeout": "10s", "knobs": {"ready_after": 3}}
    swap.up({"a": 8 * GIB, "b": 8 * GIB}, a=size, b=size)
    until, ended, longest = time.monotonic() + 40, time.time() + 40, {"a": 0.0, "b": 0.0}
    lock = threading.Lock()

    def client(model: str) -> int:
        n = 0
        while (began := time.monotonic()) < until:
            swap.ask(model, max_tokens=50)
            n += 1
            with lock:
                longest[model] = max(longest[model], time.monotonic() - began)
        return n

    with ThreadPoolExecutor() as pool:
        served: list[Future[int]] = [pool.submit(client, model) for model in "aabb"]
        counts = [each.result() for each in served]
    assert min(counts) > 20, f"{counts} requests, the longest {longest}"
    loads = swap.starts("a") + swap.starts("b")
    assert 3 <= loads <= 2 + (time.monotonic() - until + 40) / 10
    events = swap.daemon.events(kind="state")
    handovers = [0.0]
    for began in (e["time"] for e in events if e["to"] == "DRAINING"):
        handovers += [next((e["time"] for e in events if e["to"] == "READY" and e["time"] > began), began) - began]
    told = f"READY for 10 s, a drain and a load, {handovers}, and the machine's own pace: {longest}"
    assert max(longest.values()) < 10 + max(handovers) + 8, told
    for name in "ab":
        turns = [e for e in events if e["service"] == name and e["to"] in ("READY", "DRAINING")]
        for ready, draining in itertools.pairwise(turns):
            if ready["to"] == "READY" and draining["to"] == "DRAINING" and draining["time"] < ended:
                assert draining["time"] - ready["time"] > 9.9


# --- figures ------------------------------------------------------------------------------------------------------


def test_what_the_daemon_knows_is_in_the_gateways_metrics(swap: Swap) -> None:
    swap.up({"a": 8 * GIB, "b": 8 * GIB}, b={"gpu_memory": "8GiB"})
    swap.ask("a")
    swap.daemon.wait_service("a", lambda s: s["vram_bytes"], 30, "its memory")

    def told() -> dict[str, float]:
        lines = request(f"{swap.box.url}/metrics")[1].decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}

    held = 'llmsupervisor_process_gpu_memory_bytes{service="a",gpu="0",uuid="GPU-a",part="total"}'
    found = wait_until(lambda: found if held in (found := told()) else None, 15, lambda: f"{held} in {told()}")
    assert found
    state = "llmsupervisor_service_state"
    assert found[f'{state}{{service="a",state="READY"}}'] == 1 and found[f'{state}{{service="b",state="READY"}}'] == 0
    assert found[f'{state}{{service="b",state="IDLE"}}'] == 1
    assert found[held] == found['llmsupervisor_gpu_memory_used_bytes{gpu="0",uuid="GPU-a"}'] == 8 * 1024**3
    assert found['llmsupervisor_gpu_memory_other_bytes{gpu="0",uuid="GPU-a"}'] == 0
    assert found["llmsupervisor_up"] == 1 and any(
        name.startswith("llmsupervisor_build_info{version=") for name in found
    )
    assert 0.3 <= found['llmsupervisor_service_load_seconds{service="a"}'] < 100
    assert found['llmsupervisor_service_start_time_seconds{service="a"}'] > 1e9
    assert 'llmsupervisor_service_start_time_seconds{service="b"}' not in found

    swap.ask("b")
    swap.ask("a")
    again = 'llmsupervisor_service_restarts_total{service="a",cause="demand"}'
    wait_until(lambda: told().get(again) == 1, 15, lambda: f"{again} in {told()}")


def test_P6_a_long_prefill_is_not_even_suspected(box: Box) -> None:
    """Seven times `stall_timeout` without a token: the prompt that is in flight explains it, and no probe is sent."""
    daemon = box.daemon
    chat = fake(daemon.folder / "model.gguf", context_length=8192, probe={"timeout": "10s", "stall_timeout": "1s"})
    box.write({"chat": chat})
    daemon.up()
    before = box.ready()
    key = daemon.key("chat")
    request(f"{before['endpoint']}/fault", {"prompt_ms": 500}, key)
    long = {"messages": [{"role": "user", "content": "x" * 2000}], "max_tokens": 2}

    def calls() -> int:
        found: int = get_json(f"{before['endpoint']}/fault", key)["calls"]["/v1/chat/completions"]
        return found

    def alone() -> None:
        seen = calls()
        assert box.post(**long)[0] == 200
        assert calls() == seen + 1

    assert calls() == 1, "the first request of the start"
    undisturbed(alone)
    assert daemon.service("chat")["pid"] == before["pid"]

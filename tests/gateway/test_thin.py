"""One real daemon, its gateway and services behind it: a request passes, and no death refuses one."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gateway.box import BODY, Box, listens, no_connection_refused
from support import process
from support.daemon import Daemon
from support.http import answer_of, get_json, post_json, request
from support.spec import fake, served
from support.wait import Spent, wait_until

from llmsupervisor import __version__

Json = dict[str, Any]


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Box]:
    box = Box(daemon)
    yield box
    daemon.down() if daemon.process and daemon.process.poll() is None else daemon.close()
    port = int(box.listen.rpartition(":")[2])
    assert not process.listening(range(port, port + 1)), "the gateway's port is still listened on"


# --- a request ----------------------------------------------------------------------------------------------------


def test_a_request_passes(box: Box) -> None:
    service = box.up()
    body = {**BODY, "temperature": 0}
    direct = post_json(f"{service['endpoint']}/v1/chat/completions", body, box.daemon.key("chat"))
    through = post_json(box.chat_url, body)
    assert through["choices"] == direct["choices"] and through["usage"] == direct["usage"]
    with box.stream(5) as stream:
        assert stream.rest().rstrip().endswith(b"data: [DONE]")
    assert box.post(model="smollm2")[0] == 200

    assert [m["id"] for m in get_json(f"{box.url}/v1/models")["data"]] == ["chat", "smollm2"]
    status, body = box.post(model="gpt-4")
    assert status == 404 and "chat, smollm2" in body["error"]["message"]
    assert body["error"]["code"] == "model_not_found"
    assert request(f"{box.url}/slots")[0] == 404 and request(f"{box.url}/fault")[0] == 404
    assert "gateway" in box.daemon.cli("status").stdout


def test_who_is_late_while_it_loads_hears_when_that_is_over(box: Box) -> None:
    """By the load before, which an earlier daemon saw."""
    box.up()
    box.daemon.down()
    kept = box.daemon.state / "desired.json"
    desired = json.loads(kept.read_text())
    assert 0 < desired["services"]["chat"]["load_s"] < 60
    desired["services"]["chat"]["load_s"] = 900.0
    kept.write_text(json.dumps(desired))
    box.write(gateway={"queue_deadline": "1s"}, ready_after=300)
    box.daemon.up()
    box.gateway()
    box.daemon.wait_state("chat", "STARTING")

    def rest() -> int:
        status, seconds, text = answer_of(box.chat_url, BODY)
        assert status == 503 and "queue_timeout" in text
        return seconds or 0

    wait_until(lambda: 600 < rest() < 900, 20, "what is left of its load")


def test_without_a_gateway_table_there_is_none(box: Box) -> None:
    box.daemon.write({"chat": box.service()})
    box.daemon.up()
    box.daemon.wait_state("chat", "READY")
    assert box.daemon.status()["gateway"] is None and not (box.daemon.run / "gateway").exists()


def test_one_name_for_two_services_and_the_death_of_one(box: Box) -> None:
    model = box.daemon.folder / "model.gguf"
    box.write({name: fake(model, aliases=["both"], restart={"policy": "never"}) for name in ("chat", "other")})
    box.daemon.up()
    other = box.daemon.wait_state("other", "READY")
    box.ready()
    wait_until(lambda: [m["state"] for m in get_json(f"{box.url}/v1/models")["data"]] == ["open"] * 3, 5, "both open")
    os.kill(other["pid"], signal.SIGKILL)
    box.daemon.wait_service("other", lambda s: s["pid"] is None, 10)
    assert all(box.post(model="both")[0] == 200 for _ in range(4))

    def told() -> str:
        status, body = box.post(model="other")
        assert status == 503
        return str(body["error"]["message"])

    wait_until(lambda: "SIGKILL" in told(), 10, lambda: f"the reason: {told()}")


def test_a_service_that_failed_says_when_it_is_tried_again(box: Box) -> None:
    restart = {"policy": "always", "burst": 1, "window": "10m", "max_delay": "1s"}
    box.write({"chat": box.service(exit_after=0, code=1) | {"restart": restart}})
    box.daemon.up()
    at = box.daemon.wait_state("chat", "FAILED", 60)["retry_at"]
    box.gateway()
    before = time.time()
    status, seconds, text = answer_of(box.chat_url, BODY)
    assert status == 503 and "chat: FAILED" in text and seconds is not None
    assert before - 3 <= at - seconds <= time.time() + 1


# --- deaths -------------------------------------------------------------------------------------------------------


def test_kill_9_of_the_gateway(box: Box) -> None:
    box.up()
    before = box.gateway()
    with no_connection_refused(box.listen):
        for _ in range(3):
            pid = box.gateway()["pid"]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: box.daemon.status()["gateway"]["pid"] != pid, 10, "the next gateway")
            assert box.post()[0] == 200
    after = box.gateway()
    assert after["pid"] != before["pid"] and after["listen"] == before["listen"]
    assert "gateway" not in box.conditions()
    events = lambda: [e for e in box.daemon.events(kind="condition", id="gateway") if e["on"]]  # noqa: E731
    assert "SIGKILL" in wait_until(events, 10, "the deaths on record")[0]["text"]
    assert box.daemon.service("chat")["restarts"] == 0


def test_kill_9_of_the_gateway_without_a_daemon(box: Box) -> None:
    """The view on disk is enough."""
    box.up()
    pid = box.gateway()["pid"]
    box.daemon.kill9()
    with no_connection_refused(box.listen):
        os.kill(pid, signal.SIGKILL)
        assert box.post()[0] == 200
    box.daemon.restart()
    assert box.gateway()["pid"] != pid


def test_kill_9_of_the_daemon(box: Box) -> None:
    box.up(token_ms=5)
    before, generation = box.gateway(), box.hello()["generation"]
    with box.stream(400) as stream:
        box.daemon.kill9()
        assert box.post()[0] == 200
        box.daemon.restart()
        assert box.gateway() == before
        wait_until(lambda: box.hello()["generation"] > generation, 5, "a view of the next daemon")
        assert stream.rest().rstrip().endswith(b"data: [DONE]")
    assert box.post()[0] == 200
    assert box.daemon.service("chat")["restarts"] == 0


def test_the_gateway_of_another_version_is_told(box: Box) -> None:
    """Of a daemon that was upgraded meanwhile; it ends with the difference."""
    box.up()
    pid = box.gateway()["pid"]
    later = box.daemon.folder / "later"
    later.mkdir()
    (later / "sitecustomize.py").write_text("import llmsupervisor\nllmsupervisor.__version__ = '9.9.9'\n")
    box.daemon.environ["PYTHONPATH"] = str(later)
    box.daemon.restart()
    told = wait_until(lambda: box.conditions().get("gateway-version"), 10, "the condition")
    assert told.startswith(f"the gateway (pid {pid}) is {__version__}, this daemon is 9.9.9: `kill {pid}`")
    assert box.post()[0] == 200
    del box.daemon.environ["PYTHONPATH"]
    box.daemon.restart()
    box.ready()
    assert "gateway-version" not in box.conditions() and box.gateway()["pid"] == pid


def test_leave_and_down_without_a_daemon(box: Box) -> None:
    box.up()
    pid = box.gateway()["pid"]
    box.daemon.call("leave")
    box.daemon.wait_exit()
    assert process.alive(pid) and box.post()[0] == 200
    assert box.daemon.cli("down").returncode == 0
    assert not process.alive(pid) and box.daemon.leftovers() == []


def test_the_shim_of_the_gateway_dies(box: Box) -> None:
    """Its child goes with it: the daemon binds and starts anew."""
    box.up()
    pid = box.gateway()["pid"]
    shim = json.loads((box.daemon.run / "gateway" / "run.json").read_text())["shim"]["pid"]
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: box.daemon.status()["gateway"]["pid"] not in (pid, None), 15, "another gateway")
    box.ready()
    assert not process.alive(pid) and box.post()[0] == 200


# --- drain --------------------------------------------------------------------------------------------------------


def test_a_restart_waits_for_the_running_stream(box: Box) -> None:
    """And who comes meanwhile waits for its successor."""
    before = box.up(token_ms=20)
    with box.stream(500) as stream, ThreadPoolExecutor(1) as pool:
        assert box.daemon.call("restart", service="chat", by="test", wait=False) is None
        box.daemon.wait_state("chat", "DRAINING", 5)
        waits = pool.submit(box.post)
        wait_until(lambda: box.daemon.service("chat")["targets"][0]["requests_queued"] == 1, 5, "the one who waits")
        assert box.daemon.service("chat")["pid"] == before["pid"]
        assert stream.rest().rstrip().endswith(b"data: [DONE]")
        assert waits.result(30)[0] == 200
    after = box.ready()
    assert after["pid"] != before["pid"] and after["last_exit"]["code"] == 0
    assert box.post()[0] == 200
    wait_until(lambda: box.running() == 0, 5, "the engine to be idle")
    assert wait_until(lambda: not box.leases(), 5, "leases zero")


def test_a_stream_that_outlasts_its_drain_timeout_is_told_so(box: Box) -> None:
    """By an event, never by a regular end; in the record too. Who came meanwhile is served by the next one."""
    box.write({"chat": box.service(token_ms=40) | {"drain_timeout": "4s"}})
    box.daemon.up()
    before = box.ready()
    with box.stream(20_000) as stream, ThreadPoolExecutor(1) as pool:
        box.daemon.call("restart", service="chat", by="test", wait=False)
        box.daemon.wait_state("chat", "DRAINING", 5)
        waits = pool.submit(box.post)
        with pytest.raises(http.client.IncompleteRead) as cut:
            stream.rest()
        assert b"event: error" in cut.value.partial and b"[DONE]" not in cut.value.partial
        assert waits.result(60)[0] == 200
    assert box.ready()["pid"] != before["pid"]
    ended = {record["finish_reason"]: record for record in box.records(2)}
    assert ended.keys() == {"engine_exit", "length"} and ended["engine_exit"]["status"] == 200
    assert ended["length"]["queue_ms"] + ended["length"]["load_ms"] > 500
    assert wait_until(lambda: not box.leases(), 10, "leases zero")


def test_a_stop_ends_as_soon_as_nothing_runs(box: Box) -> None:
    box.up()
    spent = Spent()
    assert box.daemon.cli("stop", "chat").returncode == 0
    assert spent() < 20
    status, body = box.post()
    assert status == 503 and "stopped by" in body["error"]["message"]


def test_a_client_that_goes_ends_its_request_at_the_engine(box: Box) -> None:
    box.up(token_ms=20)
    with box.stream(1000):
        assert box.running() == 1
    wait_until(lambda: box.running() == 0, 5, "the engine to be idle")
    wait_until(lambda: not box.leases(), 5, "leases zero")


def test_the_drain_goes_on_over_the_death_of_the_gateway(box: Box) -> None:
    """Its streams die with it; the next one has no leases."""
    box.up(token_ms=50)
    with box.stream(1000):
        box.daemon.call("restart", service="chat", by="test", wait=False)
        box.daemon.wait_state("chat", "DRAINING", 5)
        os.kill(box.gateway()["pid"], signal.SIGKILL)
        box.daemon.wait_service("chat", lambda s: s["state"] == "READY" and s["restarts"] == 1, 20)
    box.ready()
    assert box.post()[0] == 200


# --- the address --------------------------------------------------------------------------------------------------


def test_an_address_that_is_taken(box: Box) -> None:
    with socket.create_server(("127.0.0.1", int(box.listen.rpartition(":")[2]))):
        box.write()
        box.daemon.up()
        box.daemon.wait_state("chat", "READY")
        assert (
            box.listen in box.conditions()["gateway-listen"] and str(os.getpid()) in box.conditions()["gateway-listen"]
        )
        assert box.daemon.status()["gateway"] == {"listen": box.listen, "pid": None, "state": "PENDING"}
        assert box.daemon.cli("restart", "chat").returncode == 0, "without a gateway the engine is asked"
    box.ready()
    assert box.post()[0] == 200 and "gateway-listen" not in box.conditions()


def test_a_changed_address(box: Box) -> None:
    box.up()
    old, pid = box.listen, box.gateway()["pid"]
    box.listen = f"127.0.0.1:{process.free_ports(1)[0]}"
    box.write()
    wait_until(lambda: box.daemon.status()["gateway"]["listen"] == box.listen, 15, "the new address")
    box.ready()
    assert box.post()[0] == 200 and not process.alive(pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(old.rpartition(":")[2])))
    assert box.daemon.service("chat")["restarts"] == 0

    box.daemon.write({"chat": box.service()})
    wait_until(lambda: box.daemon.status()["gateway"] is None, 15, "no gateway")
    wait_until(lambda: not (box.daemon.run / "gateway" / "gateway.sock").exists(), 5, "its socket to be gone")


def test_another_address_of_the_same_port(box: Box) -> None:
    """From this machine alone to everybody: the old gateway is what is in the way."""
    box.up()
    key = box.daemon.folder / "alice"
    key.write_text("the-key-of-alice-0\n")
    key.chmod(0o600)
    box.listen = f"0.0.0.0:{box.listen.rpartition(':')[2]}"
    box.write(gateway={"keys": {"alice": {"file": str(key)}}})
    wait_until(lambda: box.daemon.status()["gateway"]["listen"] == box.listen, 30, "the wider address")
    box.ready()
    assert box.post()[0] == 401
    assert request(box.chat_url, BODY, "the-key-of-alice-0")[0] == 200
    wait_until(lambda: box.conditions() == {}, 5, lambda: f"no condition: {box.conditions()}")
    assert box.daemon.service("chat")["restarts"] == 0


def test_descriptors_are_stable(box: Box) -> None:
    box.up()
    daemon = box.daemon.process
    assert daemon

    def count() -> int:
        """What it is most of a second."""
        looks = []
        for _ in range(40):
            looks.append(len(os.listdir(f"/proc/{daemon.pid}/fd")))
            time.sleep(0.025)
        return statistics.mode(looks)

    def die() -> None:
        pid = box.gateway()["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: box.daemon.status()["gateway"]["pid"] != pid, 10, "the next gateway")
        box.gateway()

    die()
    before = count()
    for _ in range(3):
        die()
    wait_until(lambda: count() <= before, 5, lambda: f"{before} descriptors, now {count()}")
    listening = [fd for fd in os.listdir(f"/proc/{daemon.pid}/fd") if listens(daemon.pid, fd, box.listen)]
    assert listening == [], "the daemon keeps no copy of the listener"


# --- a real engine ------------------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_real_engine(box: Box, llama_server: Path, model: Path) -> None:
    box.write({"chat": served(llama_server, model, aliases=["smollm2"], drain_timeout="5m")})
    box.daemon.up()
    box.daemon.wait_state("chat", "READY", 240)
    service = box.ready()

    body = {**BODY, "temperature": 0, "seed": 1}
    direct = post_json(f"{service['endpoint']}/v1/chat/completions", body, box.daemon.key("chat"))
    through = post_json(box.chat_url, body)
    assert through["choices"] == direct["choices"] and through["model"] == direct["model"]

    with box.stream(600) as stream:
        assert box.daemon.call("restart", service="chat", by="test", wait=False) is None
        box.daemon.wait_state("chat", "DRAINING", 5)
        box.daemon.kill9()
        box.daemon.restart()
        rest = stream.rest()
    assert rest.rstrip().endswith(b"data: [DONE]") and b'"error"' not in rest
    wait_until(lambda: box.daemon.service("chat")["state"] == "READY", 240, "READY")
    assert box.post(model="smollm2")[0] == 200

    with box.stream(900):
        pass
    slots = f"{box.daemon.service('chat')['endpoint']}/slots"
    wait_until(lambda: not any(s["is_processing"] for s in get_json(slots, box.daemon.key("chat"))), 10, "idle slots")
    wait_until(lambda: not box.leases(), 10, "leases zero")

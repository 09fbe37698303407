"""Requests while they run: told to who looks, and asked of the gateway for as long as somebody does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway.box import Box
from support import control
from support.daemon import Daemon
from support.wait import wait_until


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Box]:
    yield Box(daemon)
    daemon.close()


def test_who_runs_and_who_waits(box: Box) -> None:
    box.up(token_ms=60)
    with ThreadPoolExecutor(1) as pool, box.stream(900), box.stream(900):  # parallel = 2
        pool.submit(box.post, max_tokens=1)
        wait_until(lambda: box.daemon.service("chat")["targets"][0]["requests_queued"] == 1, 10, "one that waits")
        said = box.daemon.cli("requests", "--live", "--json")
        found = [json.loads(line) for line in said.stdout.splitlines()]
        assert sorted(each["phase"] for each in found) == ["decode", "decode", "queue"], said.stderr
        assert all(each["model"] == "chat" and each["client"] is None for each in found)
        assert sorted(each["tokens"] > 0 for each in found) == [False, True, True]
        table = box.daemon.cli("requests", "--live").stdout.splitlines()
        assert table[0].split()[:3] == ["AGE", "PHASE", "PROMPT"] and len(table) == 4
    wait_until(lambda: "no request" in box.daemon.cli("requests", "--live").stdout, 20, "nobody left")


def test_it_is_told_by_the_next_gateway_too(box: Box) -> None:
    box.up(token_ms=20)
    with contextlib.closing(control.items(box.daemon.socket, "live")) as looks:
        assert next(looks)["requests"] == []
        os.kill(box.gateway()["pid"], signal.SIGKILL)
        wait_until(lambda: box.post(max_tokens=1)[0] == 200, 15, "the next gateway")
        with box.stream(900):
            wait_until(lambda: next(looks)["requests"], 10, "its request")

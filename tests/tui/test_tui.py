from __future__ import annotations

import asyncio
import errno
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.shapes import mismatches
from textual.pilot import Pilot
from textual.widgets import Log
from tui.driving import PLACES, an_app, drive, until
from tui.samples import GIB, gpu, service
from tui.stand_in import StandIn

from llmsupervisor.base.text import ascii_only
from llmsupervisor.link.client import connect
from llmsupervisor.link.status import Status
from llmsupervisor.tui.logpane import LogPane

EXIT = {
    "cause": "oom_load",
    "text": "cudaMalloc failed: out of memory",
    "code": 1,
    "signal": None,
    "advice": "lower context_length",
    "time": None,
}

CHAT = service("chat", conditions=[{"id": "not-as-asked", "text": "asked q8_0, got f16", "since": time.time() - 60}])
EMBED = service("embed", "BACKOFF", pid=None, endpoint=None, reason="[bold]exit 1[/bold]", last_exit=EXIT)


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [CHAT, EMBED])
    yield daemon
    daemon.die()


@pytest.mark.parametrize(("size", "lang"), [*PLACES, ((80, 24), "C"), ((40, 10), "C.UTF-8")], ids=str)
def test_services_and_the_log_are_readable_at_every_size(stand_in: StandIn, size: tuple[int, int], lang: str) -> None:
    stand_in.log("chat", "main: server is listening on http://127.0.0.1:18400")

    async def play(pilot: Pilot[None]) -> None:
        shown = await until(pilot, lambda s: "server is listening" in s, "the log of the first service")
        assert "pid 4700" in shown and "LOG chat" in shown and "q detach" in shown
        assert ("● READY" if lang == "C.UTF-8" else "* READY") in shown
        assert "BACKOFF" in shown
        assert shown.isascii() or lang == "C.UTF-8"
        if size[1] > 20:
            shown = await until(pilot, lambda s: "kv_cache_type" in s, "the detail")
            assert "condition not-as-asked" in shown and "http://127.0.0.1:18400" in shown
            assert "/etc/llmsupervisor/llmsupervisor.toml" in shown and "generation 3" in shown
        if size[0] > 100:
            assert "[bold]exit 1[/bold]" in shown, "markup from outside is text"

    drive(stand_in, size, play, lang)


def test_the_daemon_that_stands_in_tells_what_the_real_one_tells(stand_in: StandIn) -> None:
    stand_in.tell(gpus=[gpu()])
    with connect(str(stand_in.path)) as client:
        assert not (found := mismatches(client.call("status"), Status, "status")), "\n".join(found)


def makes(done: int, rate: float | None) -> dict[str, Any]:
    """A service whose model is imported."""
    one = service("chat", "STARTING", phase="smol: uploading", got=None, endpoint=None)
    said = {"status": "uploading", "completed": done, "total": 4 * GIB, "bytes_per_s": rate}
    one["targets"][0] |= {"model": "smol", "state": "creating", "progress": said}
    return one


@pytest.mark.parametrize(("size", "lang"), [((120, 40), "C.UTF-8"), ((100, 30), "C")], ids=str)
def test_what_is_imported_has_a_bar_that_grows(stand_in: StandIn, size: tuple[int, int], lang: str) -> None:
    def drawn(bar: str) -> str:
        return bar if lang == "C.UTF-8" else ascii_only(bar)

    async def play(pilot: Pilot[None]) -> None:
        stand_in.say(makes(GIB, None))
        await until(pilot, lambda s: drawn("25 % [██░░░░░░░░] 1.0 of 4.0 GiB") in s, "a quarter of it")
        stand_in.say(makes(3 * GIB, 128 * 1024**2))
        bar = drawn("75 % [███████░░░] 3.0 of 4.0 GiB, 128.0")
        await until(pilot, lambda s: bar in s and "MiB/s, 8s left" in s, "three quarters, with rate and time left")
        stand_in.say(service("chat"))
        await until(pilot, lambda s: "READY" in s and "MiB/s" not in s, "no bar")

    drive(stand_in, size, play, lang)


def test_the_selected_service_has_the_detail_and_the_log(stand_in: StandIn) -> None:
    stand_in.log("chat", "words of chat")
    stand_in.log("embed", "words of embed")

    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "words of chat" in s, "the log of chat")
        await pilot.press("down")
        shown = await until(pilot, lambda s: "words of embed" in s, "the log of embed")
        assert "words of chat" not in shown and "advice lower context_length" in shown
        stand_in.say(service("new"), CHAT, EMBED)
        await until(pilot, lambda s: " new " in s and "LOG embed" in s, "a row more, the same selection")
        stand_in.say(CHAT)
        await until(pilot, lambda s: "LOG chat" in s and "embed" not in s, "the removed service is gone")

    drive(stand_in, (80, 24), play)


def test_enter_and_l_show_one_pane_alone(stand_in: StandIn) -> None:
    stand_in.log("chat", *(f"row {n}." for n in range(100)))

    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "row 99." in s, "the end of the log")
        await pilot.press("enter")
        await until(pilot, lambda s: "llama-server" in s and "LOG" not in s, "the detail at 40x10")
        await pilot.press("escape", "l")
        await until(pilot, lambda s: "row 99." in s and "NAME" not in s, "the log alone")
        await pilot.press("up", "up", "up")
        stand_in.log("chat", "row 100.")
        await until(pilot, lambda s: "not following" in s and "row 100." not in s, "scrolled up: no following")
        await pilot.press("end")
        await until(pilot, lambda s: "row 100." in s and "not following" not in s, "End follows again")
        await pilot.press(*"kkk")
        await until(pilot, lambda s: "not following" in s and "row 100." not in s, "k goes up in the log")
        await pilot.press(*"jjj")
        await until(pilot, lambda s: "LOG chat" in s and "row 100." in s, "j down, and the service stays")
        await pilot.press("up", "up", "escape", "enter", "enter")
        await until(pilot, lambda s: "NAME" in s and "not following: G" in s, "still not, beside the others")
        await pilot.press("G")
        await until(pilot, lambda s: "NAME" in s and "LOG chat" in s and "not following" not in s, "all panes")

    drive(stand_in, (40, 10), play)


def test_the_keys_of_the_detail_alone_move_it(stand_in: StandIn) -> None:
    notes = [{"id": f"note-{n}", "text": "so it is", "since": None} for n in range(40)]
    stand_in.say(service("chat", conditions=notes), EMBED)

    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "note-1:" in s, "its begin")
        await pilot.press("enter")
        await until(pilot, lambda s: "note-15:" in s and "LOG" not in s, "the detail alone")
        await pilot.press(*"jjjj")
        await until(pilot, lambda s: "note-0:" not in s and "note-1:" in s, "four lines down")
        await pilot.press("k")
        await until(pilot, lambda s: "note-0:" in s, "one up")
        await pilot.press("G")
        await until(pilot, lambda s: "note-39:" in s, "the end")
        await pilot.press("enter")
        await until(pilot, lambda s: "NAME" in s and "LOG chat" in s, "the same service, among the others")
        await pilot.press("j")
        await until(pilot, lambda s: "LOG embed" in s, "where j selects")

    drive(stand_in, (80, 24), play)


def test_nothing_of_a_log_reaches_the_terminal_as_a_command(stand_in: StandIn) -> None:
    stand_in.log("chat", "a\x1b[2J\x1b]0;title\x07b\x9b31m\u202ec", "[red]d[/red]\r\n", "last " + "x" * 100_000)

    async def play(pilot: Pilot[None]) -> None:
        shown = await until(pilot, lambda s: "last xxx" in s, "the log")
        assert r"a\x1b[2J\x1b]0;title\x07b\x9b31m\u202ec" in shown
        assert r"[red]d[/red]" in shown
        raw = "".join(s.text for strip in pilot.app.screen._compositor.render_strips() for s in strip)
        assert all(c.isprintable() for c in raw)
        longest = max(map(len, pilot.app.screen.query_one(LogPane).query_one(Log).lines))
        assert longest <= 4096

    drive(stand_in, (120, 40), play)


@pytest.mark.parametrize("way", ["die", "silence"])
def test_a_lost_daemon_is_said_and_found_again(stand_in: StandIn, way: str) -> None:
    async def play(pilot: Pilot[None]) -> None:
        stand_in.log("chat", "before")
        await until(pilot, lambda s: "before" in s, "the log")
        stand_in.die() if way == "die" else stand_in.silence(True)
        shown = await until(pilot, lambda s: "STALE" in s and "LIVE" not in s and "what" in s, "the banner, the reason")
        assert "READY" in shown, "the old picture stays"
        await until(pilot, lambda s: re.search(r"STALE [1-9]\d*s", s), "its age")
        if way == "die":
            stand_in.start()
        stand_in.silence(False)
        stand_in.say(service("chat", restarts=7), EMBED)
        await until(pilot, lambda s: "LIVE" in s and "STALE" not in s and " 7 " in s, "the new picture")
        stand_in.log("chat", "after")
        shown = await until(pilot, lambda s: "after" in s, "the log goes on")
        assert shown.count("before") == 1, "nothing is shown twice"

    drive(stand_in, (80, 24), play)


def test_a_connection_that_went_dead_unseen_is_replaced(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        stand_in.stick()
        stand_in.say(service("chat", restarts=7), EMBED)
        await until(pilot, lambda s: "STALE" in s, "the banner")
        await until(pilot, lambda s: "LIVE" in s and " 7 " in s, "a new connection")

    drive(stand_in, (80, 24), play)


def test_without_a_daemon_it_says_so_and_waits_for_one(short_folder: Path) -> None:
    app = an_app(short_folder / "s", "C")

    async def run() -> None:
        async with app.run_test(size=(100, 24)) as pilot:
            await until(pilot, lambda s: "CONNECTING" in s and "no daemon is running" in s, "the reason")
            await pilot.press("r")
            await until(pilot, lambda s: "no service is selected" in s, "no order without a service")
            daemon = StandIn(short_folder / "s", [CHAT])
            await until(pilot, lambda s: "LIVE" in s and "no daemon" not in s, "the daemon is found")
            daemon.die()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("key", "verb", "size"),
    [("u", "start", (80, 24)), ("x", "stop", (40, 10)), ("r", "restart", (120, 40)), ("d", "drain", (80, 24))],
    ids=str,
)
def test_orders_ask_first_and_name_what_they_cut(stand_in: StandIn, key: str, verb: str, size: tuple[int, int]) -> None:
    async def play(pilot: Pilot[None]) -> None:
        for no in ("n", "escape", "enter", "q"):
            await pilot.press(key)
            shown = await until(pilot, lambda s: f"{verb} chat?" in s, "the question")
            assert "y yes" in shown
            assert verb == "start" or ("pid 4712" in shown and "2 running" in shown)
            await pilot.press(no)
            await until(pilot, lambda s: "chat?" not in s, "the question is gone")
        assert stand_in.orders == []
        await pilot.press(key)
        await until(pilot, lambda s: "chat?" in s, "the question")
        await pilot.press("y")
        await until(pilot, lambda s: f"{verb} chat: under way" in s, "the answer")

    drive(stand_in, size, play)
    [order] = stand_in.orders
    assert (order["call"], order["service"], order["wait"]) == (verb, "chat", False)
    assert order["by"]


def test_a_refused_order_says_why(stand_in: StandIn) -> None:
    stand_in.refusal = "user 1000 may not stop: only the daemon's user"

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("x")
        await until(pilot, lambda s: "stop chat?" in s, "the question")
        await pilot.press("y")
        await until(pilot, lambda s: "stop chat: user 1000 may not stop" in s, "the refusal")

    drive(stand_in, (80, 24), play)


def test_the_specs_error_is_a_banner(stand_in: StandIn) -> None:
    problems = "\n".join(f"a.toml:{n}: services.chat.key{n}: unknown" for n in range(1, 9))

    async def play(pilot: Pilot[None]) -> None:
        stand_in.say(error=problems)
        shown = await until(pilot, lambda s: "SPEC ERROR" in s, "the banner")
        assert "a.toml:3: services.chat.key3" in shown and "… 5 more lines" in shown and "READY" in shown
        stand_in.say()
        await until(pilot, lambda s: "SPEC ERROR" not in s and "… 5 more" not in s, "the banner goes")

    drive(stand_in, (80, 24), play)


def test_q_detaches_and_tells_the_daemon_nothing(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("q")
        await pilot.pause()

    app = drive(stand_in, (80, 24), play)
    assert app.return_code == 0
    assert stand_in.orders == []


def test_a_hundred_thousand_lines_are_shed_not_stored(stand_in: StandIn) -> None:
    stand_in.log("chat", *(f"n {n}" for n in range(100_000)), "the very last")

    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "the very last" in s, "the end of a flood", within=120)
        assert len(pilot.app.screen.query_one(Log).lines) <= 5001

    drive(stand_in, (80, 24), play)


def test_on_a_real_terminal_without_colour(stand_in: StandIn) -> None:
    """The bytes themselves: no colour under NO_COLOR, the alternate screen left, the terminal's last word."""
    environ = {**os.environ, "NO_COLOR": "1", "LANG": "C", "TERM": "xterm-256color", "LINES": "24", "COLUMNS": "80"}
    environ.pop("LC_ALL", None)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "llmsupervisor", "tui", "--socket", str(stand_in.path)]
    child = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environ)
    os.close(follower)
    try:
        seen = read_until(leader, b"LIVE")
        os.write(leader, b"q")
        seen += read_until(leader, b"run on")
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(leader)
    assert b"detached: the daemon (pid 4700) and its services run on" in seen
    assert b"\x1b[?1049l" in seen
    assert seen.isascii(), "a terminal that is not UTF-8 gets ASCII"
    assert not [code for code in (b"\x1b[38", b"\x1b[48", b"\x1b[31", b"\x1b[32m", b";32m", b";38;") if code in seen]
    assert stand_in.orders == []


def read_until(leader: int, wanted: bytes, timeout: float = 60.0) -> bytes:
    seen, deadline = b"", time.monotonic() + timeout
    while wanted not in seen:
        assert select.select([leader], [], [], max(0.0, deadline - time.monotonic()))[0], f"no {wanted!r} in {seen!r}"
        try:
            data = os.read(leader, 65536)
        except OSError as error:
            assert error.errno == errno.EIO
            data = b""
        assert data, f"the terminal ended without {wanted!r}: {seen!r}"
        seen += data
    return seen

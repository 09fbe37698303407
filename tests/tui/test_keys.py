"""Whatever is typed: no page breaks, nothing is ordered that nobody said yes to, and there is always a way out.

`LLMSUPERVISOR_KEYS` says how many keys at each size (`make soak`: 20,000), `LLMSUPERVISOR_SEED` which (0: any).
"""

from __future__ import annotations

import os
import random
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.keys import _character_to_key
from textual.pilot import Pilot
from tui.driving import drive, until
from tui.samples import event, gpu, live, record, service
from tui.stand_in import StandIn
from tui.terminal import Terminal
from tui.test_logs import CRASH
from tui.test_service_page import plan
from tui.test_spec_pages import ADVICE, FIXED, SPEC

from llmsupervisor.cli.views import text_of
from llmsupervisor.tui.confirm import Confirm

COUNT = int(os.environ.get("LLMSUPERVISOR_KEYS", "250"))
SEED = int(os.environ.get("LLMSUPERVISOR_SEED", "1")) or random.randrange(1, 1_000_000)
KEYS = [
    *"12345678", *"urxdaA", *"jkgGnNfewmpcsSlbhtvyYi?[]/+-:", *"yyynn", "up", "down", "left", "right", "pageup", "pagedown",
    "home", "end", "enter", "enter", "escape", "escape", "tab", "shift+tab", "space", "backspace", "ctrl+l", "ctrl+p", "ä", "😀",
]  # fmt: skip
"""All but those that leave the program."""
ASKED = {"reload": "apply the spec?", "fix": "write this into the spec", "lend": "lend GPU", "take": "take GPU"}
"""How a question names an order that is called otherwise."""


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [service("chat"), service("embed", "BACKOFF", pid=None)])
    now = time.time()
    daemon.tell(gpus=[gpu(0), gpu(1)])
    daemon.live = [live("a", "decode", now - 3, now - 2, tokens=40)]
    daemon.ended(*(record(f"r{n}") for n in range(50)))
    daemon.log("chat", *(f"row {n}" for n in range(200)))
    daemon.events = [event("chat", "state", now - n, **{"from": "STARTING", "to": "READY"}) for n in range(30)]
    daemon.crashes = [CRASH]
    daemon.plans["chat"] = plan("chat")
    daemon.answers = {"spec": SPEC, "advice": ADVICE, "fix": FIXED}
    yield daemon
    daemon.die()


@pytest.fixture
def confirmed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that were answered with yes."""
    found: list[str] = []

    def answer(self: Confirm, yes: bool) -> None:
        if yes:
            found.append(" ".join(map(text_of, self.lines)))
        self.dismiss(yes)

    monkeypatch.setattr(Confirm, "action_answer", answer)
    return found


class Typist:
    """Types at random, also faster than the screen follows."""

    def __init__(self, pilot: Pilot[None], seed: int) -> None:
        self._pilot = pilot
        self._choose = random.Random(seed)
        self.typed: list[str] = []

    async def type(self, keys: int) -> None:
        while keys > 0:
            burst = [self._choose.choice(KEYS) for _ in range(self._choose.choice((1, 1, 2, 5, 20)))]
            self.typed += burst
            keys -= len(burst)
            for key in burst[:-1]:
                send(self._pilot, key)
            await self._pilot.press(burst[-1])


def send(pilot: Pilot[None], key: str) -> None:
    """Without waiting for what it does."""
    name = _character_to_key(key) if len(key) == 1 and not key.isalnum() else key
    pilot.app.post_message(events.Key(name, key if len(key) == 1 else None))


def unconfirmed(orders: list[dict[str, Any]], confirmed: list[str]) -> list[dict[str, Any]]:
    """Each yes is good for one order, of the words that were asked."""
    left, found = list(confirmed), []
    for order in orders:
        words = ASKED.get(order["call"], f"{order['call']} {order.get('service', '')}")
        said = next((question for question in left if words in question), None)
        found += [order] if said is None else []
        if said is not None:
            left.remove(said)
    return found


@pytest.mark.timeout(600 + COUNT)
@pytest.mark.parametrize("size", [(80, 24), (40, 10), (140, 40)], ids=str)
def test_random_keys(stand_in: StandIn, confirmed: list[str], size: tuple[int, int]) -> None:
    seed = SEED + size[0]

    async def play(pilot: Pilot[None]) -> None:
        typist = Typist(pilot, seed)
        try:
            await typist.type(COUNT // 5)
            stand_in.silence(True)
            await typist.type(COUNT // 5)
            stand_in.silence(False)
            await typist.type(COUNT // 5)
            stand_in.die()
            await typist.type(COUNT // 5)
            stand_in.start()
            await typist.type(COUNT // 5)
            assert unconfirmed(stand_in.orders, confirmed) == []
            for _ in range(10):
                await pilot.press("escape")
            pilot.app.feeds.pause(False)  # type: ignore[attr-defined]
            await pilot.press("1")
            await until(pilot, lambda s: "LIVE" in s and "chat" in s, "a page as ever", 60)
            await pilot.press("q")
            await pilot.pause()
        except BaseException as error:
            error.add_note(f"LLMSUPERVISOR_SEED={SEED} LLMSUPERVISOR_KEYS={COUNT}; last keys: {typist.typed[-30:]}")
            raise

    app = drive(stand_in, size, play)
    assert app.return_code == 0, f"q did not leave; LLMSUPERVISOR_SEED={SEED}"


@pytest.mark.parametrize("opens", ["x", "?", ":"])
def test_what_is_closed_twice_does_not_take_the_page_below_away(stand_in: StandIn, opens: str) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "chat" in s, "the overview")
        await pilot.press("7")
        await until(pilot, lambda s: len(pilot.app.screen_stack) == 2, "the service")
        await pilot.press(opens)
        await until(pilot, lambda s: len(pilot.app.screen_stack) == 3, "what was opened")
        opened = pilot.app.screen
        opened.dismiss(None)
        opened.dismiss(None)
        await until(pilot, lambda s: len(pilot.app.screen_stack) < 3, "closed")
        await pilot.pause(0.3)
        assert len(pilot.app.screen_stack) == 2
        await pilot.press("q")

    assert drive(stand_in, (80, 24), play).return_code == 0


def test_random_keys_order_nothing_where_only_reading_is_allowed(stand_in: StandIn, confirmed: list[str]) -> None:
    async def play(pilot: Pilot[None]) -> None:
        typist = Typist(pilot, SEED)
        await typist.type(COUNT // 4)
        assert confirmed == [] and stand_in.orders == [], f"LLMSUPERVISOR_SEED={SEED}: {typist.typed}"

    drive(stand_in, (80, 24), play, readonly=True)


NOISE = [
    b"\x1b",
    b"\x1b[",
    b"\x1b[A",
    b"\x1b[200~pasted\x1b[201~",
    b"\xff\xfe",
    b"\xc3",
    b"\x1b[<0;3;4M",
    b"\x1bOP",
    b"\x00",
    b"\x1b[99~",
]
"""What a terminal may send beside keys: parts of sequences, pasted words, a mouse, what is no UTF-8."""


@pytest.mark.parametrize("way", ["q", "\x03"], ids=["q", "ctrl+c"])
def test_after_random_bytes_the_terminal_is_as_it_was(stand_in: StandIn, way: str) -> None:
    choose = random.Random(SEED)
    command = [sys.executable, "-m", "llmsupervisor", "tui", "--readonly", "--socket", str(stand_in.path)]
    with Terminal(command, (80, 24), {"PAGER": "true", "EDITOR": "true"}) as terminal:
        terminal.wait("chat")
        letters = [key.encode() for key in KEYS if len(key) == 1]
        for _ in range(30):
            os.write(terminal.leader, b"".join(choose.choice([*letters, *NOISE]) for _ in range(10)))
            terminal.read(0.02)
        terminal.read(1.0)
        deadline = time.monotonic() + 60
        while terminal.child.poll() is None:
            assert time.monotonic() < deadline, f"{way!r} does not leave; LLMSUPERVISOR_SEED={SEED}\n{terminal.text}"
            terminal.press("\x1b" if way == "q" else way)
            terminal.read(0.3)
            if way == "q":
                terminal.press(way)
                terminal.read(0.3)
        assert terminal.child.returncode == 0, f"LLMSUPERVISOR_SEED={SEED}\n{terminal.text}"
        assert termios.tcgetattr(terminal.leader)[:4] == terminal.modes[:4]
        assert b"\x1b[?1049l" in b"".join(chunk for _, chunk in terminal.chunks)
    assert stand_in.orders == []


def test_a_yes_is_good_for_one_order_of_its_own_words() -> None:
    chat = {"call": "stop", "service": "chat"}
    assert unconfirmed([chat], ["stop chat?   y yes  n no"]) == []
    assert unconfirmed([chat, chat], ["stop chat?   y yes  n no"]) == [chat]
    assert unconfirmed([chat], ["stop embed?   y yes  n no"]) == [chat]
    assert unconfirmed([{"call": "reload"}], ["apply the spec?"]) == []

"""The program under a real pseudo terminal: what it costs, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.wait import PATIENCE, undisturbed, wait_until
from tui.samples import record, service
from tui.stand_in import StandIn
from tui.terminal import Terminal

SECONDS = 1.5
"""In which nothing may be sent; `python -m bench.tui` takes longer ones."""


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", busy(0))
    yield daemon
    daemon.die()


def busy(round: int) -> list[dict[str, Any]]:
    found = [service(f"model-{n}", since=time.time() - 615) for n in range(4)]
    for n, one in enumerate(found):
        one["targets"][0].update(kv_cache_usage=(round * 7 + n * 20) % 100 / 100, requests_running=(round + n) % 8)
    return found


def tui(stand_in: StandIn, size: tuple[int, int] = (80, 24), *words: str) -> Terminal:
    return Terminal([sys.executable, "-m", "llmsupervisor", "tui", "--socket", str(stand_in.path), *words], size)


def quiet(terminal: Terminal) -> None:
    """The first picture is drawn."""
    wait_until(lambda: not terminal.read(1.0), 20, "a second without a byte")


def at_rest(terminal: Terminal, stand_in: StandIn) -> None:
    stand_in.say()
    assert terminal.read(SECONDS) == 0


def measured(terminal: Terminal, change: Callable[[int], None]) -> float:
    """Bytes of a change, of which there are two."""
    before = len(terminal.chunks)
    for n in (1, 2):
        seen = len(terminal.chunks)
        change(n)
        terminal.read(PATIENCE, lambda seen=seen: len(terminal.chunks) > seen)
        quiet(terminal)
    return sum(len(data) for _, data in terminal.chunks[before:]) / 2


def test_nothing_is_sent_where_nothing_changes_and_little_where_figures_do(stand_in: StandIn) -> None:
    with tui(stand_in) as terminal:
        terminal.wait("model-3")
        quiet(terminal)
        undisturbed(lambda: at_rest(terminal, stand_in))  # a minute may be over
        assert 0 < measured(terminal, lambda n: stand_in.say(*busy(n))) <= 1500
        assert sum(len(data) for _, data in terminal.chunks) < 8000, "the first picture is sent once"
        assert b"".join(data for _, data in terminal.chunks).count(b"\x1b[2J") == 1


def test_requests_that_end_cost_little_too(stand_in: StandIn) -> None:
    stand_in.ended(*(record(f"{n:026}") for n in range(30)))
    with tui(stand_in) as terminal:
        terminal.wait("model-3")
        terminal.press("2")
        terminal.wait("30 of 30")
        quiet(terminal)
        two = measured(terminal, lambda n: stand_in.ended(*(record(f"r{n}{k}", total_ms=800.0 + n) for k in range(2))))
        assert 0 < two <= 1500
        terminal.wait("34 of 34")


def test_a_terminal_of_many_colours_gets_its_own_sixteen(stand_in: StandIn) -> None:
    command = [sys.executable, "-m", "llmsupervisor", "tui", "--socket", str(stand_in.path)]
    with Terminal(command, (80, 24), {"COLORTERM": "truecolor"}) as terminal:
        terminal.wait("model-3")
        for key, words in (("2", "REQUESTS"), ("3", "no GPU"), ("5", "EVENTS"), ("?", "keys of")):
            terminal.press(key)
            terminal.wait(words)
        data = b"".join(chunk for _, chunk in terminal.chunks)
        assert b"\x1b[" in data and not [code for code in (b"38;2;", b"48;2;", b"38;5;", b"48;5;") if code in data]


@pytest.mark.slow
def test_a_terminal_that_does_not_read_gets_the_last_picture_not_all_of_them(stand_in: StandIn) -> None:
    def measure() -> None:
        end = f"the end, {time.monotonic_ns()}"
        with tui(stand_in, (200, 50)) as terminal:
            terminal.wait("model-3")
            quiet(terminal)
            for n in range(150):
                stand_in.log("model-0", *(f"{n}.{k} " + f"{n * k} " * 40 for k in range(20)))
                time.sleep(0.02)
            stand_in.log("model-0", end)
            time.sleep(2.0)
            behind = terminal.read(PATIENCE, lambda: end in terminal.text)
            assert end in terminal.text
            assert behind < 55_000, "not all of some 15 frames, which are 80 kB"

    undisturbed(measure)


@pytest.mark.parametrize("size", [(40, 10), (250, 60)], ids=str)
def test_a_new_size_is_drawn_anew(stand_in: StandIn, size: tuple[int, int]) -> None:
    with tui(stand_in) as terminal:
        terminal.wait("model-3")
        quiet(terminal)
        terminal.screen.reset()
        terminal.resize(size)
        terminal.wait("detach")
        first = lambda: any("model-0" in line and "READY" in line for line in terminal.screen.display)  # noqa: E731
        terminal.read(PATIENCE, first)
        assert first() and len(terminal.screen.display) == size[1]


def test_the_terminal_is_as_it_was_after_stop_go_on_and_terminate(stand_in: StandIn) -> None:
    with tui(stand_in) as terminal:
        terminal.wait("model-3")
        terminal.press("\x1a")
        assert stopped(terminal, 30), "^Z stops it"
        terminal.read(0.5)
        assert termios.tcgetattr(terminal.leader)[3] & termios.ECHO, "the shell can be typed into"
        terminal.screen.reset()
        terminal.child.send_signal(signal.SIGCONT)
        terminal.wait("model-3")
        terminal.press("q")
        terminal.wait("run on")
        assert terminal.child.wait(20) == 0
        assert termios.tcgetattr(terminal.leader)[:4] == terminal.modes[:4]


def stopped(terminal: Terminal, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(terminal.child.pid, os.WUNTRACED | os.WNOHANG)
        if pid:
            return os.WIFSTOPPED(status)
        terminal.read(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=str)
def test_a_terminated_one_leaves_the_terminal_as_it_was(stand_in: StandIn, number: signal.Signals) -> None:
    with tui(stand_in) as terminal:
        terminal.wait("model-3")
        terminal.child.send_signal(number)
        left(terminal)


def test_one_whose_terminal_goes_without_a_signal_ends(stand_in: StandIn) -> None:
    """It would read an endless end of file, with a whole core."""
    with tui(stand_in) as terminal:
        terminal.wait("model-3")
        os.close(terminal.leader)
        terminal.leader = os.open(os.devnull, os.O_RDONLY)
        assert terminal.child.wait(60) is not None


def test_so_does_one_that_an_exception_ends(stand_in: StandIn) -> None:
    """The words of the exception come after the screen was left."""
    program = (
        "import sys\nfrom llmsupervisor.tui import header\n"
        "def broken(*_):\n    raise RuntimeError('made to fail')\n"
        "header.help_lines = broken\n"
        "from llmsupervisor.cli.main import main\nsys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, "tui", "--socket", str(stand_in.path)]
    with Terminal(command, (80, 24)) as terminal:
        terminal.wait("model-3")
        terminal.press("?")
        data = left(terminal)
        assert b"made to fail" in data[data.index(b"\x1b[?1049l") :]
        assert terminal.child.returncode == 1
    assert stand_in.orders == []


def left(terminal: Terminal) -> bytes:
    terminal.read(60)  # to the end of the terminal, which comes before that of the process
    terminal.child.wait(30)
    assert termios.tcgetattr(terminal.leader)[:4] == terminal.modes[:4]
    data = b"".join(chunk for _, chunk in terminal.chunks)
    assert b"\x1b[?1049l" in data and data.rindex(b"\x1b[?25h") > data.rindex(b"\x1b[?25l"), (
        "left, and the cursor shown"
    )
    return data


def test_over_a_thin_link_a_key_is_not_behind_a_queue_of_frames(stand_in: StandIn) -> None:
    """400 bytes each 0.2 s, and much more to say: what comes between a key and its page is bounded."""
    with tui(stand_in, (120, 40)) as terminal:
        terminal.wait("model-3")
        os.set_blocking(terminal.leader, False)
        for n in range(30):
            stand_in.say(*busy(n))
            stand_in.log("model-0", *(f"{n}.{k} " + f"{n * k} " * 20 for k in range(20)))
            trickle(terminal)
        terminal.press("5")
        count = 0
        while "EVENTS" not in terminal.text:
            count += trickle(terminal)
            assert count < 40_000, f"the page did not come:\n{terminal.text}"
        assert count < 25_000


def trickle(terminal: Terminal, most: int = 400) -> int:
    time.sleep(0.02)
    try:
        data = os.read(terminal.leader, most)
    except BlockingIOError:
        return 0
    terminal.feed(data)
    return len(data)

"""Faults of an end and of what is left, each against a real daemon: P3, P8, P9, P11, P23 to P25, P28. Numbers: README.md."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import process
from support.control import Refused
from support.daemon import Json
from support.faults import Box, Stopwatch, conditions, gone
from support.http import Stream, chat
from support.wait import undisturbed, wait_until

GPU = "gpu GPU-a 24576 {used} 0"


class Card:
    """One GPU for the daemon, played by the stand-in for NVML. MiB."""

    def __init__(self, box: Box, library: Path) -> None:
        self.scenario = box.folder / "scenario"
        box.daemon.environ |= {"LD_LIBRARY_PATH": str(library), "NVML_SCENARIO": str(self.scenario)}
        self.hold()

    def hold(self, used: int = 1000, *processes: tuple[int, int]) -> None:
        lines = [GPU.format(used=used), *(f"proc {pid} {size}" for pid, size in processes)]
        new = self.scenario.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.replace(self.scenario)


@pytest.fixture
def card(faults: Box, library: Path) -> Card:
    return Card(faults, library)


@pytest.mark.parametrize("name", ["SEGV", "ABRT"])
def test_P3_crash_in_a_request(faults: Box, name: str) -> None:
    """The stream breaks off, without the mark of a complete one; the neighbour does not notice."""
    faults.daemon.write({"chat": faults.fake({"token_ms": 20}), "other": faults.fake({})})
    faults.daemon.up()
    before, other = faults.ready("chat"), faults.ready("other")
    watch = Stopwatch()
    with Stream(before["endpoint"], faults.daemon.key("chat")) as stream:
        stream.first()
        with contextlib.suppress(OSError):
            faults.inject(before, signal=name)
        with pytest.raises(Exception, match=r"IncompleteRead|reset|ended before") as broken:
            while b"[DONE]" not in stream.first():
                pass
    print(f"the client saw {broken.value!r}")
    after = faults.again(1)
    watch.lap("from the crash to READY")
    assert (after["last_exit"]["cause"], after["last_exit"]["signal"]) == ("signal", f"SIG{name}")
    assert f"killed by SIG{name}" in after["last_exit"]["text"]
    assert chat(after["endpoint"], faults.daemon.key("chat"))
    faults.wait_exits(1)
    (record,) = (faults.daemon.state / "crashes").glob("*-chat-*.json")
    assert "launch_slot_" in "\n".join(json.loads(record.read_text())["log"])
    assert faults.daemon.service("other")["pid"] == other["pid"]
    faults.once(2)
    faults.once(1, "other")


def test_P8_zombies_are_reaped(faults: Box) -> None:
    """An orphan that ends below a living server, and the server itself."""
    status = faults.up({"zombie": 1}).ready()
    wait_until(lambda: faults.below_shim() == [status["pid"]], 5, lambda: f"left: {faults.below_shim()}")
    os.kill(status["pid"], signal.SIGKILL)
    assert faults.again(1)["pid"] != status["pid"]
    wait_until(lambda: not Path(f"/proc/{status['pid']}").exists(), 5, "its pid to be free")


def test_P9_grandchildren_die_before_the_next_start(faults: Box) -> None:
    """Their own session, deaf to SIGTERM; main is killed from outside."""
    status = faults.up({"children": 3, "times": 0}).ready()
    children = [pid for pid in faults.below_shim() if pid != status["pid"]]
    assert len(children) == 3
    watch = Stopwatch()
    os.kill(status["pid"], signal.SIGKILL)
    faults.wait_starts(2)
    assert not any(map(process.alive, children)), "left when the next one started"
    watch.lap("from the kill to the next start")
    faults.again(1)
    faults.once(2)


@pytest.mark.slow
def test_P9_memory_comes_back_before_the_next_start(faults: Box, card: Card) -> None:
    """Somebody of the dead tree still holds VRAM: the next start waits, and says for what."""
    status = faults.up({}, gpus=[0], gpu_memory="20GiB").ready()
    card.hold(9000, (status["pid"], 8000))
    os.kill(status["pid"], signal.SIGKILL)
    waiting = faults.daemon.wait_service("chat", lambda s: "memory-held" in conditions(s), 30, "the condition")
    assert "GPU-a" in conditions(waiting)["memory-held"]
    waiting = faults.daemon.wait_state("chat", "PENDING", 20)
    assert "waits until the memory of an earlier run is free on GPU-a" in waiting["reason"]
    faults.once(1)
    watch = Stopwatch()
    card.hold(1000)
    after = faults.again(1)
    watch.lap("from the memory's return to READY")
    assert conditions(after).keys() <= {"not-as-asked", "warning"}
    faults.once(2)


# --- P11: it cannot be killed -------------------------------------------------------------------------------------


@contextlib.contextmanager
def undying(pid: int) -> Iterator[None]:
    """A traced process that was killed stays until its tracer, this test, looks: it stands in for one in a driver."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(0x4206, pid, None, None):  # PTRACE_SEIZE
        pytest.fail(f"cannot trace {pid}: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        while not os.WIFSIGNALED(os.waitpid(pid, 0x40000000)[1]):  # __WALL
            pass


@pytest.mark.slow
def test_P11_what_cannot_be_killed(faults: Box, card: Card) -> None:
    """FAILED, told as such, nobody else on its GPU, no second start whatever is asked, and no busy loop."""
    common: dict[str, Any] = {"gpus": [0], "gpu_memory": "4GiB"}
    both = {"chat": faults.fake({"children": 1, "times": 0}, **common)}
    faults.daemon.write(both)
    faults.daemon.up()
    status = faults.ready()
    (child,) = [pid for pid in faults.below_shim() if pid != status["pid"]]
    shim = faults.shim()
    with undying(child):
        os.kill(status["pid"], signal.SIGKILL)
        faults.daemon.wait_state("chat", "KILLING", 20)
        both["other"] = faults.fake({}, **common)
        faults.daemon.write(both)
        stuck = faults.daemon.wait_state("chat", "FAILED", 60)
        assert stuck["reason"].startswith("unkillable: ") and stuck["retry_at"] is None
        assert stuck["last_exit"]["signal"] == "SIGKILL"

        waiting = faults.daemon.wait_service("other", lambda s: "cannot be killed" in s["reason"], 20, "the reason")
        assert waiting["state"] == "PENDING" and "chat" in waiting["reason"] and "GPU-a" in waiting["reason"]

        for order in ("start", "restart"):
            with pytest.raises(Refused, match="chat FAILED"):
                faults.daemon.call(order, service="chat", by="test", wait=False)
        assert faults.daemon.service("chat")["state"] == "FAILED"
        pids = {"daemon": faults.daemon.status()["daemon"]["pid"], "shim": shim}

        def idle() -> None:
            before, at = {name: faults.cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
            wait_until(lambda: time.monotonic() - at > 2, 5, "two seconds")
            for name, pid in pids.items():
                share = (faults.cpu_seconds(pid) - before[name]) / (time.monotonic() - at)
                print(f"{name} beside it: {share:.1%} of a core")
                assert share < 0.3

        undisturbed(idle)
        faults.once(1)
        faults.once(0, "other")
    faults.again(1)
    faults.ready("other")
    faults.once(2)
    faults.once(1, "other")


# --- the rest -----------------------------------------------------------------------------------------------------


def test_P23_killed_by_the_kernel_or_by_somebody(faults: Box) -> None:
    """A SIGKILL that nobody here ordered is what the OOM killer's looks like; the whole group goes."""
    status = faults.up({"children": 2}).ready()
    tree = faults.below_shim()
    os.kill(status["pid"], signal.SIGKILL)
    after = faults.again(1)
    assert (after["last_exit"]["cause"], after["last_exit"]["signal"]) == ("signal", "SIGKILL")
    assert "OOM killer" in after["last_exit"]["advice"] and "journalctl -k" in after["last_exit"]["advice"]
    gone(tree)
    faults.wait_exits(1)
    faults.once(2)


def test_P24_closed_output_is_no_death(faults: Box) -> None:
    """Output and liveness are two things: it lives, serves, and its end is seen as any other."""
    status = faults.up({}).ready()
    faults.inject(status, close_stdout=1)
    wait_until(lambda: os.readlink(f"/proc/{status['pid']}/fd/1") == "/dev/null", 5, "the end of its output")
    assert chat(status["endpoint"], faults.daemon.key("chat"))
    now = faults.daemon.service("chat")
    assert (now["state"], now["pid"], now["restarts"]) == ("READY", status["pid"], 0)
    with contextlib.suppress(OSError):
        faults.inject(status, exit=7)
    after = faults.again(1)
    assert after["last_exit"]["code"] == 7
    faults.once(2)


def test_P25_nothing_is_inherited(faults: Box) -> None:
    """Not a descriptor of the daemon, however many it has open, and not a variable but those that the plan names."""
    faults.daemon.environ |= {"CUDA_LAUNCH_BLOCKING": "1", "LLAMA_ARG_CTX_SIZE": "77", "NOTIFY_SOCKET": "/nowhere"}
    faults.daemon.write({"chat": faults.fake({})})
    faults.daemon.up()
    faults.ready()
    later = {"chat": faults.fake({}), "later": faults.fake({})}
    clients = [faults.daemon.call("ping") for _ in range(3)]
    faults.daemon.write(later)
    status = faults.ready("later")
    assert len(clients) == 3

    mine = links(status["pid"])
    assert mine[0] == "/dev/null" and mine[1] == mine[2] and mine[1].startswith("pipe:")
    theirs = set(links(faults.daemon.status()["daemon"]["pid"]).values())
    assert not {link for link in mine.values() if link.startswith(("socket:", "pipe:", "anon_inode:"))} & theirs
    assert not [link for link in mine.values() if link.startswith(str(faults.daemon.state))], mine

    environ = dict(
        pair.split("=", 1) for pair in Path(f"/proc/{status['pid']}/environ").read_text().split("\0") if "=" in pair
    )
    plan = faults.daemon.run_file("later", "launch.json")["env"]
    secrets = json.loads((faults.daemon.run_folder("later") / "secrets").read_text())
    del plan["PATH"]  # a wrapper around the interpreter may lengthen it
    assert environ.items() >= (plan | secrets).items()
    assert not environ.keys() & {"CUDA_LAUNCH_BLOCKING", "LLAMA_ARG_CTX_SIZE", "NOTIFY_SOCKET"}


def links(pid: int) -> dict[int, str]:
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found[int(fd.name)] = os.readlink(fd)
    return found


def test_P28_a_silent_fallback_to_the_cpu_is_told(faults: Box, card: Card) -> None:
    """It serves, hundreds of times slower: a condition says what was asked and what it has, one service restarts not."""
    faults.daemon.write(
        {
            "fallen": faults.fake({"cpu_fallback": 1}, gpus=[0], gpu_memory="4GiB"),
            "asked": faults.fake({"cpu_fallback": 1}, gpus=[]),
        }
    )
    faults.daemon.up()
    fallen: Json = faults.ready("fallen")
    assert fallen["asked"]["gpu_layers"] == "all" and fallen["got"]["gpu_layers"] == 0
    assert "asked gpu_layers all, the engine has 0" in conditions(fallen)["not-as-asked"]
    assert "not-as-asked" not in conditions(faults.ready("asked"))
    assert "asked gpu_layers all" in faults.daemon.cli("status").stdout
    faults.once(1, "fallen")

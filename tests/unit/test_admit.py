from __future__ import annotations

import pytest

from llmsupervisor.plan.launch import Refusal
from llmsupervisor.service.admit import admission
from llmsupervisor.service.room import Room
from llmsupervisor.service.states import Admitted, Refused, State, Status

ME = Status(State.PENDING, "up")


def ask(other: Status, mine: tuple[str, ...] = ("GPU-1",), theirs: tuple[str, ...] = ("GPU-0", "GPU-1")) -> object:
    return admission("me", {"me": ME, "other": other}, {"me": mine, "other": theirs}, (), ())


@pytest.mark.parametrize("state", State)
def test_one_start_at_a_time_on_a_gpu(state: State) -> None:
    held = {State.STARTING: "starts", State.STOPPING: "stops", State.KILLING: "stops"}
    answer = ask(Status(state))
    if state in held:
        assert answer == Refused(f"waits for other, which {held[state]} on GPU-1")
    else:
        assert answer == Admitted()


def test_an_unkillable_one_keeps_its_gpu() -> None:
    assert ask(Status(State.FAILED, unkillable=True)) == Refused("waits for other, which cannot be killed on GPU-1")


def test_a_closed_gpu_is_told_before_anything_else() -> None:
    refusals = (Refusal("memory", "too large", "vram"),)
    answer = admission("me", {"me": ME}, {"me": ("GPU-1",)}, refusals, ("GPU-1",), closed="GPU 1 is in quarantine")
    assert answer == Refused("GPU 1 is in quarantine")


def test_other_gpus_and_the_cpu_do_not_wait() -> None:
    assert ask(Status(State.STARTING), theirs=("GPU-0",)) == Admitted()
    assert ask(Status(State.STARTING), mine=(), theirs=()) == Admitted()
    assert admission("me", {"me": ME, "gone": Status(State.STARTING)}, {"me": ("GPU-1",)}, (), ()) == Admitted()


def test_memory_that_did_not_come_back() -> None:
    answer = admission("me", {"me": ME}, {"me": ("GPU-1",)}, (), {"GPU-1"})
    assert answer == Refused("waits until the memory of an earlier run is free on GPU-1")
    assert admission("me", {"me": ME}, {"me": ("GPU-1",)}, (), {"GPU-0"}) == Admitted()


def test_room_is_asked_last() -> None:
    none = Room(False, "waits for 8.0 GiB on GPU 0, 1.0 GiB free")
    assert admission("me", {"me": ME}, {"me": ("GPU-1",)}, (), (), none) == Refused(none.reason)
    busy = {"me": ME, "other": Status(State.STARTING)}
    answer = admission("me", busy, {"me": ("GPU-1",), "other": ("GPU-1",)}, (), (), none)
    assert answer == Refused("waits for other, which starts on GPU-1")


def test_refusals_of_the_plan_come_first() -> None:
    refusals = (Refusal("file", "no model", "file"), Refusal("port", "port taken", "port"))
    answer = admission("me", {"me": ME}, {"me": ("GPU-1",)}, refusals, {"GPU-1"})
    assert answer == Refused("no model; port taken")

"""Who gives up GPU memory for whom. Sizes in GiB here."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from llmsupervisor.service.room import (
    FAIR_WAIT,
    LOADS_WORTH,
    READY_AT_LEAST,
    Claim,
    Need,
    Resident,
    Room,
    fair_wait,
    kept,
    make_room,
    rests,
)

GIB = 1024**3
LABELS = {"a": "GPU 0", "b": "GPU 1"}


def need(gib: float | None = 8, waited: float | None = None, starved: bool = False, gpu: str = "a") -> Need:
    return Need("me", {gpu: None if gib is None else int(gib * GIB)}, waited, starved)


def other(name: str, gib: float | None = 8, gpu: str = "a", **more: object) -> Resident:
    said: dict[str, object] = {"keep_alive": 60.0, "idle": True, "ready_for": 100.0, "load": 2.0, "unused": 50.0}
    return Resident(name, {gpu: None if gib is None else int(gib * GIB)}, **(said | more))  # type: ignore[arg-type]


def ask(need: Need, free: float | None, *residents: Resident, claims: Sequence[Claim] = ()) -> Room:
    size = None if free is None else int(free * GIB)
    return make_room(need, dict.fromkeys(need.gpus, size), residents, claims, LABELS)


def test_what_fits_asks_nobody() -> None:
    assert ask(need(8), 8, other("idle")) == Room(True)
    assert ask(need(8), 7.95) == Room(True), "within the slack"
    assert make_room(Need("me", {}), {}, [other("idle")]) == Room(True), "on the CPU"


def test_what_the_bytes_are_made_of_is_said() -> None:
    asked = Need("me", {"a": 8 * GIB}, sums={"a": "8.0 GiB = weights 7.0 GiB + KV cache 1.0 GiB"})
    answer = make_room(asked, {"a": GIB}, [], (), LABELS)
    says = (
        "waits for 8.0 GiB = weights 7.0 GiB + KV cache 1.0 GiB on GPU 0, 1.0 GiB free; nothing there may be unloaded"
    )
    assert answer == Room(False, says)


def test_unknown_is_never_refused() -> None:
    assert ask(need(None), 1, other("idle")) == Room(True)
    assert ask(need(8), None, other("idle")) == Room(True)


def test_an_idle_one_is_asked_and_the_numbers_are_named() -> None:
    answer = ask(need(7.2), 3.1, other("vision"))
    assert answer == Room(
        False, "waits for 7.2 GiB on GPU 0, 3.1 GiB free; asks vision to unload", ("vision",), comes=True
    )


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    old, new = other("old", 4, unused=9), other("new", 4, unused=8)
    assert ask(need(4), 0, new, old).unload == ("old",)
    assert ask(need(8), 0, new, old).unload == ("old", "new")
    small = other("small", 1, unused=9.5)
    assert ask(need(4), 0, new, old, small).unload == ("old",), "small would go in vain"


@pytest.mark.parametrize(
    "who",
    [
        other("forever", keep_alive=None),
        other("elsewhere", gpu="b"),
        other("nothing", 0),
        other("too-small", 2),
    ],
    ids=lambda who: who.name,
)
def test_who_is_never_asked(who: Resident) -> None:
    answer = ask(need(8, waited=1e6), 1, who)
    assert not answer.fits and not answer.unload and not answer.comes
    assert answer.reason == "waits for 8.0 GiB on GPU 0, 1.0 GiB free; nothing there may be unloaded"


@pytest.mark.parametrize("who", [other("who", idle=None), other("who", ready_for=None)])
def test_who_is_not_known_to_be_idle_is_waited_for(who: Resident) -> None:
    answer = ask(need(8, waited=1e6), 1, who)
    assert (answer.unload, answer.comes) == ((), True)
    assert answer.reason.endswith("; who has to say first what runs there")


def test_nothing_is_unloaded_in_vain() -> None:
    """The idle one alone is not enough, and the other may not go yet."""
    answer = ask(need(8, waited=1.0), 0, other("idle", 4), other("busy", 4, idle=False))
    assert answer.unload == () and answer.comes
    assert answer.reason == "waits for 8.0 GiB on GPU 0, 0 B free; busy is in use and gives way after 5s of waiting"
    later = ask(need(8, waited=FAIR_WAIT), 0, other("idle", 4), other("busy", 4, idle=False))
    assert later.unload == ("idle", "busy")


def test_a_busy_one_gives_way_after_the_fair_wait() -> None:
    busy = other("busy", idle=False, load=30.0)
    assert fair_wait(busy) == 30 and kept(busy) == 60
    assert ask(need(8, waited=29.9), 0, busy).unload == ()
    assert ask(need(8, waited=30.0), 0, busy).unload == ("busy",)
    assert ask(need(8, waited=None), 0, busy).unload == (), "without a request nobody waits"
    assert fair_wait(other("quick", load=0.1)) == FAIR_WAIT and kept(other("new", load=None)) == READY_AT_LEAST


def test_what_was_just_loaded_and_works_stays() -> None:
    for load in (1.0, 30.0):
        least = max(READY_AT_LEAST, LOADS_WORTH * load)
        young = other("young", idle=False, load=load, ready_for=least - 0.1)
        assert ask(need(8, waited=1e6), 0, young).unload == ()
        old = other("old", idle=False, load=load, ready_for=least)
        assert ask(need(8, waited=1e6), 0, old).unload == ("old",)
        idle = other("idle", idle=True, load=load, ready_for=0.1)
        assert ask(need(8, waited=0.0), 0, idle).unload == ("idle",)


def test_between_two_requests_is_not_idle() -> None:
    for load, needed in ((1.0, 1.0), (30.0, FAIR_WAIT)):
        between = other("between", load=load, unused=needed - 0.1)
        assert ask(need(8, waited=0.0), 0, between).unload == () and ask(need(8, waited=0.0), 0, between).comes
        assert ask(need(8, waited=0.0), 0, other("rests", load=load, unused=needed)).unload == ("rests",)


def test_an_idle_one_goes_before_a_busy_one() -> None:
    busy, idle = other("busy", idle=False, unused=9), other("idle", unused=8)
    assert ask(need(8, waited=1e6), 0, busy, idle).unload == ("idle",)


def test_what_leaves_is_waited_for() -> None:
    answer = ask(need(8), 0, other("leaver", leaves=True), other("idle"))
    assert (answer.unload, answer.comes) == ((), True)
    assert answer.reason == "waits for 8.0 GiB on GPU 0, 0 B free; leaver unloads"
    assert ask(need(12), 0, other("leaver", leaves=True), other("idle")).unload == ("idle",)


def test_memory_made_for_another_is_not_taken() -> None:
    claim = Claim("first", {"a": 8 * GIB})
    answer = ask(need(8), 8, claims=[claim])
    assert answer == Room(False, "waits for 8.0 GiB on GPU 0, 8.0 GiB free, kept for first", comes=True)
    assert ask(need(8), 16, claims=[claim]).fits
    assert ask(need(8), 8, claims=[Claim("first", {"b": 8 * GIB})]).fits
    unknown = ask(need(1), 8, other("idle"), claims=[Claim("first", {"a": None})])
    assert not unknown.fits and unknown.unload == ()
    neither = ask(need(None), 8, other("idle"), claims=[Claim("first", {"a": None})])
    assert neither == Room(False, "waits for memory on GPU 0, kept for first", comes=True)


def test_a_starved_one_takes_one_at_a_time() -> None:
    first, second = other("first", None, unused=9), other("second", 4, unused=8)
    answer = ask(need(None, starved=True), 9, second, first)
    assert answer.unload == ("first",)
    assert answer.reason == "the last start did not find enough memory on GPU 0; asks first to unload"
    leaving = other("first", None, leaves=True)
    assert ask(need(None, starved=True), 9, second, leaving).unload == ()
    assert not ask(need(None, starved=True), 9).comes


def test_who_holds_nobody_knows_how_much_is_taken_to_hold_enough() -> None:
    assert ask(need(8), 0, other("dark", None)).unload == ("dark",)


def test_several_gpus_are_counted_each() -> None:
    wide = Need("me", {"a": 4 * GIB, "b": 4 * GIB})
    free = {"a": 8 * GIB, "b": 0}
    answer = make_room(wide, free, [other("on-a", gpu="a"), other("on-b", gpu="b")], labels=LABELS)
    assert answer.unload == ("on-b",) and "GPU 0" not in answer.reason
    both = make_room(wide, dict.fromkeys("ab", 0), [other("on-a", gpu="a"), other("on-b", gpu="b")], labels=LABELS)
    assert both.unload == ("on-a", "on-b") and " and 4.0 GiB on GPU 1" in both.reason
    spread = Resident("spread", {"a": 9 * GIB, "b": 3 * GIB}, 60.0, True, 50.0, 100.0, 2.0)
    short = make_room(wide, free, [spread], labels=LABELS)
    assert not short.unload and short.reason.endswith("nothing there may be unloaded"), (
        "the first has enough, the second gets too little"
    )
    assert make_room(wide, free, [spread, other("on-b", 2, gpu="b")]).unload == ("on-b", "spread")


@pytest.mark.parametrize("seed", range(200))
def test_whoever_is_asked_is_enough_and_none_too_many(seed: int) -> None:
    rng = random.Random(seed)
    residents = [
        other(
            f"r{i}",
            rng.choice([1, 2, 4, 8]),
            rng.choice("ab"),
            keep_alive=rng.choice([None, 5.0]),
            idle=rng.choice([True, False, None]),
            unused=rng.choice([1.0, 3.0]),
            ready_for=rng.choice([1.0, 50.0]),
            leaves=rng.random() < 0.2,
        )
        for i in range(rng.randrange(6))
    ]
    wants = Need("me", {uuid: rng.randrange(12) * GIB for uuid in "ab"}, rng.choice([None, 1.0, 50.0]))
    free = {uuid: rng.randrange(6) * GIB for uuid in "ab"}
    answer = make_room(wants, free, residents)

    def fits(gone: Sequence[str]) -> bool:
        back = {
            uuid: sum(r.holds.get(uuid) or 0 for r in residents if r.leaves or r.name in gone) + (free[uuid] or 0)
            for uuid in "ab"
        }
        return all((wants.gpus[uuid] or 0) <= back[uuid] for uuid in "ab")

    by_name = {r.name: r for r in residents}
    may = [
        r.name
        for r in residents
        if r.keep_alive is not None
        and not r.leaves
        and (rests(r) or (r.idle is not None and (wants.waited or 0) >= fair_wait(r) and (r.ready_for or 0) >= kept(r)))
    ]
    if answer.unload:
        assert set(answer.unload) <= set(may) and fits(answer.unload)
        for fewer in itertools.combinations(answer.unload, len(answer.unload) - 1):
            assert not fits(fewer), f"{set(answer.unload) - set(fewer)} was not needed"
        assert all(by_name[name].keep_alive is not None for name in answer.unload)
    elif not answer.fits:
        assert fits([]) or not fits(may), "it could have been made"

"""`gpus` words to cards: never silently another one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from support.boxes import CARDS, engine, facts

from llmsupervisor.plan.facts import Facts, GpuFact
from llmsupervisor.plan.place import Placed, gpu_words, place
from llmsupervisor.spec.model import Service

A, B, C = (card.uuid for card in CARDS)


def placed(gpus: Any, box: Facts | None = None, runtime: str = "engine") -> Placed:
    said = {} if gpus is None else {"gpus": gpus}
    chat = Service.model_validate({"runtime": runtime, **said})
    return place("chat", chat, engine()[runtime], box or facts(gpus=CARDS))


def cards(gpus: Any, box: Facts | None = None) -> list[str]:
    found = placed(gpus, box)
    assert found.refusals == ()
    return [gpu.uuid for gpu in found.gpus]


def refused(gpus: Any, box: Facts | None = None) -> str:
    found = placed(gpus, box)
    assert found.gpus == () and [(r.kind, r.retry) for r in found.refusals] == [("gpu", "gpu")]
    return found.refusals[0].text


def test_words_are_indices_uuids_or_nothing() -> None:
    assert cards([2, 0]) == [C, A]
    assert cards([B, "cccc"]) == [B, C]
    assert cards([]) == []
    assert [gpu_words(Service(runtime="x", gpus=g)) for g in (None, "auto", (), (0, A))] == [[], ["auto"], [], [0, A]]


def test_auto_is_the_first_card_with_the_most_memory() -> None:
    assert cards("auto") == [B]
    unknown = tuple(replace(card, memory_total=None) for card in CARDS)
    assert cards("auto", facts(gpus=unknown)) == [A]


def test_what_is_not_on_this_box_refuses() -> None:
    assert refused([3]) == (
        "services.chat.gpus: no GPU has index 3; this box has GPU 0 (RTX 4090, GPU-aaaa), GPU 1 (RTX 4090, GPU-bbbb), "
        "GPU 2 (RTX 4090, GPU-cccc)"
    )
    assert "no GPU has the UUID GPU-dddd" in refused(["GPU-dddd"])
    assert "names GPU 0 (RTX 4090, GPU-aaaa) twice" in refused([0, A])
    assert "this box has no GPU;" in refused([0], facts(gpus=()))
    assert "this box has no GPU (no driver);" in refused([0], facts(gpus=(), gpu_error="no driver"))
    assert "no GPU" in refused("auto", facts(gpus=()))


def test_unreadable_gpus_refuse_all_but_who_runs_on_the_cpu() -> None:
    broken = facts(gpus=None, gpu_error="driver/library version mismatch")
    assert "asks for 0, but the GPUs of this box cannot be read: driver/library" in refused([0], broken)
    assert "NVML does not answer" in refused("auto", facts(gpus=None))
    assert placed([], broken) == Placed()
    assert "is not said" in refused(None, broken) and "`gpus = []`" in refused(None, broken)
    assert placed(None, broken, runtime="bare") == Placed()


def test_where_a_gpu_is_gpus_must_be_said() -> None:
    assert "`gpus = [0]`" in refused(None)
    assert placed(None, facts(gpus=())) == Placed()
    assert placed(None, runtime="bare") == Placed()


def test_an_index_means_the_card_that_it_first_meant() -> None:
    swapped = (GpuFact(B, 0, "x", 1), GpuFact(A, 1, "x", 1))
    assert cards([0], facts(gpus=swapped)) == [B]
    kept: dict[str, Any] = {"kept_gpus": {"chat": (A,)}, "kept_gpu_words": {"chat": [0]}}
    assert cards([0], facts(gpus=swapped, **kept)) == [A]
    assert cards([1], facts(gpus=swapped, **kept)) == [A], "other words: nothing is kept"
    assert cards([0], facts(gpus=swapped, kept_gpus={"chat": (A,)})) == [A]
    gone = refused([0], facts(gpus=(*CARDS[1:], GpuFact("GPU-x", 0, "T4", 1)), **kept))
    assert "index 0 meant GPU-aaaa, which is not on this box now, and index 0 is now GPU 0 (T4, GPU-x)" in gone
    assert "index 0 meant GPU-aaaa, which is not on this box now; write" in refused([0], facts(gpus=CARDS[1:], **kept))


def test_auto_stays_where_it_was() -> None:
    kept: dict[str, Any] = {"kept_gpus": {"chat": (A,)}, "kept_gpu_words": {"chat": ["auto"]}}
    assert cards("auto", facts(gpus=CARDS, **kept)) == [A]
    assert "was given GPU-aaaa" in refused("auto", facts(gpus=CARDS[1:], **kept))

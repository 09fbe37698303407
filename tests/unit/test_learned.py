"""What starts taught: kept, found again for the same and for like settings, bounded, and readable whatever lies on the disk."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from support.planned import CARD, A, B, at, box, llama, one

from llmsupervisor.daemon.lessons import of_file
from llmsupervisor.host.resident import held
from llmsupervisor.plan.learned import MOST, Key, Learned, alike, from_json, same, taught, to_json
from llmsupervisor.plan.measure import key

GIB = 1024**3
KEY = Key("llama-server", "1", "RTX 4090", "f1")
ONE = Learned(KEY, held=10 * GIB, planned=9 * GIB, overhead=GIB, compute=5, time=1.5)


def test_the_same_settings_count_their_starts() -> None:
    twice = taught(taught((), ONE), replace(ONE, held=11 * GIB))
    assert [(one.starts, one.held) for one in twice] == [(2, 11 * GIB)]
    grown = taught(twice, replace(ONE, held=12 * GIB), again=True)
    assert [(one.starts, one.held) for one in grown] == [(2, 12 * GIB)]
    assert same(grown, KEY) == grown[0] and same(grown, replace(KEY, flags="f2")) is None


def test_like_settings_are_those_of_the_nearest_size() -> None:
    small = replace(ONE, key=replace(KEY, flags="f2"), held=2 * GIB, overhead=GIB // 2)
    other = replace(ONE, key=replace(KEY, place="host"))
    lessons = (ONE, small, other)
    asked = replace(KEY, flags="new")
    assert alike(lessons, asked, GIB) == small and alike(lessons, asked, 20 * GIB) == ONE
    assert alike(lessons, replace(asked, version="2"), GIB) is None
    assert alike((replace(ONE, planned=None),), asked, GIB) is None, "what was not known is no overhead"


def test_the_oldest_are_forgotten() -> None:
    lessons: tuple[Learned, ...] = ()
    for n in range(MOST + 5):
        lessons = taught(lessons, replace(ONE, key=replace(KEY, flags=str(n))))
    assert len(lessons) == MOST and lessons[-1].key.flags == str(MOST + 4)


def test_kept_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "learned.json"
    file.write_text(json.dumps(to_json((ONE, replace(ONE, planned=None, compute=None)))))
    assert of_file(file) == (ONE, replace(ONE, planned=None, compute=None))
    bad = {"key": {}, "held": 1}
    entry = to_json((ONE,))["entries"]
    assert isinstance(entry, list)
    assert from_json({"entries": [5, bad, {**bad, "key": 3}, *entry]}) == (ONE,)
    odd = {**entry[0], "planned": "x", "starts": None, "time": 3} if isinstance(entry[0], dict) else {}
    assert from_json({"entries": [odd]}) == (replace(ONE, planned=None, time=0.0),)
    assert from_json({}) == () == of_file(tmp_path / "none")
    file.write_text("[")
    assert of_file(file) == ()
    file.write_text("[]")
    assert of_file(file) == ()


def test_what_a_tree_holds() -> None:
    mine = held([os.getpid()])
    assert mine and mine > 1024**2
    assert held([os.getpid(), 2**22 + 1]) and held([2**22 + 1]) is None and held([]) is None


def test_two_cards_of_one_name_teach_each_their_own() -> None:
    twin = replace(CARD, uuid=B, index=1)
    text = llama(gpus=[0, 1], extra_args=["--tensor-split", "1,3"])
    plan, facts = box(text, gpus=(CARD, twin))
    chat = plan.services["chat"]
    lessons = tuple(
        Learned(key(chat, facts, card), held=held, planned=held, overhead=0)
        for card, held in ((CARD, 4 * GIB), (twin, 9 * GIB))
    )
    again = one(text, gpus=(CARD, twin), learned=lessons)
    assert (at(again, A).total, at(again, B).total) == (4 * GIB, 9 * GIB)

"""Edits as people see them: key by key, from what holds now, and whether the service restarts for it."""

from __future__ import annotations

from typing import Any

import pytest
from support.boxes import load
from support.findings import BOX, definitions, llama, ollama

from llmsupervisor.plan.plan import plan
from llmsupervisor.plan.rules.rule import Edit
from llmsupervisor.plan.turns import turns


def said(text: str, *edits: Edit) -> list[tuple[Any, ...]]:
    spec, loaded = load(text, definitions())
    (service,) = plan(spec, definitions(), BOX, loaded.origins).services.values()
    return [(t.key, t.old, t.new, t.restarts) for t in turns(service, edits)]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (Edit(("kv_cache_type",), "f16"), ("kv_cache_type", "q8_0", "f16", True)),
        (Edit(("ubatch",), 256), ("ubatch", 512, 256, True)),
        (Edit(("cache_ram",), "256MiB"), ("cache_ram", "1GiB", "256MiB", True)),
        (Edit(("keep_alive",), "10m"), ("keep_alive", "forever", "10m", False)),
        (Edit(("ready",), "/ok"), ("ready", None, "/ok", False)),
        (Edit(("probe", "enabled"), False), ("probe.enabled", True, False, False)),
        (Edit(("env", "A"), "1"), ("env.A", None, "1", True)),
        (Edit(("threads",)), ("threads", None, None, True)),
    ],
)
def test_what_holds_now_is_told_also_where_the_spec_is_silent(edit: Edit, told: tuple[Any, ...]) -> None:
    assert said(llama(), edit) == [told]


def test_sizes_are_told_as_people_write_them() -> None:
    assert said(llama(cache_ram="2048MiB"), Edit(("cache_ram",), "1GiB")) == [("cache_ram", "2GiB", "1GiB", True)]
    assert said(llama(cache_ram="1536MiB"), Edit(("cache_ram",))) == [("cache_ram", "1536MiB", None, True)]
    assert said(llama(cache_ram="1000B"), Edit(("cache_ram",)))[0][1] == "1000B"
    assert said(llama(cache_ram="0B"), Edit(("cache_ram",)))[0][1] == "0B"


def test_a_list_is_told_whole_and_a_table_key_by_key() -> None:
    words = llama(extra_args=["--seed", "1", "--swa-full"], env={"A": "1", "B": "2"})
    assert said(words, Edit(("extra_args", 2))) == [
        ("extra_args", ["--seed", "1", "--swa-full"], ["--seed", "1"], True)
    ]
    assert said(words, Edit(("env", "A")), Edit(("env", "B"), "3")) == [
        ("env.A", "1", None, True),
        ("env.B", "2", "3", True),
    ]


def test_inside_the_models_of_an_ollama() -> None:
    ((key, old, new, _),) = said(ollama(), Edit(("models", 0, "context_length"), 8192))
    assert (key, old[0]["context_length"], new[0]["context_length"]) == ("models", 4096, 8192)

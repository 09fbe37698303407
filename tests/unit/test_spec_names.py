"""The names of models: which may repeat, what a policy may touch, and where a request may go that does not fit."""

from __future__ import annotations

import pytest

from llmsupervisor.spec.load import load
from llmsupervisor.spec.names import all_names, names_of

CHAT = '[services.chat]\nruntime = "llama-server"\ncontext_length = 8\n'


def wrong(text: str) -> list[tuple[int, str]]:
    return [(p.line, str(p).removeprefix(f"f:{p.line}: ")) for p in load(text, "f").problems]


def service(name: str, *lines: str, runtime: str = "llama-server") -> str:
    return "\n".join([f"[services.{name}]", f"runtime = '{runtime}'", *lines, ""])


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("aliases = ['']", "services.chat.aliases[0]: expected a list of names"),
        ("aliases = [' a']", 'services.chat.aliases[0]: " a" cannot be the name of a model; allowed: 1 to 200 visible'),
        ('aliases = ["a\\n"]', 'services.chat.aliases[0]: "a\\n" cannot be the name of a model'),
        ('aliases = ["a\\u202e"]', "cannot be the name of a model"),
        ("names.'' = {}", 'services.chat.names."": "" cannot be the name of a model'),
        (f"names.{'x' * 201} = {{}}", "cannot be the name of a model"),
        ("aliases = ['a']\nnames.a = {}", 'services.chat.names.a: "a" stands in aliases too; allowed: one of the two'),
        ("names.chat = {}", 'services.chat.names.chat: "chat" is the name of a service; allowed: a name that nobody'),
        (
            "names.a.set.model = 'x'",
            "names.a.set.model: model is the request itself and is left as it is; allowed: any",
        ),
        ("names.a.set.stream = true", "names.a.set.stream: stream is the request itself"),
        ("names.a.strip = ['seed', 'messages']", "names.a.strip[1]: messages is the request itself"),
        (
            "names.a = {set = {seed = 1}, strip = ['seed']}",
            'services.chat.names.a.strip[0]: "seed" is also set: setting replaces what the client said',
        ),
        ("names.a.set.x = 2026-01-02", "names.a.set.x: the date or time 2026-01-02 does not exist in JSON"),
        ("names.a.set.x = { y = [1, nan] }", "names.a.set.x.y[1]: nan does not exist in JSON"),
        ("names.a.sets = {}", "services.chat.names.a.sets: unknown key; did you mean set?"),
        ("names = ['a']", "services.chat.names: expected a table for each name, found a list of 1"),
        ("listed = 'no'", 'services.chat.listed: expected true or false (in the list of models), found "no"'),
        ("overflow = 'chat'", "services.chat.overflow: a service cannot take its own overflow"),
        ("overflow = 'x'", 'services.chat.overflow: there is no service "x"; allowed: none: there is no other service'),
    ],
)
def test_one_service(setting: str, text: str) -> None:
    found = wrong(CHAT + setting)
    assert len(found) == 1 and text in found[0][1], found
    assert found[0][0] == len((CHAT + setting).splitlines())


def test_a_policy() -> None:
    settings = (
        "names.'chat-precise' = { set = { temperature = 0, stop = [\"\\n\"], x = { y = true } }, strip = ['seed'] }"
    )
    loaded = load(f"{CHAT}{settings}\nnames.'ö/x:1'.listed = false\nlisted = false\n", "f")
    assert loaded.spec is not None
    chat = loaded.spec.services["chat"]
    assert chat.names["chat-precise"].set == {"temperature": 0, "stop": ["\n"], "x": {"y": True}}
    assert names_of("chat", chat) == ("chat", "chat-precise", "ö/x:1")
    assert not chat.names["ö/x:1"].listed


def test_replicas_share_an_alias() -> None:
    text = CHAT + "aliases = ['x', 'chat']\n" + service("b", "aliases = ['x']")
    assert wrong(text) == []
    loaded = load(text, "f")
    assert loaded.spec is not None and all_names(loaded.spec.services) == ("chat", "x", "b")


@pytest.mark.parametrize(
    ("first", "second", "line", "text"),
    [
        ("aliases = ['x', 'b']", "", 4, 'services.chat.aliases[1]: "b" is the name of a service'),
        ("names.b = {}", "", 4, 'services.chat.names.b: "b" is the name of a service'),
        ("names.x = {}", "names.x = {}", 7, 'services.b.names.x: "x" is also a name of services.chat'),
        ("names.x = {}", "aliases = ['x']", 4, 'services.chat.names.x: "x" is also an alias or a model of another'),
        (
            "names.x = {}",
            "models = [{ name = 'x', context_length = 1 }]",
            4,
            'services.chat.names.x: "x" is also an alias or a model of another',
        ),
    ],
)
def test_names_that_clash(first: str, second: str, line: int, text: str) -> None:
    found = wrong(f"{CHAT}{first}\n" + service("b", second))
    assert len(found) == 1 and found[0][0] == line and text in found[0][1], found


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (service("long", "context_length = 8"), "services.long has context_length 8, which is not more than 8"),
        (service("long", "context_length = 9", "enabled = false"), "services.long is not enabled"),
        (service("long", "context_length = 9", "task = 'embed'"), "services.long does embed, not chat"),
        (service("long"), "services.long says no context_length: what fits where cannot be told"),
        (service("lon", "context_length = 9"), 'there is no service "long"; allowed: "lon"; did you mean "lon"?'),
        (
            service("long", "models = [{ name = 'a', context_length = 9 }, { name = 'b', context_length = 8 }]"),
            "services.long has context_length 8",
        ),
    ],
)
def test_overflow_that_leads_nowhere(target: str, text: str) -> None:
    found = wrong(f"{CHAT}overflow = 'long'\n{target}")
    assert len(found) == 1 and found[0][0] == 4 and text in found[0][1], found


def test_overflow_goes_in_steps_and_never_in_a_circle() -> None:
    chain = f"{CHAT}overflow = 'b'\n" + service("b", "context_length = 9", "overflow = 'c'")
    assert wrong(chain + service("c", "context_length = 10")) == []
    found = wrong(chain + service("c", "context_length = 10", "overflow = 'chat'"))
    assert len(found) == 1 and "services.chat has context_length 8, which is not more than 10" in found[0][1]

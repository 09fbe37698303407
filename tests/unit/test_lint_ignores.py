"""`# llmsupervisor: ignore C13 reason`: where such a comment stands, and which findings it keeps."""

from __future__ import annotations

import pytest
from support.findings import found

from llmsupervisor.spec.ignores import Ignore, ignores
from llmsupervisor.spec.locate import Comment, locate

MARK = "# llmsupervisor: ignore C13 small model"
SERVICES = """\
[services.a]
runtime = "llama-server"
model = "/m/a.gguf"
context_length = 2048
parallel = 1
kv_cache_type = "f16"
gpus = []

[services.b]
runtime = "llama-server"
model = "/m/a.gguf"
context_length = 2048
parallel = 1
kv_cache_type = "f16"
gpus = []
"""


def kept(text: str) -> dict[str, str]:
    """Service → reason, of C13."""
    return {f.service: f.ignored for f in found(text) if f.rule == "C13"}


@pytest.mark.parametrize(
    ("old", "new", "services"),
    [
        ("", "", ""),
        ("[services.a]\n", f"[services.a]   {MARK}\n", "a"),
        ("[services.a]\n", f"{MARK}\n# and more\n[services.a]\n", "a"),
        ('parallel = 1\nkv_cache_type = "f16"\n', f'parallel = 1\nkv_cache_type = "f16"  {MARK}\n', "a"),
        ('kv_cache_type = "f16"\n', f'kv_cache_type = "f16"  # as it was; {MARK[2:]}\n', "a"),
        ("gpus = []\n\n", f"gpus = []\n{MARK}\n\n", "a"),
        ("gpus = []\n\n", f"gpus = [\n]  {MARK}\n\n", "a"),
        ("\n[services.b]\n", f"\n{MARK}\n[services.b]\n", "b"),
        ("[services.a]\n", f"{MARK}\n\n[services.a]\n", "ab"),
        ("[services.a]\n", f"[logs]  {MARK}\n[services.a]\n", "ab"),
        ("[services.a]\n", f"[defaults]\nprobe = {{ timeout = '9s' }} {MARK}\n[services.a]\n", "ab"),
        ("[services.a]\n", f"[defaults.llama-server]\nthreads = 2 {MARK}\n[services.a]\n", "ab"),
        ("[services.a]\n", f"[defaults.vllm]\nbatch = 2048 {MARK}\n[services.a]\n", ""),
        ("gpus = []\n\n", f'aliases = ["{MARK}"]\ngpus = []\n\n', ""),
    ],
)
def test_it_counts_where_it_stands(old: str, new: str, services: str) -> None:
    text = SERVICES.replace(old, new, 1)
    assert kept(text) == {name: "small model" if name in services else "" for name in "ab"}


def test_several_rules_in_one_comment() -> None:
    text = SERVICES.replace(
        "context_length = 2048\n", "context_length = 1000  # llmsupervisor: ignore C13, C03: why\n", 1
    )
    assert {(f.rule, f.ignored) for f in found(text) if f.service == "a"} == {("C13", "why"), ("C03", "why")}


@pytest.mark.parametrize(
    ("comment", "wrong"),
    [
        ("# llmsupervisor: ignore C13", "gives no reason to ignore C13"),
        ("# llmsupervisor: ignore C13 -", "gives no reason to ignore C13"),
        ("# llmsupervisor: ignore", "names no rule"),
        ("# llmsupervisor: ignore all of it", "names no rule"),
        ("# llmsupervisor: ignore C13, C999 old", "there is no rule C999"),
    ],
)
def test_one_that_is_not_obeyed_is_told(comment: str, wrong: str) -> None:
    text = SERVICES.replace("[services.a]\n", f"[services.a] {comment}\n")
    (told,) = (f for f in found(text) if f.rule == "ignore")
    assert wrong in told.says and (told.severity, told.service, told.line) == ("warning", "a", 1)
    assert kept(text) == {"a": "", "b": ""}
    (everywhere,) = (f for f in found(f"{comment}\n\n{SERVICES}") if f.rule == "ignore")
    assert str(everywhere).startswith("spec.toml:1: warning ignore ignore: ")


def test_comments_are_located() -> None:
    text = '# top\na = "# no" # yes \nb = [ # one\n  1, # two\n]\n[c] # three'
    assert locate(text).comments == {
        1: Comment("# top", True),
        2: Comment("# yes", False),
        3: Comment("# one", False),
        4: Comment("# two", False),
        6: Comment("# three", False),
    }
    assert list(ignores(locate("# only\n" + MARK))) == [Ignore(("C13",), "small model", 2)]

"""`advise` as people read it, and its questions."""

from __future__ import annotations

import copy
from typing import Any

from llmsupervisor.cli import adviceviews
from llmsupervisor.cli.views import text_of

FOUND: dict[str, Any] = {
    "id": "C13:chat",
    "rule": "C13",
    "name": "kv-f16",
    "severity": "warning",
    "service": "chat",
    "key": "kv_cache_type",
    "says": "left at f16",
    "change": 'kv_cache_type = "q8_0"',
    "effect": "half the memory",
    "evidence": {"kv_cache_type": "f16", "longest": None},
    "source": "PR #7412",
    "requests": None,
    "changes": [
        {"key": "kv_cache_type", "old": "f16", "new": "q8_0", "restarts": True},
        {"key": "keep_alive", "old": None, "new": None, "restarts": False},
    ],
    "fixable": True,
    "file": "/etc/x.toml",
    "line": 12,
    "ignored": None,
}


def advice(*findings: dict[str, Any], reason: str | None = None) -> Any:
    return {"path": "/etc/x.toml", "sha256": "a", "window_s": 604800.0, "reason": reason, "findings": list(findings)}


def told(said: Any, every: bool = False) -> str:
    return "\n".join(map(text_of, adviceviews.advice(said, every)))


def changed(**keys: Any) -> dict[str, Any]:
    return copy.deepcopy(FOUND) | keys


def test_a_finding_says_what_where_and_how_anybody_knows() -> None:
    text = told(advice(FOUND, changed(id="R63:chat", requests=600, says="an\x1besc")))
    for words in (
        "warning  C13:chat  services.chat.kv_cache_type",
        '"f16" → "q8_0"  restarts it',
        "– → (left out)  live",
        "half the memory",
    ):
        assert words in text
    assert 'seen    kv_cache_type "f16", longest –' in text and "(600 requests)" in text
    assert "\x1b" not in text


def test_what_is_ignored_is_counted_or_shown() -> None:
    ignored = changed(ignored="it is small", service="", key="ignore")
    assert "1 ignored with a reason" in told(advice(ignored)) and "no finding" in told(advice(ignored))
    assert "ignored it is small" in told(advice(ignored), every=True)


def test_without_findings_and_without_requests() -> None:
    assert told(advice()) == "no finding: neither in the plan nor in the requests of 7d00h"
    assert "nothing was read of requests: no gateway" in told(advice(FOUND, reason="no gateway"))


def test_a_staged_change_shows_lines_services_and_what_is_in_the_way() -> None:
    said: Any = {
        "diff": "--- a\n+++ a\n@@ -1 +1 @@\n-x = 1\n+x = 2\n",
        "changes": [{"service": "chat", "action": "restart", "why": "x 1 → 2"}],
        "refusals": [{"service": "chat", "text": "no room"}],
        "findings": [changed(severity="error", says="worse")],
    }
    text = "\n".join(map(text_of, adviceviews.staged(said)))
    assert "+x = 2" in text and "chat  restart  x 1 → 2" in text
    assert "chat could not start with it: no room" in text and "error C13:chat: worse" in text
    quiet = adviceviews.staged({**said, "changes": [], "refusals": [], "findings": []})
    assert "no service changes" in "\n".join(map(text_of, quiet))

"""Requests as a trace: Mooncake's JSON lines with more keys, for load generators that replay them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmsupervisor.link.requests import RequestRecord

BLOCK = 512
"""Tokens that a hash stands for in a Mooncake trace. Ours stand for 2048 bytes of prompt, about as much."""


class Trace:
    """Records in the order of their arrival. Hashes and sessions become numbers in the order of their first use: a trace
    tells who shares what with whom, and not who they are.
    """

    def __init__(self) -> None:
        self.left_out = 0
        """Records without the two lengths that a replay needs."""
        self._start: float | None = None
        self._blocks: dict[str, int] = {}
        self._next = 0
        self._sessions: dict[str, int] = {}

    def line(self, record: RequestRecord) -> dict[str, Any] | None:
        prompt, output = record["prompt_tokens"], record["completion_tokens"]
        if output is None and record["api"] in ("embeddings", "rerank") and record["status"] < 400:
            output = 0
        if prompt is None or output is None:
            self.left_out += 1
            return None
        self._start = record["time"] if self._start is None else self._start
        line: dict[str, Any] = {
            "timestamp": round((record["time"] - self._start) * 1000),
            "input_length": prompt,
            "output_length": output,
        }
        if record["hash_ids"] is not None:
            line["hash_ids"] = self._hashes(record["hash_ids"], prompt)
        session = record["session_id"]
        return {
            **line,
            "session_id": None if session is None else str(self._sessions.setdefault(session, len(self._sessions) + 1)),
            "model": record["model"],
            "max_tokens": record["max_tokens"],
            "ttft_ms": record["ttft_ms"],
            "tpot_ms": _tpot(record, output),
            "cached_tokens": record["cached_tokens"],
        }

    def _hashes(self, hashes: list[str], prompt: int) -> list[int]:
        """As many as blocks of the prompt, which readers insist on: the last ones left out, or blocks of its own added."""
        blocks = -(-prompt // BLOCK)
        known = [self._number(each) for each in hashes[:blocks]]
        return known + [self._new() for _ in range(blocks - len(known))]

    def _number(self, block: str) -> int:
        if block not in self._blocks:
            self._blocks[block] = self._new()
        return self._blocks[block]

    def _new(self) -> int:
        self._next += 1
        return self._next - 1


def _tpot(record: RequestRecord, output: int) -> float | None:
    """Milliseconds per token after the first; None where there is none."""
    if record["ttft_ms"] is None or output < 2:
        return None
    return round((record["total_ms"] - record["ttft_ms"]) / (output - 1), 3)

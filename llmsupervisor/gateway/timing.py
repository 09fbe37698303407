"""What an answer says of itself while it passes: when its content came, how it ended, the engine's own figures. Pure.

Before the first content every event is parsed; after it, one that has the mark of its api counts as content unread, and
only the others (finish, usage, errors) are parsed.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

EVENT = 1024**2
"""Bytes of an event above which it is not read."""
WHOLE = 256 * 1024
"""Bytes of a body that is no stream, above which only its two ends are read: its parsing would hold up other streams."""
ENDS = 64 * 1024
GAPS = 1024
"""Gaps kept of one answer; of more, a sample."""

MARKS = {
    "messages": b'"content_block_delta"',
    "responses": b'"type":"response.output_text.delta"',
    "infill": b'"stop":false',
    "api.chat": b'"done":false',
    "api.generate": b'"done":false',
}
MARK = b'"finish_reason":null'
"""In events with content and in no other, of chat.completions and completions."""
ENDED = {"message_stop", "response.completed", "response.incomplete", "response.failed"}
UNITS = {"_ns": 1e-6, "_us": 1e-3, "_seconds": 1e3}
"""Milliseconds. A figure whose name ends so is kept under the name with `_ms`."""

_decode = json.JSONDecoder().raw_decode


class Reader:
    """Of one answer. `first` and `last`: when content came, in the caller's clock; of an answer that is no stream they
    are not known. `progress`: tokens of the prompt processed, and all of them. Figures are the last that were said."""

    __slots__ = (
        "_api",
        "_head",
        "_held",
        "_lines",
        "_mark",
        "_seed",
        "_separator",
        "_skipping",
        "_stream",
        "_timing",
        "_unread",
        "cached_tokens",
        "chunks",
        "complete",
        "completion_tokens",
        "error",
        "figures",
        "finish_reason",
        "first",
        "gaps",
        "last",
        "progress",
        "prompt_tokens",
        "truncated",
    )

    def __init__(self, api: str, stream: bool, timing: Mapping[str, str], lines: bool = False) -> None:
        """`lines`: a stream of JSON lines, not of events."""
        self.first: float | None = None
        self.last: float = 0.0
        """Only with `first`."""
        self.chunks = 0
        self.gaps = array("f")
        """Seconds between chunks of content."""
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.complete = False
        self.truncated = False
        self.prompt_tokens: int | None = None
        """With cached ones."""
        self.cached_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.figures: dict[str, float] = {}
        self.progress: tuple[int, int] | None = None
        self._stream = stream
        self._api = api
        self._lines = lines
        self._separator = b"\n" if lines else b"\n\n"
        self._timing = timing
        self._mark = MARKS.get(api, MARK)
        self._held = bytearray()
        """The begun event; of an answer that is no stream, the body."""
        self._skipping = False
        self._unread = b""
        """The last event that was counted unread."""
        self._head: bytes | None = None
        self._seed = 1

    def feed(self, piece: bytes, now: float) -> None:
        if (
            self.first is not None
            and not self._held
            and self._mark in piece
            and piece.find(self._separator) == len(piece) - len(self._separator)
            and self._stream
        ):
            if len(self.gaps) < GAPS:
                self.gaps.append(now - self.last)
            else:
                self._sample(now - self.last)
            self.last = now
            self.chunks += 1
            self._unread = piece
        elif self._stream:
            self._split(piece, now)
        else:
            self._held += piece
            if len(self._held) > WHOLE:
                if self._head is None:
                    self._head = bytes(self._held[:ENDS])
                del self._held[:-ENDS]

    def end(self, now: float) -> None:
        """No byte comes any more, whether it was complete or not."""
        rest = bytes(self._held)
        if not self._stream or (not self.chunks and rest.lstrip().startswith(b"{")):
            self._whole(rest)
        else:
            if rest and not self._skipping:
                self._parse(rest, now)
            if not self.complete and (said := _object(self._payload(self._unread))) is not None:
                self._read(said)
        figures = self.figures
        if self._api.startswith("api."):
            _residual(figures)
        if self.completion_tokens is None:
            self.completion_tokens = _count(figures.get("completion_tokens"))
        if self.cached_tokens is None:
            self.cached_tokens = _count(figures.get("cached_tokens"))
        if self.prompt_tokens is None:
            computed = _count(figures.get("prefill_tokens"))
            total = None if computed is None else computed + (self.cached_tokens or 0)
            self.prompt_tokens = _count(figures.get("prompt_tokens", total))

    def itl(self, share: float) -> float | None:
        """Seconds between chunks that `share` of them do not pass."""
        if not self.gaps:
            return None
        return sorted(self.gaps)[min(len(self.gaps) - 1, int(share * len(self.gaps)))]

    # --- events --------------------------------------------------------------------------------------------------

    def _split(self, piece: bytes, now: float) -> None:
        data = piece.replace(b"\r", b"") if b"\r" in piece else piece
        held, separator = self._held, self._separator
        if held:
            at = len(held) - 1
            held += data
            end = held.find(separator, at)
            if end >= 0:
                data = bytes(held)
                held.clear()
        else:
            end = data.find(separator)
            if end < 0:
                held += data
        start = 0
        while end >= 0:
            if self._skipping:
                self._skipping = False
            elif end - start <= EVENT:
                self._event(data[start:end], now)
            start = end + len(separator)
            end = data.find(separator, start)
            if end < 0:
                held += data[start:]
        if len(held) > EVENT + 1:
            self._skipping = True
            del held[:-1]

    def _event(self, event: bytes, now: float) -> None:
        if self.first is not None and self._mark in event:
            self._content(now)
            self._unread = event
        else:
            self._parse(event, now)

    def _payload(self, event: bytes) -> bytes:
        return event.strip() if self._lines else _payload(event)

    def _parse(self, event: bytes, now: float) -> None:
        data = self._payload(event)
        if data == b"[DONE]":
            self.complete = True
            return
        said = _object(data)
        if said is None:
            return
        kind = said.get("type")
        if isinstance(kind, str) and kind.startswith("response.") and kind.endswith(".delta"):
            self._mark = b'"type":"%s"' % kind.encode("utf-8", "replace")
        if _has_content(said, kind):
            self._content(now)
        if said.get("stop") is True or said.get("done") is True or (isinstance(kind, str) and kind in ENDED):
            self.complete = True
        progress = said.get("prompt_progress")
        if isinstance(progress, dict):
            done, total = _count(progress.get("processed")), _count(progress.get("total"))
            if done is not None and total is not None:
                self.progress = done, total
        self._read(said)

    def _content(self, now: float) -> None:
        if self.first is None:
            self.first = now
        elif len(self.gaps) < GAPS:
            self.gaps.append(now - self.last)
        else:
            self._sample(now - self.last)
        self.last = now
        self.chunks += 1

    def _sample(self, gap: float) -> None:
        """Each of all gaps stays with the same probability."""
        self._seed = (self._seed * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        place = (self._seed >> 33) % self.chunks
        if place < GAPS:
            self.gaps[place] = gap

    # --- what is said --------------------------------------------------------------------------------------------

    def _whole(self, body: bytes) -> None:
        if self._head is None:
            said = _object(body.strip())
            self.complete = said is not None and said.get("done") is not False
            if said is not None:
                self._read(said)
            return
        self.complete = body.rstrip().endswith(b"}")
        keys = {"usage", *(path.partition(".")[0] for path in self._timing.values())}
        for text in (self._head, body[-ENDS:]):
            self._read({key: value for key in keys if (value := _value_of(key, text)) is not None})

    def _read(self, said: dict[str, Any]) -> None:
        roots = [said, *(inner for key in ("response", "message") if isinstance(inner := said.get(key), dict))]
        for root in roots:
            if isinstance(usage := root.get("usage"), dict):
                self._read_usage(usage)
            if root.get("truncated") is True:
                self.truncated = True
            if error := root.get("error"):
                self.error = _message(error)
            for reason in _finish_reasons(root):
                self.finish_reason = reason
            for name, path in self._timing.items():
                key, _, inner = path.partition(".")
                value: Any = root.get(key)
                while inner:
                    key, _, inner = inner.partition(".")
                    value = value.get(key) if isinstance(value, dict) else None
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._figure(name, value)
        if said.get("type") == "error" and self.error is None:
            self.error = _message(said)

    def _figure(self, name: str, value: float) -> None:
        """Also an absurd one: whoever uses it judges."""
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        for unit, factor in UNITS.items():
            if name.endswith(unit):
                name, value = name.removesuffix(unit) + "_ms", value * factor
                break
        self.figures[name] = value

    def _read_usage(self, usage: dict[str, Any]) -> None:
        """Of OpenAI, whose prompts count cached tokens, or of Anthropic, whose inputs do not."""
        prompt, read = _count(usage.get("prompt_tokens")), _count(usage.get("cache_read_input_tokens"))
        if prompt is None and (prompt := _count(usage.get("input_tokens"))) is not None:
            prompt += (read or 0) + (_count(usage.get("cache_creation_input_tokens")) or 0)
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else read
        completion = _count(usage.get("completion_tokens", usage.get("output_tokens")))
        if prompt is not None:
            self.prompt_tokens = prompt
        if cached is not None:
            self.cached_tokens = cached
        if completion is not None:
            self.completion_tokens = completion


def _residual(figures: dict[str, float]) -> None:
    """Of Ollama's times none is that in its queue: it is what they leave of the whole."""
    if "queue_ms" not in figures and (total := figures.get("total_ms")) is not None and "prefill_ms" in figures:
        known = sum(figures.get(name, 0.0) for name in ("load_ms", "prefill_ms", "decode_ms"))
        figures["queue_ms"] = max(0.0, total - known)


def _payload(event: bytes) -> bytes:
    if b"\n" not in event:
        return event[5:].strip() if event.startswith(b"data:") else b""
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))


def _object(data: bytes) -> dict[str, Any] | None:
    """None: it is no JSON object. The decoder is called itself: `json.loads` costs twice as much for an event."""
    try:
        text = data.decode("utf-8", "surrogatepass")
        said, end = _decode(text)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and end == len(text) else None


def _value_of(key: str, text: bytes) -> Any:
    """Of a key somewhere in a piece of JSON: its last one."""
    at = text.rfind(b'"%s":' % key.encode())
    if at < 0:
        return None
    try:
        return _decode(text[at + len(key) + 3 :].decode("latin-1").lstrip())[0]
    except (ValueError, RecursionError):
        return None


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return None
    return int(value)


def _message(error: object) -> str:
    text = (error.get("message") or error.get("type")) if isinstance(error, dict) else error
    return str(text)[:300]


def _has_content(said: dict[str, Any], kind: object) -> bool:
    choices = said.get("choices")
    if isinstance(choices, list):
        return any(_choice_has_content(choice) for choice in choices)
    if isinstance(kind, str):
        return kind == "content_block_delta" or (kind.startswith("response.") and kind.endswith(".delta"))
    if "done" in said:
        message = said.get("message")
        inner = any(value for key, value in message.items() if key != "role") if isinstance(message, dict) else False
        return inner or bool(said.get("response") or said.get("thinking"))
    return "stop" in said and bool(said.get("content"))


def _choice_has_content(choice: object) -> bool:
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(value for key, value in delta.items() if key != "role")
    return bool(choice.get("text"))


STOPS = {"eos": "stop", "word": "stop", "limit": "length"}


def _finish_reasons(root: dict[str, Any]) -> Iterator[str]:
    """In the engine's own words, but of the two apis that have other words for the usual end."""
    found: list[object] = [root.get("stop_reason")]
    if isinstance(choices := root.get("choices"), list):
        found += [choice.get("finish_reason") for choice in choices if isinstance(choice, dict)]
    if isinstance(delta := root.get("delta"), dict):
        found.append(delta.get("stop_reason"))
    if isinstance(stop := root.get("stop_type"), str) and root.get("stop") is True:
        found.append(STOPS.get(stop))
    if root.get("done") is True:
        found.append(root.get("done_reason"))
    if root.get("object") == "response":
        details = root.get("incomplete_details")
        incomplete = details.get("reason") if isinstance(details, dict) else None
        found.append("stop" if root.get("status") == "completed" else incomplete)
    return (each for each in found if isinstance(each, str) and each)

"""Where each figure comes from, and what it does not mean. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmsupervisor.cli.views import Line, Span


class Meaning(NamedTuple):
    name: str
    source: str
    caution: str = ""


STATE = Meaning(
    "STATE",
    "the daemon: its own state machine (docs/lifecycle.md)",
    "READY is no promise of speed: the engine has said it is up and has answered one tiny request since its start",
)
RESTARTS = Meaning(
    "RESTARTS",
    "the daemon: every start after the first, also those that somebody ordered",
    "no count of crashes: the events say why each was",
)
KV = Meaning(
    "KV",
    "the engine: vLLM's own gauge; llama-server: tokens in its slots over what they can hold",
    "no memory: the cache is allocated whole at the start. Ollama tells none, so it is unknown there",
)
RUN = Meaning(
    "RUN/WAIT/Q",
    "running: the gateway's open requests, without a gateway the engine's; waiting: the engine's own queue; Q: what the gateway holds back",
    "what waits in the engine was handed on, so the gateway counts it as running too",
)
SPEEDS = Meaning(
    "PRE/S, TOK/S",
    "the engine's counters over the last minute; PRE/S: tokens of prompts while it works on them; TOK/S: of all answers together",
    "– while nothing is computed or written: that is not 0, it is not measured",
)
HIT = Meaning("HIT", "the engine's counters: the share of prompt tokens of the last minutes that its cache had", "")
VRAM = Meaning(
    "VRAM",
    "NVML, summed over the processes of the service",
    "not only weights and KV: also buffers and the driver's context of each process",
)
QUEUED = Meaning("queued", "the gateway: requests that it has not handed to an engine yet")

ENDED = Meaning(
    "5m",
    "the gateway's own records of the last five minutes, exactly, not from buckets",
    "a 95th percentile of fewer than 20 requests is not told",
)
QUEUE = Meaning("QUEUE", "gateway: time until it was handed on; plus the engine's own queue where it tells it", "")
PREFILL = Meaning(
    "PREFILL",
    "the engine's figure where it tells one, else the gateway's: sent until first token",
    "the gateway's contains the engine's queue; ! = both are known and over 20 % apart",
)
DECODE = Meaning(
    "DECODE, TOK/S",
    "the engine's figure where it tells one, else first to last token at the gateway",
    "tokens/s of one request; an engine that decodes several gives more in sum",
)
TTFT = Meaning(
    "TTFT",
    "the gateway: request read until the first token left for the client; streams only",
    "loading and queueing are in it",
)
CACHED = Meaning(
    "CACHED",
    "the engine: tokens of the prompt that it did not compute again",
    "unknown where the engine does not tell; that is not none",
)
LIVE_ROWS = Meaning(
    "live rows",
    "the gateway, each second; an engine's progress where it tells it",
    "a part between two looks that nobody timed is shown as ?",
)

MEMORY = Meaning(
    "MEM",
    "NVML: used and total of the card, and what each process holds",
    "free memory may be in pieces; a load can fail below it",
)
BUSY = Meaning(
    "BUSY",
    "NVML utilization: the share of time in which any kernel ran",
    "not load: one request being decoded shows 99 %. That is why bandwidth and tokens/s stand beside it",
)
BANDWIDTH = Meaning(
    "BW",
    "NVML GPM where the card measures it; with ~: what the tokens that were made must have read, over what the memory can do",
    "an estimate is no measurement; – where neither is known",
)
TOKENS = Meaning("TOK/S", "tokens that the engines of this card moved, by their own counters", "")
POWER = Meaning(
    "POWER, CLOCK, TEMP",
    "NVML; limited: the reasons for which the clocks are below what was asked",
    "a card at its power limit is not broken, but slower than its name",
)
ECC = Meaning(
    "ECC, XID",
    "NVML counters since the last driver load, and what the driver reported",
    "– where the card or the driver tells none; that is not none",
)

PARTS = Meaning(
    "memory",
    "source log: what the engine said while it loaded; source plan: the plan's own sum",
    "overhead is what its processes hold beside that",
)
TIMELINE = Meaning(
    "time line",
    "the daemon's events: each cell is what lasted longest in it; x: an end that nobody asked for",
    "before the first event that is known a state is unknown and the cell empty",
)
DIFF = Meaning(
    "SPEC",
    "the file on disk against the text that was applied last",
    "a file that changed but means the same restarts nothing",
)
RESTART_DUE = Meaning(
    "what would restart",
    "the daemon's own plan of the file, with the facts of now",
    "the box may change until it is applied",
)
ASKED = Meaning(
    "asked, got",
    "asked: from the spec; got: what the engine says it has",
    "– where it does not say; that is not the same",
)
ORIGINS = Meaning(
    "ARGV, ENVIRONMENT",
    "the plan that this start was rendered from; origin = line of the spec, definition or default",
    "",
)
LOG = Meaning(
    "log",
    "what the process wrote, control characters shown as escapes",
    "a search looks through what was read: the last 5000 lines at most",
)
ADVICE = Meaning(
    "advice",
    "the rules of `llmsupervisor check` on what runs, the conditions of now, and what the records of requests imply",
    "a rule knows this spec and this box, not your intentions",
)

BY_PAGE: Mapping[str, Sequence[Meaning]] = {
    "overview": (STATE, RESTARTS, KV, RUN, SPEEDS, HIT, MEMORY, BUSY, BANDWIDTH),
    "requests": (ENDED, QUEUE, PREFILL, DECODE, TTFT, CACHED, LIVE_ROWS),
    "request": (QUEUE, PREFILL, DECODE, TTFT, CACHED),
    "gpus": (MEMORY, BUSY, BANDWIDTH, TOKENS, POWER, ECC, VRAM),
    "logs": (LOG,),
    "events": (TIMELINE, RESTARTS),
    "spec": (DIFF, RESTART_DUE),
    "service": (STATE, ASKED, ORIGINS, KV, RUN, QUEUED, SPEEDS, HIT, VRAM, PARTS),
    "advice": (ADVICE,),
}  # fmt: skip


def lines(page: str, room: int) -> list[Line]:
    found: list[Line] = []
    for name, source, caution in BY_PAGE.get(page, ()):
        found.append([Span(name, "bold")])
        found += [[Span(text)] for text in _wrapped(f"from {source}", room)]
        if caution:
            found += [[Span(text, "warn")] for text in _wrapped(f"but {caution}", room)]
    return found


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(text, max(room, 12), initial_indent="  ", subsequent_indent="  ")

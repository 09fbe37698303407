"""The table, and which goals were met."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.gateway.load import Many, Single, Streams

MIB = 1024**2
PASS, FILTER = "ours, pass", "ours, filter"
ONCE = ("haproxy", "aiohttp", "litellm")
"""In the first round only: no goal depends on them."""


@dataclass
class Round:
    """What one round found of one proxy."""

    single: Single | None = None
    many: Many | None = None
    few: Streams | None = None
    crowd: Streams | None = None
    rss: int = 0
    """After one request at a time. Counts in the first round, before memory that many streams took."""


Found = list[dict[str, Round]]
Figure = Callable[[Round], float]


def ttft(of: Round, part: float) -> float:
    assert of.single is not None
    ordered = sorted(of.single.ttft_ns)
    return ordered[int(len(ordered) * part)] / 1e3


def few(of: Round) -> Streams:
    assert of.few is not None
    return of.few


def crowd(of: Round) -> Streams:
    assert of.crowd is not None
    return of.crowd


def many(of: Round) -> Many:
    assert of.many is not None
    return of.many


def cpu_single(of: Round) -> float:
    assert of.single is not None
    return of.single.cpu_ns / 1e3


ROWS: list[tuple[str, Figure, str, bool]] = [
    ("TTFT, one at a time, p50, us", lambda r: ttft(r, 0.5), ",.0f", False),
    ("    p99", lambda r: ttft(r, 0.99), ",.0f", False),
    ("    CPU per request of 1 event, us", cpu_single, ",.0f", True),
    ("requests/s, 32 at once", lambda r: many(r).per_second, ",.0f", False),
    ("    CPU per request, us", lambda r: many(r).cpu_ns / 1e3, ",.0f", True),
    ("delay of an event, 200 streams x 20/s, p50, us", lambda r: few(r).p50_ns / 1e3, ",.0f", False),
    ("    p99", lambda r: few(r).p99_ns / 1e3, ",.0f", False),
    ("    CPU per event, us", lambda r: few(r).cpu_ns / 1e3, ".1f", True),
    ("delay of an event, 2,000 streams x 10/s, p50, us", lambda r: crowd(r).p50_ns / 1e3, ",.0f", False),
    ("    p99", lambda r: crowd(r).p99_ns / 1e3, ",.0f", False),
    ("    p99 before, while 1,500 a second begin", lambda r: crowd(r).begin_p99_ns / 1e3, ",.0f", False),
    ("    CPU per event, us", lambda r: crowd(r).cpu_ns / 1e3, ".1f", True),
    ("    streams that failed, of both", lambda r: few(r).failed + crowd(r).failed, ".0f", False),
    ("RSS, MiB, at 1 stream", lambda r: r.rss / MIB, ".0f", True),
    ("    at 200", lambda r: few(r).rss / MIB, ".0f", True),
    ("    at 2,000", lambda r: crowd(r).rss / MIB, ".0f", True),
]
"""Name, figure, format, and whether it is one of the proxy's process."""

LLAMA_SWAP = {
    "added TTFT, p50": (222, 116),
    "TTFT, p99": (536, 247),
    "CPU per request, one at a time": (514, 86),
    "time per request, 32 at once": (1e6 / 2960, 1e6 / 21600),
    "CPU per request, 32 at once": (335, 40),
    "delay, 200 streams, p50": (133, 114),
    "delay, 200 streams, p99": (844, 330),
    "delay, 2,000 streams, p50": (496, 304),
    "delay, 2,000 streams, p99": (113347, 1809),
    "CPU per event, 200 streams": (50.6, 23.8),
    "CPU per event, 2,000 streams": (41.8, 19.5),
    "RSS at 200 streams": (109, 17),
    "RSS at 2,000 streams": (440, 42),
}
"""Its figure and nginx's, of one run on another machine with 2 cores: the ratio is what counts here. Delays whole: nginx
adds too little to one to be divided by."""


def report(found: Found, idle: dict[str, float]) -> int:
    names = list(found[0])
    _table(found, names, idle)
    goals = Goals()
    if not {"nginx", "direct"} <= {*names} or not {PASS, FILTER} & {*names}:
        print("\nno goals without nginx, direct and ours")
        return 1
    for name in (PASS, FILTER):
        if name in names:
            _goals(goals, found, idle, name)
    return goals.verdict()


def _table(found: Found, names: list[str], idle: dict[str, float]) -> None:
    print(f"{f'median of {len(found)} rounds':<50}" + "".join(f"{name:>14}" for name in names))
    for row, figure, form, own in ROWS:
        cells = ["–" if own and name == "direct" else format(_median(found, name, figure), form) for name in names]
        print(f"{row:<50}" + "".join(f"{cell:>14}" for cell in cells))
    cells = [f"{idle[name] / 1024:.1f}" if name in idle else "–" for name in names]
    print(f"{'memory of an idle connection, of 5,000, KiB':<50}" + "".join(f"{cell:>14}" for cell in cells))
    for number, of in enumerate(found, 1):
        for name, mine in of.items():
            for streams in (few(mine), crowd(mine)):
                if streams.failed:
                    print(f"round {number}, {name}: {streams.failed} streams failed, the first: {streams.why}")


def _median(found: Found, name: str, figure: Figure) -> float:
    return statistics.median(figure(of[name]) for of in found if name in of)


def _goals(goals: Goals, found: Found, idle: dict[str, float], name: str) -> None:
    def ratio(figure: Figure) -> float:
        """To nginx in the same round."""
        return statistics.median(figure(of[name]) / figure(of["nginx"]) for of in found)

    def added(figure: Figure, name: str = name) -> float:
        """To direct in the same round."""
        return statistics.median(figure(of[name]) - figure(of["direct"]) for of in found)

    print(f"\n{name}, with alias, keys and records on")
    most = 1.6 if name == PASS else 2.5
    target = " (target 1.3)" if name == PASS else ""
    for text, streams in (("200 streams", few), ("2,000 streams", crowd)):
        value = ratio(lambda r, s=streams: s(r).cpu_ns)
        goals.most(f"CPU per event, {text}, of nginx'", value, most, "x", target)
    goals.most("added delay of an event, 200 streams, p50", added(lambda r: few(r).p50_ns) / 1e3, 150, "us")
    failed = sum(few(of[name]).failed + crowd(of[name]).failed for of in found)
    goals.most("streams that failed", failed, 0, "")
    goals.most("delay, 2,000 streams, p99, of nginx'", ratio(lambda r: crowd(r).p99_ns), 5, "x")
    goals.most("RSS at 2,000 streams", max(crowd(of[name]).rss for of in found) / MIB, 100, "MiB")
    if name in idle:
        goals.most("memory of an idle connection, of 5,000", idle[name] / 1024, 20, "KiB")
    print("  ahead of llama-swap: figures as ratios to nginx', its own ones from another machine")
    mine = {
        "added TTFT, p50": added(lambda r: ttft(r, 0.5)) / added(lambda r: ttft(r, 0.5), "nginx"),
        "TTFT, p99": ratio(lambda r: ttft(r, 0.99)),
        "CPU per request, one at a time": ratio(cpu_single),
        "time per request, 32 at once": ratio(lambda r: 1 / many(r).per_second),
        "CPU per request, 32 at once": ratio(lambda r: many(r).cpu_ns),
        "delay, 200 streams, p50": ratio(lambda r: few(r).p50_ns),
        "delay, 200 streams, p99": ratio(lambda r: few(r).p99_ns),
        "delay, 2,000 streams, p50": ratio(lambda r: crowd(r).p50_ns),
        "delay, 2,000 streams, p99": ratio(lambda r: crowd(r).p99_ns),
        "CPU per event, 200 streams": ratio(lambda r: few(r).cpu_ns),
        "CPU per event, 2,000 streams": ratio(lambda r: crowd(r).cpu_ns),
        "RSS at 200 streams": ratio(lambda r: few(r).rss),
        "RSS at 2,000 streams": ratio(lambda r: crowd(r).rss),
    }
    for text, (theirs, of_nginx) in LLAMA_SWAP.items():
        goals.most(f"  {text}", mine[text], theirs / of_nginx, "x")


class Goals:
    def __init__(self) -> None:
        self._missed: list[str] = []

    def most(self, what: str, value: float, most: float, unit: str, more: str = "") -> None:
        met = value <= most
        sign = "met" if met else "MISSED"
        print(f"  {what:<52}{value:>10.2f} {unit:<4} at most {f'{most:.3g}{more}':<18} {sign}")
        if not met:
            self._missed.append(what.strip())

    def verdict(self) -> int:
        print("\nevery goal met" if not self._missed else f"\nmissed: {'; '.join(self._missed)}")
        return 1 if self._missed else 0

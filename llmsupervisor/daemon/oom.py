"""GPU memory that runs out: what was there and what was wanted; and an engine that lives on after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsupervisor.base.units import format_size
from llmsupervisor.host import logtail
from llmsupervisor.service.exit import log_line

if TYPE_CHECKING:
    from llmsupervisor.daemon.process import Process
    from llmsupervisor.daemon.runner import Runner

CLASS = "oom-run"
"""The exit class of a definition whose pattern is looked for while the engine lives."""
WINDOW = 60.0
READ = 256 * 1024


def explain(runner: Runner, cause: str) -> str:
    """What was free and what was wanted; empty where the end was another one, or nothing is known."""
    if not cause.startswith("oom-") or cause == "oom-host" or not runner.plan.gpus:
        return ""
    memory, plan = runner.box.memory, runner.process.plan if runner.process else runner.plan
    needs, free = memory.needs(plan), memory.free_at_start(runner.name)
    parts = []
    for uuid in plan.gpus:
        need, there = needs.get(uuid), free.get(uuid)
        wanted = f", it was expected to take {format_size(need)}" if need is not None else ""
        parts.append(f"{memory.label(uuid)}: {format_size(there)} were free when it started{wanted}")
    load = runner.box.traffic.of(runner.name)
    if cause == CLASS and load and load.prefill_tokens:
        parts.append(f"{load.prefill_tokens} prompt tokens were in prefill")
    others = runner.box.cards.foreign_on(plan.gpus)
    return "; ".join([*parts, f"not ours there: {others}"] if others else parts)


class Watch:
    """Of one run. A request that fails for want of memory is told; the second within a minute ends the run."""

    def __init__(self, runner: Runner, process: Process) -> None:
        self._runner, self._process = runner, process
        self._rule = process.plan.definition.exit.get(CLASS)
        self._mark = logtail.end(process.log)
        self._last: float | None = None

    def look(self, now: float) -> str:
        """Why the engine has to be replaced; empty: it has not. Several lines at one look are one request's."""
        if self._rule is None or self._rule.pattern is None:
            return ""
        mark = logtail.end(self._process.log)
        if mark == self._mark:
            return ""
        line = log_line(self._rule.pattern, logtail.tail(self._process.log, self._mark, READ))
        self._mark = mark
        if line is None:
            return ""
        self._runner.conditions.set(
            "out-of-memory", f"GPU memory ran out during a request: {line}. {self._rule.advice}"
        )
        before, self._last = self._last, now
        again = before is not None and now - before <= WINDOW
        return f"GPU memory ran out twice within a minute: {line}" if again else ""

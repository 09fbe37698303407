"""What is asked of an engine, and when: start-up, the watch while READY, the drain. Results go to the loop as events.

Never a periodic canary: the tiny request is sent once after a start, and on suspicion.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from llmsupervisor.base.ids import Json
from llmsupervisor.daemon import oom
from llmsupervisor.host import tree
from llmsupervisor.plan.diff import drift
from llmsupervisor.runtime.adapter import adapter_for
from llmsupervisor.runtime.generic import probe, step_of
from llmsupervisor.service.probing import Limits, Observation, Ok, ProbeState, Suspect, cleared, start_progress, verdict
from llmsupervisor.service.probing import NotReady as Silent
from llmsupervisor.service.states import Drained, ExitInfo, NotReady, Progress, ReadyAgain, Stalled, StartupOk

if TYPE_CHECKING:
    from llmsupervisor.daemon.process import Process
    from llmsupervisor.daemon.runner import Runner

ASK = 5.0
"""Seconds for one answer of a readiness path or of figures."""
SETTLE = 0.8
"""Share of a start's time in which models are waited for: those that take longer say for themselves that they load."""
SUSPICION = 15.0
"""Seconds for the tiny request that decides whether a service hangs."""
DEATH = 0.2
"""Seconds in which a process that lost its connections is seen to be dead."""
HINTS = 1.0
"""Seconds between two looks at least, however often the gateway has trouble."""
PREFILL_GPU, PREFILL_CPU = 200.0, 50.0
"""Prompt tokens per second below which nothing useful runs: a third of an 8B model on a small card, or on a few cores."""
STEPS = 64 * 1024
"""Bytes of the log's end in which the step of a start is sought."""
BUSY_EVERY, IDLE_EVERY = 2.0, 5.0
"""llama-server sees no disconnected client while it is polled faster than about once a second."""


def exit_json(exit: ExitInfo | None) -> dict[str, Json] | None:
    if exit is None:
        return None
    return {
        "cause": exit.cause,
        "text": exit.text,
        "code": exit.code,
        "signal": exit.signal,
        "advice": exit.advice,
        "time": exit.time,
    }


async def startup(runner: Runner, process: Process) -> None:
    """Readiness path, whose port it is, as asked, then one tiny request: StartupOk. The deadline is the table's."""
    await _answers(runner, process)
    while tree.owns_port(process.pids(), process.port) is False:
        owner = tree.port_owner(process.port)
        who = f"pid {owner[0]} ({owner[1]})" if owner else "somebody else"
        runner.conditions.set("port-not-ours", f"port {process.port} also answers for {who}: not READY")
        await asyncio.sleep(0.5)
    runner.conditions.clear("port-not-ours")
    runner.models.begin(process)
    if runner.models.entries:
        await _models_settled(runner, process)
        await read_got(runner, process)
        runner.post(StartupOk(), process)
        return
    runner.seen.phase = "checking what it got"
    await read_got(runner, process)
    if process.plan.service.probe.enabled and not process.adopted:
        runner.seen.phase = "first request"
        if (why := await tiny_request(process)) is not None:
            await _broken(runner, process, f"READY refused: the first request failed: {why}")
            return
    process.leavings.look(process.pids())
    runner.post(StartupOk(), process)


async def _models_settled(runner: Runner, process: Process) -> None:
    """Each has had its own first request. One that fails holds back nobody but those who ask for it."""
    settled = asyncio.ensure_future(runner.models.settled())
    runner.seen.phase = runner.models.phase()
    seen, until = _effort(process), asyncio.get_running_loop().time() + SETTLE * runner.policy.start_timeout
    try:
        while not settled.done() and asyncio.get_running_loop().time() < until:
            await asyncio.wait((settled,), timeout=1.0)
            runner.seen.phase, current = runner.models.phase(), _effort(process)
            if start_progress(seen, current):
                runner.post(Progress(), process)
            seen = current
    finally:
        settled.cancel()


async def _answers(runner: Runner, process: Process) -> None:
    path = process.plan.service.ready or process.plan.definition.ready.path
    delay, seen, told = 0.02, _effort(process), asyncio.get_running_loop().time()
    step: str | None = None
    while True:
        answer = await process.engine.get_text(path, ASK)
        runner.seen.probed(path, answer, answer.status == 200)
        if answer.status == 200:
            return
        now = asyncio.get_running_loop().time()
        if step is None:
            runner.seen.phase = f"answers {answer.status}" if answer.status else "not listening yet"
        if now - told >= 1.0:
            step = step_of(process.plan.definition, process.log_tail(STEPS))
            runner.seen.phase = step or runner.seen.phase
            told, current = now, _effort(process)
            process.leavings.look(process.last_pids)
            if start_progress(seen, current):
                runner.post(Progress(), process)
            seen = current
        await asyncio.sleep(delay)
        delay = min(delay * 1.5, 0.5)


def _effort(process: Process) -> tuple[int, ...]:
    """Read and resident MiB of the whole tree, and log bytes: what grows while a load makes progress."""
    read = resident = 0
    for pid in process.pids():
        try:
            with open(f"/proc/{pid}/io", encoding="ascii") as file:
                read += int(file.readline().split()[1])
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                resident += int(file.readline().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    try:
        log = os.stat(process.log).st_size
    except OSError:
        log = 0
    return (read // 1024**2, resident * os.sysconf("SC_PAGESIZE") // 1024**2, log)


async def read_got(runner: Runner, process: Process) -> None:
    """As asked: what the engine says it got, against the plan. Differences are a condition."""
    adapter = adapter_for(process.plan.definition)
    payloads: dict[str, Json] = {}
    for call in adapter.calls_got():
        answer = await process.engine.call(call.method, call.path, call.body, ASK)
        payloads[call.path] = answer.json if answer.json is not None else answer.text
    log = process.log_tail(1024 * 1024)
    runner.got = adapter.got(payloads, log)
    runner.scraper.allocated = adapter.allocated(log) or adapter.allocated(process.log_head(1024 * 1024))
    runner.conditions.set("wrong-model", adapter.identity(payloads, process.plan.name, process.plan.service))
    asked = process.plan.asked
    texts = [
        f"asked {key} {_said(asked.get(key))}, the engine has {_said(runner.got.get(key))}"
        for key in adapter.compare(asked, runner.got)
    ]
    texts += adapter.misread({item.name: item.value for item in process.plan.env}, log)
    runner.conditions.set("not-as-asked", "; ".join(texts))
    runner.drift = drift(runner.plan, process.launch)


def _said(value: Json) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


async def tiny_request(process: Process, at_most: float = 3600.0) -> str | None:
    """Why the smallest request of the task failed; None where it worked or the definition has none."""
    plan = process.plan
    model = adapter_for(plan.definition).names(plan.name, plan.service)[0]
    call = probe(plan.definition, plan.service.task, model)
    if call is None:
        return None
    timeout = min(process.plan.service.probe.timeout, at_most)
    answer = await process.engine.call(call.method, call.path, call.body, timeout)
    if answer.ok:
        return None
    return answer.error or f"{answer.status}: {answer.text[:200]}"


async def watch(runner: Runner, process: Process) -> None:
    """While READY or UNREADY: figures, readiness, progress. Ends the run only after a probe confirmed the suspicion."""
    runner.models.begin(process)
    stall = process.plan.service.probe.stall_timeout
    rate = PREFILL_GPU if process.plan.gpus else PREFILL_CPU
    limits = Limits(stall_timeout=stall, cpu_stall=min(30.0, stall), busy_timeout=5 * stall, prefill_rate=rate)
    ask = min(ASK, max(0.5, stall / 6))
    state, every, memory = ProbeState(), 1.0, oom.Watch(runner, process)
    while True:
        await _next_look(runner, every)
        seen = await _observe(runner, process, ask)
        state, found = verdict(state, seen, limits)
        if ran_out := memory.look(seen.time):
            runner.post(Stalled(ran_out, oom.CLASS), process)
            return
        if runner.suspicion and not (seen.running or seen.waiting):  # who works is judged by its progress
            found, runner.suspicion = Suspect(runner.suspicion), ""
        every = BUSY_EVERY if seen.running or seen.waiting or not seen.answered else IDLE_EVERY
        every = min(every, stall / 6)
        runner.seen.phase = found.reason or runner.models.phase()
        if seen.answered and runner.got is None:
            await read_got(runner, process)
        match found:
            case Suspect(reason):
                if (why := await tiny_request(process, SUSPICION)) is not None:
                    await _broken(runner, process, f"{reason}; a probe failed: {why}")
                    return
                state = cleared(state, asyncio.get_running_loop().time())
            case Silent(reason):
                runner.post(NotReady(reason), process)
            case Ok() if seen.answered:
                runner.post(ReadyAgain(), process)


async def _broken(runner: Runner, process: Process, why: str) -> None:
    """Who dies of a request does not hang: that end is told with a cause of its own, and a connection is lost before a
    process is seen to be dead."""
    pidfd = process.run.main_pidfd
    if pidfd is not None and not await tree.wait_dead(pidfd, DEATH):
        runner.post(Stalled(why), process)


async def _next_look(runner: Runner, seconds: float) -> None:
    """In `seconds`, or as soon as somebody had trouble with it."""
    await asyncio.sleep(min(HINTS, seconds))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds - HINTS)):
            await runner.hint.wait()
    runner.hint.clear()


async def _observe(runner: Runner, process: Process, ask: float) -> Observation:
    found = await runner.scraper.look(process, ask)
    ready = process.plan.service.ready or process.plan.definition.ready.path
    path, answer = runner.scraper.failed or (ready, await process.engine.get_text(ready, ask))
    answered = runner.scraper.failed is None and answer.status == 200
    runner.seen.probed(path, answer, answered)
    if (of_models := runner.models.figures()) is not None:
        runner.scraper.take(of_models)
    load = runner.box.traffic.of(runner.name)
    running = found.requests_running if found else None
    return Observation(
        time=asyncio.get_running_loop().time(),
        answered=answered,
        running=running or await _in_flight(process, ask),
        waiting=found.requests_waiting if found else None,
        progress=found.progress if found else None,
        cpu_s=None if answered else _cpu(process),
        prompt_tokens=load.prefill_tokens if load else None,
    )


async def _in_flight(process: Process, ask: float) -> int | None:
    """An engine that hangs goes on telling figures of before, and those may be of an idle one."""
    where = process.plan.definition.in_flight
    if where is None:
        return None
    said = (await process.engine.get_json(where.path, ask)).json
    number = said.get(where.answer) if isinstance(said, dict) else None
    return number if isinstance(number, int) and number >= 0 else None


def _cpu(process: Process) -> float | None:
    """CPU seconds of the tree below the shim; None: unreadable."""
    total, seen = 0.0, False
    for pid in process.pids():
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        total, seen = total + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), True
    return total if seen else None


async def drain(runner: Runner, process: Process) -> None:
    """Through a gateway: no new request can come, and none runs. Without one admission cannot be stopped: waits for the
    engine's own running and waiting requests."""
    gateway = runner.box.gateway
    if gateway is not None and gateway.serves:
        await gateway.drained(runner, process)
        runner.post(Drained(), process)
        return
    if process.plan.definition.metrics is None:
        runner.post(Drained(), process)
        return
    while True:
        found = await runner.scraper.look(process, ASK)
        if found is not None and not found.requests_running and not found.requests_waiting:
            runner.post(Drained(), process)
            return
        running = (
            "?" if found is None else f"{found.requests_running or 0} running, {found.requests_waiting or 0} waiting"
        )
        runner.seen.phase = f"{running}; without a gateway new requests cannot be held back"
        await asyncio.sleep(1.0)

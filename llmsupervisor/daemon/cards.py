"""The GPUs over time: lent, quarantined, lost, and what is wrong with them. Keyed by UUID: indices move.

Nothing is started on a card that is closed. What runs on a lent one is drained, on a lost one it is replaced, which then
waits; on a quarantined one it goes on as long as it answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmsupervisor.base.errors import UsageError
from llmsupervisor.base.units import format_size
from llmsupervisor.daemon.conditions import Conditions
from llmsupervisor.daemon.desired import GpuWish
from llmsupervisor.host import devices, tree
from llmsupervisor.host.gpu import Gpu, GpuProcess, Sample, Xids
from llmsupervisor.service.states import Changed, Restart, Stalled, State
from llmsupervisor.service.xid import meaning

if TYPE_CHECKING:
    from llmsupervisor.daemon.box import Box
    from llmsupervisor.daemon.runner import Runner

LOOK = 1.0
MISSING = 2.0
"""Seconds that a card may be missing from the list before what runs on it is given up."""
GAP = 2.0
"""Seconds at most that one look stands for."""
CALM = 60.0
"""Seconds without a limit of the clocks after which the condition is over: they come and go with the load."""
HIDDEN = 3
"""Looks at which NVML named nobody that we can see: processes that just ended are still listed at one or two."""
COARSE = 256 * 1024**2
"""Bytes to which a foreign holder's memory is told: not each of its moves is an event."""
SMALL = 64 * 1024**2
DEVICES = 120.0
"""Seconds that the driver's device nodes get to appear."""
SLEPT = 1.0
"""Seconds of suspend that are worth a look at the services."""
RUNS = frozenset({State.STARTING, State.READY, State.UNREADY})
SLOWED = {
    "power_cap": "the power limit holds the clocks down",
    "power_brake": "the power supply holds the clocks down",
    "hw_slowdown": "the hardware holds the clocks down",
    "thermal": "heat holds the clocks down",
    "hw_thermal": "heat holds the clocks down",
}


class Card:
    def __init__(self, uuid: str, conditions: Conditions) -> None:
        self.uuid = uuid
        self.gpu: Gpu | None = None
        """As it was when it last answered."""
        self.conditions = conditions
        self.xids: dict[int, dict[str, Any]] = {}
        self.heard = False
        self.missing_since: float | None = None
        """Monotonic seconds: NVML can be read and does not list it."""
        self.slowed_at: float | None = None
        self.judged_at = 0.0
        self.limited: dict[str, float] = {}
        """What held the clocks down → seconds, since the daemon began."""
        self.hidden = 0

    @property
    def word(self) -> str:
        """What a person calls it by. The index of one that is not listed may be another's now."""
        return self.uuid if self.gpu is None or self.missing_since is not None else str(self.gpu.index)

    @property
    def label(self) -> str:
        return f"GPU {self.word}"


class Cards:
    def __init__(self, box: Box) -> None:
        self._box = box
        self._cards: dict[str, Card] = {}
        self._seen = -1.0
        self._began = box.clock.monotonic()
        self._asleep = _asleep()
        self.read_at: float | None = None
        """Unix seconds of the last sample that told something."""
        self.driver: str | None = None

    async def watch_gpus(self) -> None:
        """Until it is cancelled."""
        if devices.missing():
            await asyncio.to_thread(devices.ask_for_them)
        for uuid, wish in list(self._box.desired.gpus.items()):
            if wish.boot != self._box.boot:
                del self._box.desired.gpus[uuid]
            elif wish.quarantine:
                self._card(uuid).conditions.set("quarantined", wish.quarantine["reason"])
        while True:
            self.look()
            await asyncio.sleep(LOOK)

    def look(self) -> None:
        self._look_at_sleep()
        for xids in self._box.gpu.xids():
            self._hear(xids)
        sample = self._box.gpu.latest
        if sample.gpus is not None and sample.error is None and sample.time > self._seen:
            self._seen, self.read_at = sample.time, self._box.clock.wall()
            self.driver = sample.driver or self.driver
            self._see(sample)
        self._end_what_is_over()
        self._clear()

    # --- seeing --------------------------------------------------------------------------------------------------

    def _card(self, uuid: str) -> Card:
        if uuid not in self._cards:
            self._cards[uuid] = Card(uuid, Conditions(self._box.clock.wall, self._teller(uuid)))
        return self._cards[uuid]

    def _teller(self, uuid: str) -> Any:
        def tell(id: str, text: str, on: bool) -> None:
            self._box.emit({"service": None, "kind": "condition", "gpu": uuid, "id": id, "text": text, "on": on})

        return tell

    def _see(self, sample: Sample) -> None:
        now = self._box.clock.monotonic()
        for gpu in sample.gpus or ():
            card = self._card(gpu.uuid)
            card.missing_since = None
            card.conditions.set("missing", "")
            card.heard = card.heard or gpu.xids_heard
            if gpu.error is None:
                card.gpu = gpu
            unanswered = f"it does not answer ({gpu.error})" if gpu.error and not gpu.lost else ""
            card.conditions.set("unreadable", unanswered)
            if gpu.lost:
                self._quarantine(card, f"it is lost ({gpu.error}): reset it or reboot")
            elif gpu.error is None:
                self._judge(card, gpu, now)
        listed = {gpu.uuid for gpu in sample.gpus or ()}
        for card in self._cards.values():
            if card.uuid not in listed and card.gpu is not None:
                card.missing_since = card.missing_since if card.missing_since is not None else now
                if now - card.missing_since >= MISSING and not sample.nameless:
                    card.conditions.set("missing", "NVML does not list it any more")

    def _judge(self, card: Card, gpu: Gpu, now: float) -> None:
        figures = gpu.figures
        for word in figures.get("clock_limits") or ():
            if word in SLOWED:
                card.limited[word] = card.limited.get(word, 0.0) + min(now - card.judged_at, GAP)
        card.judged_at = now
        slowed = [SLOWED[word] for word in figures.get("clock_limits") or () if word in SLOWED]
        if slowed:
            card.slowed_at = now
            if not card.conditions.has("clocks-limited"):  # its limits may alternate each second
                card.conditions.set("clocks-limited", slowed[-1])
        elif card.slowed_at is not None and now - card.slowed_at > CALM:
            card.slowed_at = None
            card.conditions.clear("clocks-limited")
        wrong = (figures.get("ecc") or {}).get("uncorrected")
        card.conditions.set("ecc", f"{wrong} uncorrected memory errors since the driver was loaded" if wrong else "")
        rows = figures.get("remapped_rows") or {}
        failed = "a row of memory could not be remapped: the card should be replaced" if rows.get("failed") else ""
        pending = "a row of memory waits to be remapped: reset the card" if rows.get("pending") else ""
        card.conditions.set("remapped-rows", failed or pending)
        used = any(True for _ in self.on(card.uuid))
        foreign = self._foreign(gpu)
        card.hidden = card.hidden + 1 if foreign is None and used else 0
        hidden = "NVML numbers processes as another system does (a container): who holds its memory is not known"
        card.conditions.set("pids-hidden", hidden if card.hidden >= HIDDEN else "")
        computing = [process for process in foreign or () if not process.graphics]
        card.conditions.set("foreign", f"not ours there: {_holders(computing)}" if used and computing else "")

    def _foreign(self, gpu: Gpu) -> list[GpuProcess] | None:
        """Who else holds memory there. None: a listed process is not to be seen here, so that any number may mislead."""
        shims = self._box.shims()
        found = []
        for process in gpu.processes or ():
            above = list(tree.ancestors(process.pid))
            if not above:
                return None
            if not any(pid in shims for pid in above) and (process.used_bytes is None or process.used_bytes >= SMALL):
                found.append(process)
        return found

    def _look_at_sleep(self) -> None:
        before, self._asleep = self._asleep, _asleep()
        if self._asleep - before < SLEPT:
            return
        slept = self._asleep - before
        self._box.emit({"service": None, "kind": "daemon", "what": "resumed", "slept_s": round(slept, 1)})
        for runner in self._box.runners.values():
            runner.suspect("the machine was suspended")

    # --- XIDs and quarantine -------------------------------------------------------------------------------------

    def _hear(self, xids: Xids) -> None:
        card, meant = self._card(xids.uuid), meaning(xids.code)
        known = card.xids.setdefault(xids.code, {"code": xids.code, "kind": meant.kind, "text": meant.text, "count": 0})
        before, known["time"] = known["count"], self._box.clock.wall()
        known["count"] += xids.count
        text = f"XID {xids.code} ({meant.text})"
        if known["count"].bit_length() > before.bit_length():
            told = f"{text}, {known['count']} times" if known["count"] > 1 else text
            self._box.emit({"service": None, "kind": "gpu", "gpu": card.uuid, "code": xids.code, "text": told})
        if meant.kind == "gpu":
            self._quarantine(card, text, meant.lost)
        if meant.kind != "unknown":
            for runner in self.on(card.uuid):
                runner.suspect(f"{text} on {card.label}")

    def _quarantine(self, card: Card, reason: str, lost: bool = True) -> None:
        wish = self._wish(card.uuid)
        if wish.quarantine is None or (lost and not wish.quarantine["lost"]):
            wish.quarantine = {"reason": reason, "since": self._box.clock.wall(), "lost": lost}
            self._changed()
            card.conditions.set("quarantined", reason)

    def _wish(self, uuid: str) -> GpuWish:
        wish = self._box.desired.gpus.setdefault(uuid, GpuWish())
        wish.boot = self._box.boot
        return wish

    # --- lending -------------------------------------------------------------------------------------------------

    def find(self, said: object) -> Card:
        """By index, or by UUID, which may be of a card that cannot be read now."""
        word = str(said)
        for gpu in self._box.gpu.latest.gpus or ():
            if word in (gpu.uuid, str(gpu.index)):
                return self._card(gpu.uuid)
        for card in self._cards.values():
            if word in (card.uuid, card.word):
                return card
        if any(word in runner.plan.gpus for runner in self._box.runners.values()):
            return self._card(word)
        known = ", ".join(f"{card.word} ({card.uuid})" for card in self._cards.values() if card.gpu)
        error = self._box.gpu.latest.error
        raise UsageError(f"no GPU {word!r}; this box has {known or 'none'}" + (f": {error}" if error else ""))

    def lend(self, card: Card, by: str, seconds: float | None) -> dict[str, Any]:
        now = self._box.clock.wall()
        lent = {"by": by, "since": now, "until": None if seconds is None else now + seconds}
        self._wish(card.uuid).lent = lent
        self._changed()
        self._clear()
        return dict(lent)

    def take(self, card: Card) -> GpuWish:
        """What was lifted."""
        wish = self._box.desired.gpus.pop(card.uuid, GpuWish())
        self._changed()
        card.conditions.clear("quarantined")
        self._back(card)
        return wish

    def _end_what_is_over(self) -> None:
        now = self._box.clock.wall()
        for uuid, wish in list(self._box.desired.gpus.items()):
            if wish.lent and wish.lent["until"] is not None and wish.lent["until"] <= now:
                text = f"the time is over for which {wish.lent['by']} had it"
                wish.lent = None
                if wish.quarantine is None:
                    del self._box.desired.gpus[uuid]
                self._changed()
                self._box.emit({"service": None, "kind": "gpu", "gpu": uuid, "text": text})
                self._back(self._card(uuid))

    def _changed(self) -> None:
        self._box.save()
        if self._box.gateway is not None:
            self._box.gateway.wake()

    def _back(self, card: Card) -> None:
        for name, runner in self._box.runners.items():
            if card.uuid in runner.cards():
                self._box.loop.post(name, Changed(f"{card.label} is back"))

    # --- what follows --------------------------------------------------------------------------------------------

    def closed(self, uuids: Collection[str], for_longer: float = 0.0) -> str:
        """Why nothing is started on one of these, nor will be for so many seconds; empty: it may be."""
        return next((why for uuid in uuids if (why := self._closed(uuid, for_longer))), "")

    def reopen(self, uuids: Collection[str]) -> float | None:
        """When the last of these that are closed is back, Unix seconds; None where that is not known."""
        wishes = [self._box.desired.gpus.get(uuid, GpuWish()) for uuid in uuids if self._closed(uuid)]
        ends: list[Any] = [wish.lent["until"] if wish.lent and not wish.quarantine else None for wish in wishes]
        return None if None in ends else max(ends, default=None)

    def barred(self, uuids: Collection[str]) -> str:
        """Why nothing is started there now; empty: it may be."""
        return self.closed(uuids) or (self._not_yet() if uuids else "")

    def _not_yet(self) -> str:
        """At boot the driver comes in parts, and what starts between two of them runs on the CPU without a word."""
        since = self._box.clock.monotonic() - self._began
        missing = devices.missing() if since < DEVICES else ""
        return f"waits for {missing}: the driver is not complete yet ({DEVICES:g} s at most)" if missing else ""

    def _closed(self, uuid: str, for_longer: float = 0.0) -> str:
        card, wish, now = self._card(uuid), self._box.desired.gpus.get(uuid, GpuWish()), self._box.clock.wall()
        back = f"llmsupervisor take {card.word}"
        until = wish.lent["until"] if wish.lent else None
        if wish.lent and wish.boot == self._box.boot and (until is None or until > now + for_longer):
            end = f"`{back}`" if until is None else _clock(until, now)
            return f"{card.label} is lent to {wish.lent['by']} until {end}"
        if wish.quarantine and wish.boot == self._box.boot:
            return f"{card.label} is quarantined: {wish.quarantine['reason']}; `{back}` ends that"
        if card.conditions.has("missing"):
            return f"{card.label} is gone: NVML does not list it any more"
        return ""

    def _clear(self) -> None:
        """Looked at again and again, so that neither a death of the daemon nor a race leaves somebody there."""
        for uuid, card in self._cards.items():
            wish = self._box.desired.gpus.get(uuid, GpuWish())
            for runner in list(self.on(uuid)):
                status = self._box.loop.statuses[runner.name]
                lost = card.conditions.has("missing") or (wish.quarantine is not None and wish.quarantine["lost"])
                if lost and status.state in (State.READY, State.UNREADY) and runner.process is not None:
                    runner.post(Stalled(f"{card.label} is lost", "gpu-lost"), runner.process)
                elif status.state in RUNS and (lost or wish.lent):
                    self._box.loop.post(runner.name, Restart(self._closed(uuid)))
        for runner in self._box.runners.values():
            on = runner.process.plan.gpus if runner.process else ()
            runner.conditions.set("gpu-closed", self.closed(on) if on else "")

    def on(self, uuid: str) -> Iterator[Runner]:
        """Those with a process there."""
        return (r for r in self._box.runners.values() if r.process is not None and uuid in r.process.plan.gpus)

    def foreign_on(self, uuids: Collection[str]) -> str:
        """Who else holds memory on these, in words; empty: nobody, or not known."""
        sample = self._box.gpu.latest
        gpus = [gpu for uuid in uuids if (gpu := sample.gpu(uuid)) is not None]
        return _holders([process for gpu in gpus for process in self._foreign(gpu) or ()])

    # --- telling -------------------------------------------------------------------------------------------------

    def all(self) -> list[tuple[Gpu, Card]]:
        """As NVML lists them, then those that it lists no more."""
        sample = self._box.gpu.latest
        found = [(_named(gpu, card := self._card(gpu.uuid)), card) for gpu in sample.gpus or ()]
        if sample.error is not None:
            return found
        listed = {gpu.uuid for gpu, _ in found}
        return found + [(_gone(c.gpu), c) for c in self._cards.values() if c.gpu is not None and c.uuid not in listed]

    def lent(self, uuid: str) -> dict[str, Any] | None:
        wish = self._box.desired.gpus.get(uuid)
        return dict(wish.lent) if wish and wish.lent else None

    def limited(self) -> dict[str, dict[str, float]]:
        return {uuid: card.limited for uuid, card in self._cards.items()}

    def quarantined(self, uuid: str) -> dict[str, Any] | None:
        wish = self._box.desired.gpus.get(uuid)
        found = wish.quarantine if wish else None
        return {"reason": found["reason"], "since": found["since"]} if found else None


def _named(gpu: Gpu, card: Card) -> Gpu:
    """One that does not answer is still called what it was."""
    return replace(gpu, name=card.gpu.name) if gpu.name is None and card.gpu is not None else gpu


def _gone(gpu: Gpu) -> Gpu:
    """Its name and place, and nothing that was read of it."""
    error = "NVML does not list it any more"
    return Gpu(gpu.uuid, gpu.index, gpu.name, None, None, None, None, gpu.compute_capability, error)


def _holders(processes: list[GpuProcess]) -> str:
    return ", ".join(
        f"pid {process.pid} ({tree.user_of(process.pid) or 'gone'}, {_program(process.pid)}) {_coarse(process.used_bytes)}"
        for process in processes
    )


def _program(pid: int) -> str:
    return tree.command_of(pid).partition(" ")[0].rpartition("/")[2] or "unknown"


def _coarse(size: int | None) -> str:
    return format_size(None if size is None else round(size / COARSE) * COARSE or size)


def _clock(at: float, now: float) -> str:
    return time.strftime("%H:%M" if abs(at - now) < 72000 else "%Y-%m-%d %H:%M", time.localtime(at))


def _asleep() -> float:
    """Seconds that this machine was suspended since its boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)

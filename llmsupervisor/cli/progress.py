"""What `up` tells a person while services come up: one line per change, and at a terminal one line that lives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmsupervisor.base.progress import name_of, shares
from llmsupervisor.base.text import ascii_only, cut, pad, printable
from llmsupervisor.cli import views
from llmsupervisor.cli.views import Line, Span

if TYPE_CHECKING:
    from llmsupervisor.cli.terminal import Output
    from llmsupervisor.link.events import Event
    from llmsupervisor.link.services import Exit, Service
    from llmsupervisor.link.status import Status

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_SPINNER_ASCII = "|/-\\"
_MOVING = {"STARTING", "DRAINING", "STOPPING", "KILLING", "BACKOFF", "PENDING"}


@dataclass(slots=True)
class _Seen:
    """What was last said about a service. Times are Unix seconds."""

    state: str = ""
    since: float = 0.0
    started: float | None = None
    """When the present start began."""
    phase: str = ""
    """With how far it is."""
    step: tuple[str, list[int]] = ("", [])
    """What the last line about the phase was for: its words, and tenths."""
    far: bool = False
    """A model of it is made, whatever its state."""
    endpoint: str = ""
    exit: Exit | None = None
    conditions: dict[str, str] = field(default_factory=dict)


class Progress:
    """Successive statuses and events in, lines to print out. A change that both tell is told once. `piped`: no live line
    shows how far something is, so each tenth of it has a line.
    """

    def __init__(self, piped: bool = False) -> None:
        self._piped = piped
        self._seen: dict[str, _Seen] = {}
        self._spec_error: str | None = None
        self._conditions: dict[str, str] = {}
        """Of the daemon itself."""

    def event(self, event: Event) -> list[Line]:
        """Lines for one event; those that a status tells as well (conditions, the spec's error) are left to it."""
        name = event["service"]
        if event["kind"] == "state" and name is not None:
            return self._state(name, event.get("to", ""), event["time"], event.get("reason", ""))
        if event["kind"] == "exit" and name is not None and (exit := event.get("exit")):
            return self._exit(name, exit)
        if event["kind"] in {"reload", "operator", "daemon"}:
            return [views.event_line(event, event["time"])[2:]]
        return []

    def status(self, status: Status) -> list[Line]:
        """Lines for what changed since the last status or event."""
        lines: list[Line] = []
        error = status["daemon"]["spec"]["error"]
        if error != self._spec_error:
            lines += views.spec_error(status) if error else [[Span("the spec is in order again", "good")]]
            self._spec_error = error
        conditions = {c["id"]: c["text"] for c in status["daemon"]["conditions"]}
        lines += _changed("daemon", self._conditions, conditions)
        self._conditions = conditions
        for service in status["services"]:
            lines += self._service(service)
        for name in sorted(self._seen.keys() - {service["name"] for service in status["services"]}):
            del self._seen[name]
            lines.append(_line(name, [Span("no longer in the spec", "dim")]))
        return lines

    def live(self, now: float) -> list[Line]:
        """What is under way, one line a service; empty while everything rests."""
        lines = []
        for name, seen in self._seen.items():
            if seen.state in _MOVING or seen.far:
                phase = f"  {printable(seen.phase)} … " if seen.phase else "  "
                spent = Span(f"{max(0.0, now - seen.since):.1f}s", "dim")
                lines.append(_line(name, [views.state_span(seen.state), Span(phase), spent]))
        return lines

    def _service(self, service: Service) -> list[Line]:
        name = service["name"]
        seen = self._seen.setdefault(name, _Seen())
        seen.endpoint = service["endpoint"] or seen.endpoint
        lines: list[Line] = []
        if service["state"] != seen.state and service["since"] >= seen.since:
            lines += self._state(name, service["state"], service["since"], service["reason"])
        if service["state"] in {"BACKOFF", "FAILED"} and (exit := service["last_exit"]):
            lines += self._exit(name, exit, said=service["reason"])
        seen.phase, seen.far = views.phase(service), any(map(views.how_far, service["targets"]))
        words = name_of(service["phase"] or "")
        step = (words, [share // 10 for share in shares(seen.phase)] if self._piped else [])
        if step != seen.step:
            seen.step = step
            said = seen.phase if self._piped else words
            if said and service["state"] == seen.state:
                lines.append(_line(name, [views.state_span(seen.state), Span(f"  {printable(said)} …")]))
        conditions = {c["id"]: c["text"] for c in service["conditions"]}
        lines += _changed(name, seen.conditions, conditions)
        seen.conditions = conditions
        return lines

    def _exit(self, name: str, exit: Exit, said: str = "") -> list[Line]:
        seen = self._seen.setdefault(name, _Seen())
        if exit == seen.exit:
            return []
        seen.exit = exit
        return [_line(name, line) for line in views.exit_lines(exit | {"time": None}, 0.0, said)]

    def _state(self, name: str, state: str, since: float, reason: str) -> list[Line]:
        seen = self._seen.setdefault(name, _Seen())
        if state == seen.state:
            return []
        if state == "STARTING":
            seen.started = since
        spent = ""
        if state == "READY" and seen.started is not None:
            spent = f" in {max(0.0, since - seen.started):.1f}s"
        seen.state, seen.since, seen.phase, seen.step = state, since, "", ("", [])
        line = [views.state_span(state), Span(spent)]
        if state == "READY" and seen.endpoint:
            line.append(Span(f"  {printable(seen.endpoint)}", "bold"))
        if reason:
            line.append(Span(f"  {printable(reason)}"))
        return [_line(name, line)]


def _changed(name: str, before: dict[str, str], now: dict[str, str]) -> list[Line]:
    """Conditions that came and that went: id → text."""
    came = [
        _line(name, [Span("condition ", "warn"), Span(printable(f"{id}: {now[id]}"))]) for id in now.keys() - before
    ]
    gone = [_line(name, [Span(printable(f"condition {id} is over"), "good")]) for id in before.keys() - now]
    return came + gone


def _line(name: str, rest: Line) -> Line:
    return [Span(pad(printable(name), max(8, len(name))) + "  ", "bold"), *rest]


class Printer:
    """Writes lines; at a terminal keeps one live line below them. Writing may block where the terminal is paused:
    call it outside of the daemon's loop.
    """

    def __init__(self, out: Output) -> None:
        self._out = out
        self._tick = 0
        self._alive = False

    def lines(self, lines: list[Line]) -> None:
        if lines:
            self._clear()
            self._out.write(lines)

    def live(self, lines: list[Line]) -> None:
        """The live line, drawn anew with the next sign of the spinner; nothing where the output is no terminal."""
        if not self._out.tty:
            return
        if not lines:
            self._clear()
            return
        signs = _SPINNER_ASCII if self._out.ascii else _SPINNER
        text = " · ".join(views.text_of(line).rstrip() for line in lines)
        text = ascii_only(text) if self._out.ascii else text
        self._tick += 1
        self._out.stream.write(f"\r{signs[self._tick % len(signs)]} {cut(text, self._out.width - 3)}\x1b[K")
        self._out.stream.flush()
        self._alive = True

    def close(self) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._alive:
            self._out.stream.write("\r\x1b[K")
            self._out.stream.flush()
            self._alive = False

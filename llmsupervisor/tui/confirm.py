"""The question before an order, with what the order cuts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from llmsupervisor.base.text import printable
from llmsupervisor.cli.views import Line, Span, number, total
from llmsupervisor.tui.paint import Paint

if TYPE_CHECKING:
    from llmsupervisor.link.services import Service
    from llmsupervisor.link.status import DaemonInfo

VERBS = {"start": "u", "stop": "x", "restart": "r", "drain": "d"}
"""Orders, and their keys."""


def question(verb: str, service: Service, daemon: DaemonInfo, stale: str) -> list[Line]:
    """What is asked, of which daemon, and what it costs."""
    cuts = [] if verb == "start" else [cut_by(service)]
    return asked(f"{verb} {service['name']}", [*cuts, _means(verb, service)], daemon, stale)


def asked(what: str, costs: Sequence[str], daemon: DaemonInfo, stale: str) -> list[Line]:
    lines: list[Line] = [
        [Span(printable(f"{what}?   "), "bold"), Span("y", "bold"), Span(" yes  "), Span("n", "bold"), Span(" no")],
        *([Span(printable(cost))] for cost in costs),
        [Span(printable(f"daemon pid {daemon['pid']}, {daemon['spec']['path']}"), "dim")],
    ]
    if stale:
        lines.append([Span(f"These figures are {stale} old.", "warn")])
    return lines


def cut_by(service: Service) -> str:
    if service["pid"] is None:
        return "no process runs"
    figures = [
        f"{number(total(service, 'requests_running'))} running",
        f"{number(total(service, 'requests_waiting'))} waiting",
    ]
    queued = total(service, "requests_queued")
    if queued is not None:
        figures.append(f"{queued} queued")
    return f"pid {service['pid']} with {', '.join(figures)} requests: drained first, what is not done then is cut"


def _means(verb: str, service: Service) -> str:
    if verb in ("stop", "drain"):
        return "It stays stopped until it is started or the box reboots."
    if verb == "restart":
        return "The model is loaded again." + (" What drifted is applied." if service["drift"] else "")
    return f"It is {printable(service['state'])} now."


class Confirm(ModalScreen[bool]):
    BINDINGS = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,enter,q", "answer(False)", "no"),
    ]

    def __init__(self, paint: Paint, lines: Sequence[Line]) -> None:
        super().__init__()
        self._paint = paint
        self.lines = lines

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="question", classes="ascii" if self._paint.ascii else "", can_focus=False):
            yield Static(self._paint.lines(self.lines))

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)

    def dismiss(self, result: bool | None = None) -> AwaitComplete:
        """Once: keys that were typed faster than it went do not take the page below away."""
        return super().dismiss(result) if self.is_active else AwaitComplete()

"""The page of the GPUs and of the box around them; a card is lent and taken back from here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual.binding import Binding

from llmsupervisor.base.units import format_duration
from llmsupervisor.cli.views import Line, Span, text_of
from llmsupervisor.tui import gpuview, header, trend
from llmsupervisor.tui.confirm import Confirm, asked, cut_by
from llmsupervisor.tui.textpage import TextPage

if TYPE_CHECKING:
    from llmsupervisor.link.gpus import Gpu

HOUR = 3600.0


class GpuPage(TextPage):
    NAME = "gpus"
    HINTS = ("up/down scroll", "y copy", "i meaning")
    ORDER_HINTS = ("l h lend", "t take", "[ ] card")
    BINDINGS = [
        Binding("l", "lend", "lend the card until it is taken back (asks first)"),
        Binding("h", "lend(True)", "lend it for an hour (asks first)"),
        Binding("t", "take", "take it back, also from quarantine (asks first)"),
        Binding("left_square_bracket", "card(-1)", "the card before"),
        Binding("right_square_bracket", "card(1)", "the card after"),
    ]
    _card = 0

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("lend", "take", "card"):
            return not self._feeds.readonly
        return super().check_action(action, parameters)

    @property
    def _cards(self) -> list[Gpu]:
        status = self.picture.status
        return (status["gpus"] or []) if status is not None else []

    @property
    def card(self) -> Gpu | None:
        """The one that orders are about."""
        return self._cards[min(self._card, len(self._cards) - 1)] if self._cards else None

    def lines(self, room: int) -> list[Line]:
        status = self.picture.status
        if status is None:
            return [[Span("no picture yet", "dim")]]
        uuids = [gpu["uuid"] for gpu in self._cards]
        said = self._feeds.card_trends(uuids) if uuids else None
        marked = self.card["uuid"] if self.card and len(uuids) > 1 and not self._feeds.readonly else None
        return gpuview.page(
            status, self.services, room, lambda uuid: trend.card_lines(said, uuid, room, self._paint.ascii), marked
        )

    @property
    def selected(self) -> str | None:
        return None

    def copied(self) -> tuple[str, Any]:
        status = self.picture.status
        return "\n".join(map(text_of, self.lines(120))), None if status is None else status["gpus"]

    def action_card(self, by: int) -> None:
        if self._cards:
            self._card = (min(self._card, len(self._cards) - 1) + by) % len(self._cards)
            self.tick()

    def action_lend(self, hour: bool = False) -> None:
        card = self.card
        if card is None:
            self.tell([Span("nothing to lend: no GPU is known", "warn")])
            return
        names = {process.get("service") for process in card["processes"] or ()}
        there = [f"{s['name']}: {cut_by(s)}" for s in self.services if s["name"] in names]
        if card["processes"] is None:
            there = ["The card does not tell what runs there; all of it is drained and stopped."]
        how_long = f"for {format_duration(HOUR)}" if hour else "until it is taken back (t)"
        costs = [
            *(there or ["nothing of ours runs there"]),
            f"Nothing is started there {how_long}, or the box reboots.",
        ]
        seconds = HOUR if hour else None
        self._ask("lend", card, costs, lambda: self._feeds.orders.lend(card["uuid"], _name(card), seconds))

    def action_take(self) -> None:
        card = self.card
        if card is None or not (card.get("lent") or card.get("quarantine")):
            what = f"{_name(card)} is neither lent nor in quarantine" if card else "no GPU is known"
            self.tell([Span(f"nothing to take: {what}", "warn")])
            return
        lent, quarantine = card.get("lent"), card.get("quarantine")
        costs = [f"lent by {lent['by']}: whatever runs there now is not stopped"] if lent else []
        costs += [f"in quarantine: {quarantine['reason']}"] if quarantine else []
        costs.append("What waits for this card is started.")
        self._ask("take", card, costs, lambda: self._feeds.orders.take(card["uuid"], _name(card)))

    def _ask(self, verb: str, card: Gpu, costs: list[str], order: Callable[[], None]) -> None:
        status = self.picture.status
        assert status is not None

        def answered(yes: bool | None) -> None:
            if yes:
                self.tell([Span(f"{verb} {_name(card)} …")])
                order()

        stale = header.stale_age(self.picture, time.monotonic())
        lines = asked(f"{verb} {_name(card)}", costs, status["daemon"], stale)
        self.app.push_screen(Confirm(self._paint, lines), answered)


def _name(card: Gpu) -> str:
    return f"GPU{card['index']}"

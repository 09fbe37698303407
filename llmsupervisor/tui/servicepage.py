"""The page of one service: what is wrong with it, what it was asked for and got, and what it was started with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.binding import Binding

from llmsupervisor.cli.views import Line, Span
from llmsupervisor.tui import serviceview, trend
from llmsupervisor.tui.textpage import TextPage

if TYPE_CHECKING:
    from llmsupervisor.tui.shown import Shown


class ServicePage(TextPage):
    NAME = "service"
    HINTS = ("[ ] next",)
    ORDERS = True
    BINDINGS = [
        Binding("left_square_bracket", "step(-1)", "the service before"),
        Binding("right_square_bracket", "step(1)", "the service after"),
    ]

    def on_mount(self) -> None:
        self._feeds.events.want()

    def lines(self, room: int) -> list[Line]:
        service = self.service
        if service is None:
            return [[Span(serviceview.missing(self.selected), "warn")]]
        plan, trouble = self._feeds.plans.get((service["name"], service["generation"], service["pid"]))
        name, now = service["name"], self.picture.wall
        parts = [
            trend.lines(self._feeds.trend(name), name, room, self._paint.ascii),
            serviceview.processes(self._feeds.processes(name), now),
            serviceview.starts(self._feeds.events.kept().items, name, now, room),
        ]
        return serviceview.lines(service, plan, trouble, room, now, parts)

    def figures(self) -> list[Shown]:
        from llmsupervisor.tui import shown

        service, times = self.service, self.times
        of_it = shown.of_service(service, times, self.picture.wall) if service else []
        head = [each for each in of_it if each.name in ("STATE", "RESTARTS", "VRAM", "CONDITION")]
        return [*head, *super().figures()]

    def action_step(self, by: int) -> None:
        names = [service["name"] for service in self.services]
        if names:
            at = names.index(self.selected) if self.selected in names else 0
            self._chosen = names[(at + by) % len(names)]
            self.to_the_top()
            self.tick()

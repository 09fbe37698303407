"""What every page has: the state of the link and of the spec above, the keys below, orders that ask first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.geometry import Size
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from llmsupervisor.base.text import printable
from llmsupervisor.cli import views
from llmsupervisor.cli.views import Line, Span
from llmsupervisor.tui import header
from llmsupervisor.tui.ages import settled
from llmsupervisor.tui.confirm import VERBS, Confirm, question
from llmsupervisor.tui.feed import Picture
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.paint import Paint

if TYPE_CHECKING:
    from llmsupervisor.link.services import Service
    from llmsupervisor.tui.shown import Shown, Times

TICK, SOON = 0.2, 0.02
SHORT = 18
"""Rows below which pages leave out what is only nice to have."""
MESSAGE_SECONDS = 15.0
SHEET = 76
"""Cells of a text above the page, at most."""
WHEEL = 3
"""Lines of one turn of the wheel."""
MARGIN = 3
"""Cells beside a text that scrolls: a blank at either side, and the scroll bar."""


class Page(Screen[None]):
    NAME = ""
    HINTS: Sequence[str] = ()
    """Its own keys, the most wanted first."""
    ORDER_HINTS: Sequence[str] = ()
    """Those that order something."""
    ORDERS = False
    """Whether its service can be started, stopped, restarted and drained here."""
    BINDINGS = [
        *(Binding(key, f"order('{verb}')", verb) for verb, key in VERBS.items()),
        Binding("y", "copy(False)", "copy as text"),
        Binding("Y", "copy(True)", "copy as JSON"),
        Binding("i", "meaning", "where figures come from, and what they do not mean"),
        Binding("question_mark", "help", "keys"),
        Binding("space", "pause", "hold what is shown, and go on"),
        Binding("plus,equals_sign", "pace(1)", "a picture more often"),
        Binding("minus", "pace(-1)", "a picture less often"),
        Binding("escape", "back", "back"),
        Binding("q", "app.quit", "detach"),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (SHORT, "-tall")]

    def __init__(self, feeds: Feeds, paint: Paint, service: str | None = None) -> None:
        """`service`: the one that was selected where this page was opened."""
        super().__init__(classes="ascii-only" if paint.ascii else "")
        self._feeds = feeds
        self._paint = paint
        self._message_until = 0.0
        self._texts: dict[str, str] = {}
        self._chosen = service

    @property
    def picture(self) -> Picture:
        return self._feeds.picture

    @property
    def selected(self) -> str | None:
        """The service that the page is about. One that is gone stays selected: it may come back."""
        return self._chosen or next((service["name"] for service in self.services), None)

    @property
    def services(self) -> list[Service]:
        return self.picture.status["services"] if self.picture.status else []

    @property
    def service(self) -> Service | None:
        """The selected one, with ages that do not change each second."""
        found = next((s for s in self.services if s["name"] == self.selected), None)
        return settled(found, self.picture.wall) if found else None

    @property
    def room(self) -> Size:
        """Of the terminal; known before the first layout."""
        return self.size or self.app.size

    @property
    def short(self) -> bool:
        return self.room.height < SHORT

    def compose(self) -> ComposeResult:
        yield Static(id="header")
        yield Static(id="banner")
        yield from self.body()
        yield Static(id="message")
        yield Static(id="keys")

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError

    def draw(self) -> None:
        """What the page shows, as often as the screen may change."""
        raise NotImplementedError

    def on_mount(self) -> None:
        self.set_interval(TICK, self.tick)
        self._begin()

    def _begin(self) -> None:
        """The first picture does not wait for a whole tick."""
        self.tick()
        if self.picture.status is None:
            self.set_timer(SOON, self._begin)

    def on_resize(self) -> None:
        self.call_after_refresh(self.tick)

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self.tick)

    def tick(self) -> None:
        if not self.is_attached or (isinstance(self.app.screen, Page) and self.app.screen is not self):
            return
        picture, now, room = self.picture, time.monotonic(), self.room.width
        feeds = self._feeds
        told = header.header(picture, now, room, self.short, feeds.readonly, feeds.host, feeds.paused)
        self.put("header", told)
        banner = header.banner(picture, now, 2 if self.short else 5, feeds.paused)
        banner = [views.clip(line, room) for line in banner]
        self.put("banner", banner)
        orders = [*([header.ORDERS] if self.ORDERS else []), *self.ORDER_HINTS]
        hints = [*([] if self._feeds.readonly else orders), *self.HINTS]
        self.put("keys", [header.keys(self.NAME, hints, room)])
        self.draw()
        if (answer := self._feeds.orders.answer()) is not None:
            self.tell(answer)
        elif self._message_until and now > self._message_until:
            self.tell([])

    def put(self, id: str, lines: list[Line]) -> None:
        """Nothing is drawn where nothing changed."""
        text = self._paint.lines(lines)
        if self._texts.get(id) != text.markup:
            shown = self._texts.get(id)
            self._texts[id] = text.markup
            static = self.query_one(f"#{id}", Static)
            static.update(text, layout=shown is None or shown.count("\n") != text.markup.count("\n"))
            static.set_class(bool(lines), "on")
            if id == "banner":
                static.styles.height = len(lines)

    def lines_of(self, id: str) -> int:
        """That were put there."""
        shown = self._texts.get(id)
        return shown.count("\n") + 1 if shown else 0

    # --- the mouse, where it was asked for (--mouse) ---------------------------------------------------------------

    def wheel(self, lines: int) -> None:
        """Over what no widget scrolls by itself."""

    def on_mouse_scroll_down(self) -> None:
        self.wheel(WHEEL)

    def on_mouse_scroll_up(self) -> None:
        self.wheel(-WHEEL)

    def tell(self, line: Line) -> None:
        self._message_until = time.monotonic() + MESSAGE_SECONDS if line else 0.0
        self.put("message", [line] if line else [])

    # --- keys that every page has ---------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return (self.ORDERS and not self._feeds.readonly) if action == "order" else True

    def action_back(self) -> None:
        if len(self.app.screen_stack) > 1:
            self.app.pop_screen()

    def action_pause(self) -> None:
        self._feeds.pause(not self._feeds.paused)
        self.tick()

    def action_pace(self, by: int) -> None:
        self.tell([Span(f"a picture each {self._feeds.pace(by):g} s")])
        self.tick()

    def action_meaning(self) -> None:
        from llmsupervisor.tui import shown

        runtime = self.service["runtime"] if self.service else ""
        figures = [*self.figures(), *shown.around(self.picture, time.monotonic())]
        self._sheet(shown.lines(self.NAME, figures, runtime, self._sheet_room, time.time()))

    def figures(self) -> list[Shown]:
        """Those that stand on this page for what is selected."""
        return []

    @property
    def times(self) -> Times:
        """When each figure of a status was measured."""
        from llmsupervisor.tui import shown

        status, name = self.picture.status, self.selected
        if status is None:
            return lambda name: None
        service = next((s for s in status["services"] if s["name"] == name), None)
        return shown.times(status, service, self.picture.wall)

    def action_help(self) -> None:
        self._sheet(header.help_lines(self.NAME, self.active_bindings.values()))

    @property
    def _sheet_room(self) -> int:
        return min(self.room.width * 9 // 10, SHEET) - 2 * MARGIN

    def _sheet(self, lines: list[Line]) -> None:
        from llmsupervisor.tui.sheet import Sheet

        self.app.push_screen(Sheet(self._paint, lines))

    def copied(self) -> tuple[str, Any]:
        """What `y` copies, and what `Y` copies as JSON: what is selected, or all of the page."""
        service = self.service
        raw = next((s for s in self.services if s["name"] == self.selected), None)
        return "\n".join(map(views.text_of, views.detail(service, self.picture.wall))) if service else "", raw

    def action_copy(self, as_json: bool) -> None:
        import json

        from llmsupervisor.tui import clipboard

        text, raw = self.copied()
        if as_json:
            text = "" if raw is None else json.dumps(raw, indent=1)
        if not text:
            self.tell([Span("nothing to copy here", "warn")])
            return
        path = clipboard.file_of(self._feeds.environ)
        trouble = clipboard.keep(text + "\n", path)
        if len(text.encode()) <= clipboard.MOST:
            self.app.copy_to_clipboard(text)
            where = "to the clipboard, where the terminal allows it (OSC 52)"
        else:
            where = "but not to the clipboard: too long"
        kept = f"not to a file: {trouble}" if trouble else f"to {path}"
        self.tell([Span(printable(f"copied {kept}, and {where}"), "warn" if trouble else "good")])

    def action_order(self, verb: str) -> None:
        self.order(verb, self.selected)

    def order(self, verb: str, name: str | None) -> None:
        """Asks first."""
        service = next((s for s in self.services if s["name"] == name), None)
        status = self.picture.status
        if service is None or status is None:
            self.tell([Span(f"nothing to {verb}: no service is selected", "warn")])
            return
        name = service["name"]
        stale = header.stale_age(self.picture, time.monotonic())

        def answered(yes: bool | None) -> None:
            if yes:
                self.tell([Span(printable(f"{verb} {name} …"))])
                self._feeds.orders.send(verb, name)

        lines = question(verb, service, status["daemon"], stale)
        self.app.push_screen(Confirm(self._paint, lines), answered)

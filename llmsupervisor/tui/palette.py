"""The command palette: pages, orders for each service, requests by their id. An order asks first, as its key does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

from textual.await_complete import AwaitComplete
from textual.command import CommandInput, CommandPalette, DiscoveryHit, Hit, Provider, SearchIcon

from llmsupervisor.base.text import printable
from llmsupervisor.tui.confirm import VERBS
from llmsupervisor.tui.page import Page
from llmsupervisor.tui.pages import PAGES
from llmsupervisor.tui.requestpage import RequestPage, id_of

if TYPE_CHECKING:
    from llmsupervisor.tui.app import SupervisorApp
    from llmsupervisor.tui.requestpage import Request

THEMES = ("ansi-dark", "ansi-light")
_MOST = 20
"""Requests that are offered at once."""
_ENOUGH = 3
"""Signs of an id that are looked for."""


class Command(NamedTuple):
    name: str
    do: Callable[[], object]


class Commands(Provider):
    @property
    def _app(self) -> SupervisorApp:
        return cast("SupervisorApp", self.app)

    @property
    def _page(self) -> Page:
        """The one that the palette was opened on."""
        screens = [screen for screen in self.app.screen_stack if isinstance(screen, Page)]
        return screens[-1]

    async def startup(self) -> None:
        self._app.feeds.requests.want()

    async def discover(self) -> AsyncIterator[DiscoveryHit]:
        for command in self._commands():
            yield DiscoveryHit(self._app.paint.plain(command.name), command.do)

    async def search(self, query: str) -> AsyncIterator[Hit]:
        matcher = self.matcher(query)
        for command in self._commands():
            name = self._app.paint.plain(command.name)
            if (score := matcher.match(name)) > 0:
                yield Hit(score, matcher.highlight(name), command.do)
        for request in self._requests(query.removeprefix("request").strip().lower()):
            yield Hit(1.0, printable(f"request {id_of(request)}"), partial(self._open, request))

    def _commands(self) -> Iterator[Command]:
        app, page = self._app, self._page
        services = [service["name"] for service in page.services]
        for place in PAGES:
            yield Command(place.name, partial(app.action_page, place.name))
        for name in services:
            yield Command(printable(f"service {name}"), partial(app.action_page, "service", name))
            yield Command(printable(f"logs {name}"), partial(app.action_page, "logs", name))
        if not app.feeds.readonly:
            for name in services:
                for verb in VERBS:
                    yield Command(printable(f"{verb} {name}"), partial(page.order, verb, name))
        yield Command("go on" if app.feeds.paused else "pause", page.action_pause)
        yield Command("a picture more often", partial(page.action_pace, 1))
        yield Command("a picture less often", partial(page.action_pace, -1))
        for theme in THEMES:
            yield Command(f"theme {theme}", partial(setattr, app, "theme", theme))

    def _requests(self, words: str) -> Iterator[Request]:
        """Those whose id has these signs, the newest first."""
        if len(words) < _ENOUGH:
            return
        running, _ = self._app.feeds.live.running()
        known: list[Request] = [*(running or ()), *reversed(self._app.feeds.requests.kept().items)]
        found = (each for each in known if words in id_of(each).lower())
        yield from (each for each, _ in zip(found, range(_MOST), strict=False))

    def _open(self, request: Request) -> None:
        self.app.push_screen(RequestPage(self._app.feeds, self._app.paint, [request], 0))


class Palette(CommandPalette):
    def __init__(self, ascii: bool) -> None:
        super().__init__([Commands], placeholder="a page, an order, a request's id", classes="ascii" if ascii else "")

    def on_mount(self) -> None:
        self.query_one(SearchIcon).icon = ">"
        self.query_one(CommandInput).cursor_blink = False

    def dismiss(self, result: None = None) -> AwaitComplete:
        """Once: keys that were typed faster than it went do not take the page below away."""
        return super().dismiss(result) if self.is_active else AwaitComplete()

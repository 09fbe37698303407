"""What all pages read, and through what they order: read once, however many pages look at it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from llmsupervisor.tui import trend
from llmsupervisor.tui.asked import EVERY, Asked
from llmsupervisor.tui.feed import FindSocket, LogFeed, Picture, StatusFeed
from llmsupervisor.tui.listfeed import ListFeed
from llmsupervisor.tui.livefeed import LiveFeed
from llmsupervisor.tui.orders import Orders
from llmsupervisor.tui.planfeed import PlanFeed

if TYPE_CHECKING:
    from llmsupervisor.link.events import Event
    from llmsupervisor.link.requests import RequestRecord

PACES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between two pictures of the daemon that can be chosen."""
LONG = 5000
"""Lines that the page of a log asks for at the begin."""
REQUESTS, EVENTS = 10_000, 5000
"""Kept here."""


class Feeds:
    def __init__(
        self,
        find: FindSocket,
        interval: float,
        environ: Mapping[str, str],
        readonly: bool = False,
        host: str | None = None,
    ) -> None:
        """`interval`: seconds between two pictures of the daemon; `environ`: of the user's terminal; `host`: where the daemon is, None: here."""
        self.find = find
        self.environ = environ
        self.readonly = readonly
        self.host = host
        self._statuses = StatusFeed(find, interval)
        self.logs = LogFeed(find)
        self.long_log = LogFeed(find, LONG)
        self.requests: ListFeed[RequestRecord] = ListFeed(find, "requests", itemgetter("id"), REQUESTS)
        self.live = LiveFeed(find, interval)
        self.events: ListFeed[Event] = ListFeed(find, "events", partial(json.dumps, sort_keys=True), EVENTS)
        self.plans = PlanFeed(find)
        self.orders = Orders(find)
        self._asked: dict[str, tuple[str, Asked]] = {}
        self._still: Picture | None = None

    @property
    def picture(self) -> Picture:
        return self._still or self._statuses.picture

    @property
    def paused(self) -> bool:
        return self._still is not None

    def pause(self, on: bool) -> None:
        """What is shown stays as it is; all is read on meanwhile."""
        self._still = self._statuses.picture if on else None
        for feed in (self.logs, self.long_log, self.requests, self.live, self.events):
            feed.held = on

    def pace(self, by: int) -> float:
        """One step more (1) or less (-1) often; seconds between two pictures from now on."""
        now = self._statuses.interval
        steps = [step for step in PACES if (step < now if by > 0 else step > now)]
        chosen = (max(steps) if by > 0 else min(steps)) if steps else now
        if chosen != now:
            self._statuses.pace(chosen)
            self.live.interval = chosen
        return chosen

    def trend(self, service: str) -> Any:
        """Figures of this service over the last minutes; None while they are not known."""
        wanted = {"names": trend.names(service), "window_s": trend.WINDOW, "events": False}
        return self._of("series", service, trend.EVERY, wanted)

    def card_trends(self, uuids: Sequence[str]) -> Any:
        names = [name for uuid in uuids for name in trend.card_names(uuid)]
        return self._of(
            "series", ",".join(uuids), trend.EVERY, {"names": names, "window_s": trend.WINDOW, "events": False}
        )

    def processes(self, service: str) -> Any:
        return self._of("processes", service, EVERY, {"service": service})

    def _of(self, call: str, what: str, every: float, args: dict[str, Any]) -> Any:
        """The answer for what is looked at; for something else it is asked anew."""
        if call not in self._asked or self._asked[call][0] != what:
            self._asked[call] = what, Asked(self.find, call, every=every, **args)
        return self._asked[call][1].get(anew=not self.paused)[0]

    def start(self) -> None:
        """All else is read from when a page wants it."""
        self._statuses.start()

    def close(self) -> None:
        for feed in (self._statuses, self.logs, self.long_log, self.requests, self.live, self.events):
            feed.close()

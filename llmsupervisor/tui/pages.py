"""The pages, their digits, and where each is defined: a module is imported when its page is opened."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    digit: str
    name: str
    short: str
    module: str
    kind: str


PAGES = (
    Place("1", "overview", "ovr", "dashboard", "Dashboard"),
    Place("2", "requests", "req", "requestlist", "RequestList"),
    Place("3", "gpus", "gpu", "gpupage", "GpuPage"),
    Place("4", "logs", "log", "logspage", "LogsPage"),
    Place("5", "events", "evt", "eventspage", "EventsPage"),
    Place("6", "spec", "spec", "specpage", "SpecPage"),
    Place("7", "service", "svc", "servicepage", "ServicePage"),
    Place("8", "advice", "adv", "advicepage", "AdvicePage"),
)


def place(name: str) -> Place:
    return next(page for page in PAGES if page.name == name)

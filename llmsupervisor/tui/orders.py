"""Orders to the daemon, each in a thread of its own: the screen never waits for one."""

from __future__ import annotations

import os
import pwd
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.base.text import printable
from llmsupervisor.cli.views import Line, Span
from llmsupervisor.link.client import Client, connect
from llmsupervisor.tui.feed import FindSocket

PATIENCE = 60.0
"""Seconds that a reload may take: it may wait for another one, and asks binaries that changed."""


class Orders:
    def __init__(self, find_socket: FindSocket) -> None:
        self._find_socket = find_socket
        self._answers: queue.SimpleQueue[Line] = queue.SimpleQueue()

    def send(self, verb: str, service: str) -> None:
        def order(client: Client) -> str:
            client.call(verb, service=service, by=_user(), wait=False)
            return "under way"

        self._start(f"{verb} {service}", order)

    def lend(self, uuid: str, name: str, seconds: float | None) -> None:
        """None: until it is taken back."""

        def order(client: Client) -> str:
            client.call("lend", gpu=uuid, by=_user(), for_s=seconds, wait=False)
            return "lent; what sits there is being stopped"

        self._start(f"lend {name}", order)

    def take(self, uuid: str, name: str) -> None:
        def order(client: Client) -> str:
            said = client.call("take", gpu=uuid, by=_user())
            ended = [what for what in ("lent", "quarantine") if said[what]]
            return "in use again" if ended else "was neither lent nor in quarantine"

        self._start(f"take {name}", order)

    def reload(self) -> None:
        self._start("reload", lambda client: _told(client.call("reload", timeout=PATIENCE)))

    def fix(self, ids: Sequence[str], base: str) -> None:
        args = {"ids": list(ids), "sha256": base, "dry_run": False, "by": _user()}
        self._start(f"fix {' '.join(ids)}", lambda client: _told(client.call("fix", timeout=PATIENCE, **args)))

    def answer(self) -> Line | None:
        """The next answer that came, if any."""
        try:
            return self._answers.get_nowait()
        except queue.Empty:
            return None

    def _start(self, what: str, order: Callable[[Client], str]) -> None:
        threading.Thread(target=self._run, args=(what, order), name=what, daemon=True).start()

    def _run(self, what: str, order: Callable[[Client], str]) -> None:
        try:
            with connect(self._find_socket()) as client:
                said = order(client)
        except LlmsupervisorError as error:
            self._answers.put([Span(printable(f"{what}: {error}"), "bad")])
        else:
            self._answers.put([Span(printable(f"{what}: {said}"), "good")])


def _told(answer: dict[str, Any]) -> str:
    if answer.get("error"):
        return f"refused: {str(answer['error']).splitlines()[0]}"
    changes = ", ".join(f"{change['service']} {change['action']}" for change in answer.get("changes") or [])
    return f"generation {answer.get('generation')}: {changes or 'no service is touched'}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"

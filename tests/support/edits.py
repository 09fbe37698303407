"""Two services, one of which is edited."""

from __future__ import annotations

import re
from typing import Any

from llmsupervisor.base.ids import sha256
from support.daemon import Json
from support.faults import Box
from support.wait import wait_until

SEEN = 5.0
"""Seconds within which an edit is read and applied, or refused."""


class Two(Box):
    """`chat` is what the tests edit, `other` what must never notice."""

    def spec(self, chat: Json | None = None, /, **settings: Any) -> dict[str, Json]:
        return {"chat": chat or self.fake(**settings), "other": self.fake()}

    def write(self, **settings: Any) -> None:
        self.daemon.write(self.spec(**settings))

    def two_up(self, **settings: Any) -> Two:
        self.write(**settings)
        self.daemon.up()
        self.pids = {name: self.ready(name)["pid"] for name in ("chat", "other")}
        return self

    @property
    def sha(self) -> str:
        return str(self.daemon.status()["daemon"]["spec"]["sha256"])

    @property
    def error(self) -> str:
        return self.daemon.status()["daemon"]["spec"]["error"] or ""

    def applied(self, timeout: float = SEEN) -> None:
        """The text that now lies on the disk is the one that runs."""
        wanted = sha256(self.daemon.spec_path.read_text())
        wait_until(lambda: self.sha == wanted, timeout, lambda: f"the text to be applied; error: {self.error}")

    def refused(self, words: str = "", timeout: float = SEEN) -> str:
        wait_until(lambda: re.search(words, self.error) and self.error, timeout, lambda: f"{words!r} in {self.error!r}")
        return self.error

    def unchanged(self, *names: str) -> None:
        """Neither stopped nor started anew, nor about to be."""
        for name in names or ("chat", "other"):
            status = self.daemon.service(name)
            assert (status["state"], status["pid"]) == ("READY", self.pids[name]), status
            self.once(1, name)

    def restarted(self, words: str, starts: int = 2) -> Json:
        """`chat` is READY, in its `starts`th start, with `words` on its command line."""
        self.wait_starts(starts)
        status = self.ready()
        assert words in " ".join(self.starts()[-1].argv)
        self.once(starts)
        return status

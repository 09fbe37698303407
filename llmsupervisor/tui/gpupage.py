"""The page of the GPUs and of the box around them."""

from __future__ import annotations

from typing import Any

from llmsupervisor.cli.views import Line, Span, text_of
from llmsupervisor.tui import gpuview, trend
from llmsupervisor.tui.textpage import TextPage


class GpuPage(TextPage):
    NAME = "gpus"
    HINTS = ("up/down scroll", "y copy", "i meaning")

    def lines(self, room: int) -> list[Line]:
        status = self.picture.status
        if status is None:
            return [[Span("no picture yet", "dim")]]
        uuids = [gpu["uuid"] for gpu in status["gpus"] or ()]
        said = self._feeds.card_trends(uuids) if uuids else None
        return gpuview.page(
            status, self.services, room, lambda uuid: trend.card_lines(said, uuid, room, self._paint.ascii)
        )

    @property
    def selected(self) -> str | None:
        return None

    def copied(self) -> tuple[str, Any]:
        status = self.picture.status
        return "\n".join(map(text_of, self.lines(120))), None if status is None else status["gpus"]

"""The table of services."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual.widgets import DataTable

from llmsupervisor.base.text import cut
from llmsupervisor.cli import servicetable
from llmsupervisor.cli.servicetable import COLUMNS
from llmsupervisor.cli.views import Span, kv_usage, sign, total
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.sorting import By

if TYPE_CHECKING:
    from llmsupervisor.link.services import Service


SORTS = (
    By("spec", "", "first of the file", "last of the file"),
    By("state", "STATE", "worst", "best"),
    By("KV", "KV"),
    By("requests", "RUN/WAIT/Q"),
    By("tok/s", "TOK/S"),
    By("restarts", "RESTARTS"),
)
_ROLES = ("dim", "good", "busy", "warn", "bad")
"""Of states, the worst last."""


def figure(service: Service, sort: str) -> float | None:
    match sort:
        case "state":
            return _ROLES.index(sign(service["state"]).role)
        case "KV":
            return kv_usage(service)
        case "requests":
            known = [value for name in servicetable.UNDER_WAY if (value := total(service, name)) is not None]
            return sum(known) if known else None
        case "tok/s":
            return servicetable.together(service, "tokens_per_s")
        case _:
            return service["restarts"]


class ServiceTable(DataTable[Text]):
    """Columns follow the width; only cells that changed are written."""

    def __init__(self, paint: Paint) -> None:
        super().__init__(id="services", cursor_type="row")
        self._paint = paint
        self._shape: object = None
        self._shown: dict[tuple[str, int], Span] = {}

    @property
    def selected(self) -> str | None:
        """The name of the service under the cursor."""
        if not self.row_count:
            return None
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value

    def show(self, services: Sequence[Service], now: float, room: int, sorted_by: str = "") -> None:
        rows = {service["name"]: servicetable.cells(service, now) for service in services}
        columns = servicetable.fit([[cell.text for cell in row] for row in rows.values()], max(1, room - 2))
        shape = (columns, list(rows), sorted_by)
        if shape != self._shape:
            self._rebuild(columns, rows, sorted_by)
            self._shape = shape
            return
        for name, row in rows.items():
            for index, cells in columns:
                span = Span(cut(row[index].text, cells), row[index].role)
                if self._shown[name, index] != span:
                    self._shown[name, index] = span
                    self.update_cell(name, COLUMNS[index].title, self._paint.span(span, COLUMNS[index].right))

    def _rebuild(self, columns: list[tuple[int, int]], rows: dict[str, list[Span]], sorted_by: str) -> None:
        selected = self.selected
        self.clear(columns=True)
        for index, cells in columns:
            title = Span(COLUMNS[index].title, "cursor" if COLUMNS[index].title == sorted_by else "")
            self.add_column(self._paint.span(title, COLUMNS[index].right), width=cells, key=title.text)
        self._shown = {}
        for name, row in rows.items():
            texts = []
            for index, cells in columns:
                span = Span(cut(row[index].text, cells), row[index].role)
                self._shown[name, index] = span
                texts.append(self._paint.span(span, COLUMNS[index].right))
            self.add_row(*texts, key=name)
        if selected in rows:
            self.move_cursor(row=list(rows).index(selected), animate=False)

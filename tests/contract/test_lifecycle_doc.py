"""`docs/lifecycle.md` says what the table does. Written anew with `LLMSUPERVISOR_WRITE=1`."""

from __future__ import annotations

import os
from pathlib import Path

from model.explorer import explore

from llmsupervisor.service.lifecycle import TABLE, Rule
from llmsupervisor.service.states import State

PAGE = Path(__file__).resolve().parents[2] / "docs" / "lifecycle.md"
BEGIN, END = "<!-- generated: table -->", "<!-- end of generated -->"


def table() -> str:
    """Where each cell leads, as the walk of the model saw it."""
    seen = explore().cells
    events = list(dict.fromkeys(event for _, event in TABLE))
    rows = ["| event | " + " | ".join(State) + " |", "|---" * (len(State) + 1) + "|"]
    for event in events:
        cells = []
        for state in State:
            rule = TABLE[state, event]
            found = [s.value for s in State if s in seen.get((state, event), ()) and s is not state]
            stays = ["·"] if state in seen.get((state, event), ()) else []
            cells.append(rule.value if isinstance(rule, Rule) else " ".join(found + stays))
        rows.append(f"| {event.__name__} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def test_the_page_shows_the_table_as_it_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    fresh = f"{head}{BEGIN}\n{table()}\n{END}{tail}"
    if os.environ.get("LLMSUPERVISOR_WRITE"):
        PAGE.write_text(fresh, encoding="utf-8")
    assert text == fresh, "run this test with LLMSUPERVISOR_WRITE=1 and look at the difference"


def test_the_page_names_every_state() -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [state for state in State if f"| {state} |" not in text.partition(BEGIN)[0]]
    assert not missing

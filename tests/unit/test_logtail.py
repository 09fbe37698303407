"""What a run said first, across a rotation."""

from __future__ import annotations

from pathlib import Path

from llmsupervisor.host.logtail import Mark, end, head


def test_the_beginning_of_a_run_is_found_while_its_file_is_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert head(log, Mark(), 100) == ""
    log.write_text("of the run before\n")
    mark = end(log)
    with log.open("a") as file:
        file.write("loading\nworking\n")
    assert head(log, mark, 7) == "loading" and head(log, Mark(), 2) == "of"
    log.rename(tmp_path / "log.1")
    log.write_text("later\n")
    assert head(log, mark, 100) == "loading\nworking\n"
    (tmp_path / "log.1").unlink()
    assert head(log, mark, 100) == ""

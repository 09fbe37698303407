from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from llmsupervisor.base.layout import Layout, default_layout

HOME = {"HOME": "/home/me"}


@pytest.mark.parametrize(
    ("environ", "given", "state", "run"),
    [
        (HOME, None, "/home/me/.local/state/llmsupervisor", "/home/me/.local/state/llmsupervisor/run"),
        ({}, None, "/.local/state/llmsupervisor", "/.local/state/llmsupervisor/run"),
        (HOME | {"XDG_STATE_HOME": "/xdg"}, None, "/xdg/llmsupervisor", "/xdg/llmsupervisor/run"),
        (HOME | {"STATE_DIRECTORY": "/var/lib/l:/var/lib/m"}, None, "/var/lib/l", "/var/lib/l/run"),
        (HOME | {"STATE_DIRECTORY": "/var/lib/l", "RUNTIME_DIRECTORY": "/run/l:/run/m"}, None, "/var/lib/l", "/run/l"),
        (
            HOME | {"LLMSUPERVISOR_STATE_DIR": "/s", "STATE_DIRECTORY": "/x", "RUNTIME_DIRECTORY": "/r"},
            None,
            "/s",
            "/s/run",
        ),
        (HOME | {"LLMSUPERVISOR_STATE_DIR": "/s"}, "/given", "/given", "/given/run"),
    ],
)
def test_where_things_lie(environ: dict[str, str], given: str | None, state: str, run: str) -> None:
    layout = default_layout(environ, given)
    assert (str(layout.state), str(layout.run)) == (state, run)


def test_the_names_of_the_contract() -> None:
    layout = Layout(PurePosixPath("/run/l"), PurePosixPath("/var/lib/l"))
    folder = layout.service("chat")
    assert [str(p) for p in (layout.daemon_lock, layout.control)] == ["/run/l/daemon.lock", "/run/l/control.sock"]
    assert [str(p) for p in (folder.lock, folder.launch, folder.run, folder.exit, folder.exits, folder.secrets)] == [
        f"/run/l/services/chat/{name}"
        for name in ("lock", "launch.json", "run.json", "exit.json", "exits.jsonl", "secrets")
    ]
    names = (layout.log("chat"), layout.desired, layout.last_good, layout.events, layout.binaries, layout.crashes)
    names += (layout.requests, layout.series)
    assert [str(p.relative_to(layout.state)) for p in names] == [
        "services/chat/log",
        "desired.json",
        "last_good.toml",
        "events.jsonl",
        "binaries.json",
        "crashes",
        "requests.db",
        "series.db",
    ]

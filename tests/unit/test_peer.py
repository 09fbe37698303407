"""Who may call over the control socket."""

from __future__ import annotations

import grp
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmsupervisor.daemon.control import ADMIN_GROUP, Control, Denied, Peer

OTHER = max(1, os.geteuid()) + 1
OURS, ADMIN, FOREIGN = (os.getegid() + n for n in (0, 1, 2))


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> SimpleNamespace:
        assert name == ADMIN_GROUP
        return SimpleNamespace(gr_gid=ADMIN)

    monkeypatch.setattr(grp, "getgrnam", found)


@pytest.mark.parametrize(
    ("uid", "gids", "reads", "writes"),
    [
        (OTHER, {FOREIGN}, False, False),
        (OTHER, set(), False, False),
        (OTHER, {FOREIGN, OURS}, True, False),
        (OTHER, {FOREIGN, ADMIN}, True, True),
        (0, {FOREIGN}, True, True),
        (os.geteuid(), {FOREIGN}, True, True),
    ],
)
def test_who_may(uid: int, gids: set[int], reads: bool, writes: bool) -> None:
    peer = Peer(uid, frozenset(gids))
    assert (peer.may_read, peer.may_write) == (reads, writes)


def test_without_the_group_nobody_is_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(grp, "getgrnam", none)
    assert not Peer(OTHER, frozenset({ADMIN})).may_write


def test_a_reader_is_refused_what_changes_something(tmp_path: Path) -> None:
    control = Control(tmp_path / "s", {}, {}, frozenset({"status"}))
    reader = Peer(OTHER, frozenset({OURS}))
    control._allow(reader, "status")
    with pytest.raises(Denied, match=f"user {OTHER} may not stop: .*root and the group {ADMIN_GROUP} may; members"):
        control._allow(reader, "stop")
    with pytest.raises(Denied, match="may not status"):
        control._allow(Peer(OTHER, frozenset({FOREIGN})), "status")
    control._allow(Peer(OTHER, frozenset({ADMIN})), "stop")

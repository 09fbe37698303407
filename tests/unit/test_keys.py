"""The keys of clients: read from files, the environment and systemd's credentials, told as hashes."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from llmsupervisor.daemon.keys import NO_KEY, Keys, read_keys, told
from llmsupervisor.spec.model import ClientKey

ALICE = "alice-0123456789"


def hashed(value: str) -> str:
    return sha256(value.encode()).hexdigest()


def one(key: ClientKey, environ: dict[str, str] | None = None) -> tuple[str, tuple[str, ...]]:
    found = read_keys({"alice": key}, environ or {})
    return found.known[0]["sha256"], found.faults


@pytest.mark.parametrize("content", [ALICE, f"{ALICE}\n", f"  {ALICE}\t\r\n\n"])
def test_a_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "alice").write_text(content)
    assert one(ClientKey(file=str(tmp_path / "alice"))) == (hashed(ALICE), ())


def test_the_environment_and_credentials(tmp_path: Path) -> None:
    assert one(ClientKey(env="ALICE"), {"ALICE": ALICE}) == (hashed(ALICE), ())
    (tmp_path / "alice").write_text(ALICE)
    credential = ClientKey(file="/etc/box/$CREDENTIALS_DIRECTORY/alice")
    assert one(credential, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == (hashed(ALICE), ())
    assert one(credential)[0] == NO_KEY


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "is missing, empty or cannot be read"),
        ("", "is missing, empty or cannot be read"),
        (" \n", "is missing, empty or cannot be read"),
        ("short", "holds a key of 5 characters; 16 or more are needed"),
        (f"{ALICE}\n{ALICE}", "holds something that no header can carry: one line of ASCII without spaces is needed"),
        (f"Bearer {ALICE}", "holds something that no header can carry"),
        (f"é{ALICE}", "holds something that no header can carry"),
    ],
)
def test_what_is_no_key(tmp_path: Path, content: str | None, fault: str) -> None:
    path = tmp_path / "alice"
    if content is not None:
        path.write_text(content)
    digest, faults = one(ClientKey(file=str(path)))
    assert digest == NO_KEY and len(faults) == 1 and faults[0].startswith(f"alice: {path} {fault}")
    assert ALICE not in faults[0]


def test_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "bob").write_text(ALICE)
    keys = {
        "alice": ClientKey(env="A", models=("chat",), share=2.0),
        "gone": ClientKey(file=str(tmp_path / "gone")),
        "bob": ClientKey(file=str(tmp_path / "bob")),
    }
    found = read_keys(keys, {"A": ALICE})
    assert found.known == (
        {"name": "alice", "sha256": hashed(ALICE), "models": ["chat"], "share": 2.0},
        {"name": "gone", "sha256": NO_KEY, "models": None, "share": 1.0},
        {"name": "bob", "sha256": NO_KEY, "models": None, "share": 1.0},
    )
    assert told(found) == (
        f"gone: {tmp_path}/gone is missing, empty or cannot be read; bob: {tmp_path}/bob holds the same key as alice; "
        "requests with such a key are refused until it can be read"
    )
    assert told(Keys()) == ""

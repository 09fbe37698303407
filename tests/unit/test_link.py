from __future__ import annotations

import os
import socket
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.wait import PATIENCE

from llmsupervisor.base.errors import Exit, LlmsupervisorError, Owned, SpecError, Unreachable, UsageError
from llmsupervisor.link import client as client_module
from llmsupervisor.link.client import connect, find_socket
from llmsupervisor.link.frames import LIMIT, FrameError, Splitter, decode, encode

# --- frames -------------------------------------------------------------------------------------------------------


def test_a_message_survives_any_split_of_the_stream() -> None:
    sent = [{"text": "a\nb\u2028\x1b[2J ü 🎉", "n": i} for i in range(3)]
    data = b"".join(encode(m) for m in sent)
    for size in (1, 2, 7, len(data)):
        splitter = Splitter()
        got = [decode(x) for i in range(0, len(data), size) for x in splitter.feed(data[i : i + size])]
        assert got == sent


def test_what_json_lacks_is_sent_as_null() -> None:
    assert decode(encode({"a": float("nan"), "b": [float("inf"), 1.5], "c": (2,)})) == {
        "a": None,
        "b": [None, 1.5],
        "c": [2],
    }


def test_the_limit_of_a_line_counts_its_newline_and_holds_at_both_ends() -> None:
    room = LIMIT - len(encode({"t": ""}))
    line = encode({"t": "x" * room})
    assert len(line) == LIMIT
    assert [decode(x) for x in Splitter().feed(line)] == [{"t": "x" * room}]
    with pytest.raises(FrameError):
        encode({"t": "x" * (room + 1)})
    with pytest.raises(FrameError):
        list(Splitter().feed(b"x" * LIMIT))
    with pytest.raises(FrameError):
        list(Splitter().feed(b"x" * LIMIT + b"\n"))


@pytest.mark.parametrize("line", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'"x"'])
def test_what_is_no_object_is_refused(line: bytes) -> None:
    with pytest.raises(FrameError):
        decode(line)


# --- client -------------------------------------------------------------------------------------------------------

Serve = Callable[[Callable[[dict[str, Any]], list[dict[str, Any] | bytes] | None]], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Answers each request with what `script` returns; None: hang up."""
    listeners: list[socket.socket] = []

    def start(script: Callable[[dict[str, Any]], list[dict[str, Any] | bytes] | None]) -> str:
        path = str(tmp_path / "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listeners.append(listener)

        def one() -> None:
            try:
                peer, _ = listener.accept()
            except OSError:  # nobody called
                return
            with peer, peer.makefile("rb") as lines:
                for line in lines:
                    answers = script(decode(line))
                    if answers is None:
                        return
                    for answer in answers:
                        peer.sendall(answer if isinstance(answer, bytes) else encode(answer))

        threading.Thread(target=one, daemon=True).start()
        return path

    yield start
    for listener in listeners:
        listener.close()


def test_calls_and_streams_share_a_connection(serve: Serve) -> None:
    asked: list[dict[str, Any]] = []

    def script(request: dict[str, Any]) -> list[dict[str, Any] | bytes]:
        asked.append(request)
        items: list[dict[str, Any] | bytes] = [{"id": request["id"], "item": n} for n in range(3)]
        return [*items, {"id": request["id"], "ok": True, "result": request["call"]}]

    with connect(serve(script)) as client:
        assert list(client.stream("logs", service="chat", lines=5)) == [0, 1, 2]
        assert client.call("ping") == "ping"
        assert client.peer_pid == os.getpid()
    assert asked[0] == {"v": 1, "id": 1, "call": "logs", "args": {"service": "chat", "lines": 5}}


@pytest.mark.parametrize(
    ("code", "kind", "exit"),
    [
        (1, LlmsupervisorError, Exit.FAILURE),
        (2, UsageError, Exit.USAGE),
        (3, SpecError, Exit.SPEC_INVALID),
        (4, LlmsupervisorError, Exit.IMPOSSIBLE),
        (6, Owned, Exit.OWNED),
        (77, LlmsupervisorError, Exit.FAILURE),
    ],
)
def test_errors_come_back_as_their_types(serve: Serve, code: int, kind: type[LlmsupervisorError], exit: Exit) -> None:
    path = serve(
        lambda r: [{"id": r["id"], "ok": False, "error": {"code": code, "text": "a.toml:3: one\na.toml:9: two"}}]
    )
    with connect(path) as client, pytest.raises(kind) as caught:
        client.call("reload")
    assert caught.value.code == exit
    assert str(caught.value) == "a.toml:3: one\na.toml:9: two"


def test_an_error_without_id_or_text_ends_the_call(serve: Serve) -> None:
    with connect(serve(lambda r: [{"id": None, "ok": False}])) as client, pytest.raises(LlmsupervisorError):
        client.call("ping", timeout=PATIENCE)


def test_silence_hangups_and_noise_have_their_sentences(serve: Serve, tmp_path: Path) -> None:
    with (
        connect(serve(lambda r: [])) as client,
        pytest.raises(Unreachable, match=r"did not answer 'status' within 0\.05 s"),
    ):
        client.call("status", timeout=0.05)
    (tmp_path / "s").unlink()
    with connect(serve(lambda r: None)) as client, pytest.raises(Unreachable, match="closed the connection"):
        client.call("status")
    (tmp_path / "s").unlink()
    with (
        connect(serve(lambda r: [b"HTTP/1.1 400\n"])) as client,
        pytest.raises(LlmsupervisorError, match="does not speak"),
    ):
        client.call("status")


def test_close_from_another_thread_ends_a_read(serve: Serve) -> None:
    client = connect(serve(lambda r: []))
    ended: list[BaseException] = []

    def read() -> None:
        try:
            client.call("watch", timeout=None)
        except LlmsupervisorError as error:
            ended.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    client.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert isinstance(ended[0], Unreachable)


def test_a_call_on_a_closed_connection_is_unreachable(serve: Serve) -> None:
    client = connect(serve(lambda r: []))
    client.close()
    with pytest.raises(Unreachable, match="broke during 'watch'"):
        client.call("watch")


def test_each_way_of_not_reaching_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"no socket at .*; start one: llmsupervisor up"):
        connect(str(tmp_path / "none.sock"))
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left.sock"))
    left.close()
    with pytest.raises(Unreachable, match=r"left\.sock is gone.*take it over: llmsupervisor up"):
        connect(str(tmp_path / "left.sock"))
    with pytest.raises(UsageError, match=r"has 150 bytes.*may have 107.*--state-dir"):
        connect("/" + "x" * 149)


def test_the_socket_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid, home = os.getuid(), tmp_path / "home"
    own = home / ".local/state/llmsupervisor/run/control.sock"
    system = tmp_path / "system.sock"
    monkeypatch.setattr(client_module, "SYSTEM_SOCKET", str(system))
    environ, none = {"HOME": str(home)}, Namespace()
    with pytest.raises(Unreachable, match=rf"{own} or {system}; start one: llmsupervisor up"):
        find_socket(none, environ, uid)
    held = []
    for path in (system, own):
        path.parent.mkdir(parents=True, exist_ok=True)
        held.append(socket.socket(socket.AF_UNIX))
        monkeypatch.chdir(path.parent)
        held[-1].bind(path.name)
        expected = str(path)
        assert find_socket(none, environ, uid) == expected
    assert find_socket(none, environ, uid + 1) == str(system), "a daemon of another user in our HOME is not ours"
    with pytest.raises(Unreachable, match=r"other/run/control\.sock"):
        find_socket(none, environ | {"LLMSUPERVISOR_STATE_DIR": str(tmp_path / "other")}, uid)
    assert find_socket(none, environ | {"LLMSUPERVISOR_SOCKET": "/e"}, uid) == "/e"
    assert find_socket(Namespace(socket="/s"), environ | {"LLMSUPERVISOR_SOCKET": "/e"}, uid) == "/s"
    for one in held:
        one.close()

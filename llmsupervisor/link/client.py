"""The small synchronous client of the control socket: standard library only, nothing slow to import."""

from __future__ import annotations

import os
import socket
import stat
import struct
from argparse import Namespace
from collections.abc import Generator, Mapping
from typing import Any

from llmsupervisor.base.errors import Exit, LlmsupervisorError, Owned, Problem, SpecError, Unreachable, UsageError
from llmsupervisor.base.layout import default_layout
from llmsupervisor.link.frames import FrameError, Splitter, decode, encode

SYSTEM_SOCKET = "/run/llmsupervisor/control.sock"
PATH_LIMIT = 107
"""Bytes of a Unix socket's path (`sun_path` without its NUL)."""
VERSION = 1


def find_socket(args: Namespace, environ: Mapping[str, str], uid: int) -> str:
    """`--socket`, `$LLMSUPERVISOR_SOCKET`, else the daemon of this user, else the system's.

    A socket of another user in our own state folder (`sudo` that kept HOME) is not ours. Unreachable where none exists.
    """
    given = getattr(args, "socket", None) or environ.get("LLMSUPERVISOR_SOCKET")
    if given:
        return str(given)
    state_dir = getattr(args, "state_dir", None)
    own = str(default_layout(environ, state_dir).control)
    tried = [own]
    if state_dir or environ.get("LLMSUPERVISOR_STATE_DIR"):
        if _exists(own):
            return own
    else:
        if _exists(own, uid):
            return own
        if _exists(SYSTEM_SOCKET):
            return SYSTEM_SOCKET
        tried.append(SYSTEM_SOCKET)
    raise Unreachable(f"no daemon is running: there is no socket at {' or '.join(tried)}; start one: llmsupervisor up")


def _exists(path: str, uid: int | None = None) -> bool:
    try:
        found = os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and (uid is None or found.st_uid == uid)


def connect(path: str, timeout: float = 5.0) -> Client:
    """Unreachable, with the reason and the next step, where nobody answers there."""
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise UsageError(
            f"the socket path {path} has {len(os.fsencode(path))} bytes; a Unix socket may have {PATH_LIMIT}: "
            "choose a shorter folder with --state-dir or $LLMSUPERVISOR_STATE_DIR"
        )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise Unreachable(_why(path, error)) from None
    return Client(connection, path)


def _why(path: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"no daemon is running: there is no socket at {path}; start one: llmsupervisor up"
    if isinstance(error, ConnectionRefusedError):
        return (
            f"the daemon of {path} is gone; what it started may still run; "
            "take it over: llmsupervisor up, or stop it: llmsupervisor down"
        )
    if isinstance(error, PermissionError):
        return f"no permission to connect to {path}; its group may: add this user to the group, or use sudo"
    if isinstance(error, TimeoutError | BlockingIOError):
        return f"the daemon of {path} does not accept connections: it hangs or is flooded"
    return f"cannot connect to {path}: {error.strerror or error}"


class Client:
    """One connection, one call at a time. A stream that is left before its end takes the connection with it: close it."""

    def __init__(self, connection: socket.socket, path: str) -> None:
        self.path = path
        self._socket = connection
        self._lines = Splitter()
        self._ready: list[bytes] = []
        self._last = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """May be called from another thread: a read under way then ends with Unreachable."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    @property
    def peer_pid(self) -> int:
        """The daemon's pid, as the kernel says."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid: int = struct.unpack("3i", raw)[0]
        return pid

    def call(self, name: str, /, *, timeout: float | None = 10.0, **args: Any) -> Any:
        """The result. Errors of the daemon come as the exception of their exit code; `timeout` in seconds, None = no end."""
        stream = self.stream(name, timeout=timeout, **args)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return end.value

    def stream(self, name: str, /, *, timeout: float | None = 10.0, **args: Any) -> Generator[Any, None, Any]:
        """The items; the generator's return value is the result. `timeout`: longest silence in seconds, None = no end."""
        self._last += 1
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(encode({"v": VERSION, "id": self._last, "call": name, "args": args}))
            while True:
                message = decode(self._line(name))
                if "item" in message:
                    yield message["item"]
                elif message.get("ok") is True:
                    return message.get("result")
                else:
                    raise _error(message.get("error"))
        except TimeoutError:
            raise Unreachable(
                f"the daemon of {self.path} did not answer {name!r} within {timeout:g} s; what runs goes on"
            ) from None
        except OSError as error:
            raise Unreachable(
                f"the connection to {self.path} broke during {name!r}: {error.strerror or error}"
            ) from None
        except FrameError as error:
            raise LlmsupervisorError(f"{self.path} does not speak this protocol: {error}") from None

    def _line(self, name: str) -> bytes:
        while not self._ready:
            data = self._socket.recv(65536)
            if not data:
                raise Unreachable(f"the daemon of {self.path} closed the connection during {name!r}; what runs goes on")
            self._ready.extend(self._lines.feed(data))
            self._ready.reverse()
        return self._ready.pop()


def _error(error: Any) -> LlmsupervisorError:
    text = str(error.get("text", "")) if isinstance(error, dict) else ""
    code = error.get("code") if isinstance(error, dict) else None
    text = text or "the daemon refused without a reason"
    if code == Exit.SPEC_INVALID:
        return SpecError([Problem("", line) for line in text.splitlines()])
    kinds: dict[Any, type[LlmsupervisorError]] = {
        Exit.USAGE: UsageError,
        Exit.UNREACHABLE: Unreachable,
        Exit.OWNED: Owned,
    }
    problem = kinds.get(code, LlmsupervisorError)(text)
    if code == Exit.IMPOSSIBLE:
        problem.code = Exit.IMPOSSIBLE
    return problem

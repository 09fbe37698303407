"""Files of this box: the spec and the definitions as trusted input, the facts that a plan needs, and safe writing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.resources
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llmsupervisor.base.errors import LlmsupervisorError, Problem, SpecError, UsageError
from llmsupervisor.base.ids import hash8
from llmsupervisor.host.binaries import Cache, identity, look_at
from llmsupervisor.host.headers import Headers
from llmsupervisor.host.machine import meminfo, memory_limit
from llmsupervisor.plan.facts import Facts, File, Needs
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.load import parse
from llmsupervisor.spec.edit import Conflict, edited

SPEC_NAME = "llmsupervisor.toml"
SYSTEM_SPEC = Path("/etc/llmsupervisor") / SPEC_NAME
TEXT_LIMIT = 1024 * 1024
SECRET_LIMIT = 64 * 1024
ALLOWED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "SSL_CERT_FILE")
"""The part of our environment that a runtime gets."""


class Unreadable(LlmsupervisorError):
    """A file that cannot be, or must not be, read."""


class NoSpec(UsageError):
    """No spec was named and none lies where one is looked for."""


# --- reading ------------------------------------------------------------------------------------------------------


def _open_regular(path: str | os.PathLike[str]) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file; never waits for a FIFO's writer and never opens a device."""
    st = os.stat(path)
    if not stat.S_ISREG(st.st_mode):
        raise Unreadable(f"{os.fspath(path)} is {_kind(st)}, not a file")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode):
        os.close(fd)
        raise Unreadable(f"{os.fspath(path)} is {_kind(st)}, not a file")
    return fd, st


def _kind(st: os.stat_result) -> str:
    for test, word in ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket")):
        if test(st.st_mode):
            return word
    return "a device"


def _read(path: str | os.PathLike[str], limit: int) -> tuple[bytes, os.stat_result]:
    """OSError, ValueError (a name with a NUL) or Unreadable."""
    fd, st = _open_regular(path)
    with open(fd, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Unreadable(f"{os.fspath(path)} is larger than {limit // 1024} KiB")
    return data, st


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _untrusted(st: os.stat_result) -> str:
    """Why a file that decides which commands run must not be believed; empty where it may."""
    uid = os.geteuid()
    mode = stat.S_IMODE(st.st_mode)
    if st.st_uid not in (0, uid):
        return f"it belongs to uid {st.st_uid}, neither to root nor to uid {uid}, who runs its commands; chown it"
    if mode & stat.S_IWOTH:
        return "everybody may write it, and it says which commands run; chmod o-w"
    if mode & stat.S_IWGRP and st.st_gid not in (0, os.getegid()):
        return f"group {st.st_gid} may write it, and it says which commands run; chmod g-w"
    return ""


def _trusted_text(path: Path) -> tuple[str, str]:
    """(text, identity) of a TOML file that decides which commands run. SpecError names what is wrong."""

    def wrong(text: str, line: int = 0) -> SpecError:
        return SpecError([Problem("", text, file=str(path), line=line)])

    try:
        data, st = _read(path, TEXT_LIMIT)
        folder = os.stat(path.parent)
    except (OSError, ValueError, Unreadable) as error:
        raise wrong(f"cannot be read: {_reason(error)}") from error
    if why := _untrusted(st):
        raise wrong(f"refused: {why}")
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        raise wrong(
            f"refused: everybody may replace it, because {path.parent} is writable for all; chmod o-w {path.parent}"
        )
    try:
        return data.decode(), identity(st)
    except UnicodeDecodeError as error:
        raise wrong("is not UTF-8 text", data[: error.start].count(b"\n") + 1) from error


def read_spec(path: Path) -> tuple[str, str]:
    """(text, identity: `dev:ino:size:mtime_ns`). SpecError where the file is unreadable or not to be trusted."""
    return _trusted_text(path)


def find_spec(given: str | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """`-c`, `$LLMSUPERVISOR_CONFIG`, `./llmsupervisor.toml` (root: only where root owns it), `/etc/llmsupervisor/`."""
    for named in (given, environ.get("LLMSUPERVISOR_CONFIG")):
        if named:
            return cwd / named
    here = cwd / SPEC_NAME
    passed_over = ""
    try:
        owner = os.stat(here).st_uid
    except OSError:
        owner = None
    if owner is not None:
        if os.geteuid() != 0 or owner == 0:
            return here
        passed_over = f" ({here} belongs to uid {owner}: root takes it only with -c)"
    if SYSTEM_SPEC.exists():
        return SYSTEM_SPEC
    raise NoSpec(
        f"no spec: neither {here} nor {SYSTEM_SPEC} is there{passed_over}; name one with -c, or write one with `llmsupervisor init`"
    )


def built_in_folder() -> Path:
    """The definitions inside the wheel; in a checkout `runtimes/` beside the package."""
    package = Path(str(importlib.resources.files("llmsupervisor")))
    inside = package / "_runtimes"
    return inside if inside.is_dir() else package.parent / "runtimes"


def read_definitions(folders: Sequence[Path] = ()) -> tuple[dict[str, Definition], list[Problem]]:
    """Built-in definitions, then `*.toml` of each folder (`runtimes/` beside the spec): the same name overrides.

    The source of a built-in one is relative (`runtimes/vllm.toml`), of a user's absolute. A user's file that is wrong
    is a problem of the spec; the built-in definition of its name then stays.
    """
    definitions: dict[str, Definition] = {}
    problems: list[Problem] = []
    for path in sorted(built_in_folder().glob("*.toml")):
        definition = parse(path.read_text(encoding="utf-8"), f"runtimes/{path.name}")
        definitions[definition.name] = definition
    for folder in folders:
        here: dict[str, Definition] = {}
        for path in sorted(folder.absolute().glob("*.toml")):
            try:
                definition = parse(_trusted_text(path)[0], str(path))
            except SpecError as error:
                problems += error.problems
                continue
            if other := here.get(definition.name):
                problems.append(
                    Problem("name", f"{definition.name!r} is also the name of {other.source}", file=str(path))
                )
                continue
            here[definition.name] = definition
        definitions |= here
    return definitions, problems


def secret_path(where: str | None, environ: Mapping[str, str]) -> str | None:
    """Of a file that may lie in `$CREDENTIALS_DIRECTORY`; None where there is no such folder."""
    _, credential, inside = (where or "").partition("$CREDENTIALS_DIRECTORY/")
    if not credential:
        return where
    folder = environ.get("CREDENTIALS_DIRECTORY")
    return f"{folder}/{inside}" if folder else None


def read_secret(ref: tuple[str, str], environ: Mapping[str, str]) -> str | None:
    """The value of ("file", path) or ("env", NAME), None where it is missing or empty. Trailing newlines are no part of it.

    A path may say `$CREDENTIALS_DIRECTORY/NAME`: a credential of our systemd unit.
    """
    kind, where = ref
    if kind == "env":
        return environ.get(where) or None
    try:
        path = secret_path(where, environ)
        return (path and _read(path, SECRET_LIMIT)[0].decode().rstrip("\r\n")) or None
    except (OSError, ValueError, Unreadable):
        return None


# --- facts --------------------------------------------------------------------------------------------------------


def look(path: str, content: bool = False) -> File:
    """What lies at `path`; `content` adds the hash of files up to 1 MiB. Never raises."""
    try:
        st = os.stat(path)
        if stat.S_ISDIR(st.st_mode):
            return File("dir", identity=identity(st), readable=os.access(path, os.R_OK | os.X_OK))
        fd, st = _open_regular(path)
        with open(fd, "rb") as file:
            data = file.read(TEXT_LIMIT + 1 if content else 1024)
    except (FileNotFoundError, NotADirectoryError) as error:
        return File("missing", error=_reason(error))
    except PermissionError as error:
        return File("other", readable=False, error=_reason(error))
    except (OSError, ValueError, Unreadable) as error:
        return File("other", error=_reason(error))
    found = File("file", size=st.st_size, identity=identity(st), head=data[:1024])
    if not content:
        return found
    if len(data) > TEXT_LIMIT:
        return File("other", size=st.st_size, error=f"larger than {TEXT_LIMIT // 1024} KiB")
    return File("file", st.st_size, found.identity, hashlib.sha256(data).hexdigest(), head=found.head)


def listening_ports(read: Callable[[str], str] = lambda p: Path(p).read_text()) -> frozenset[int]:
    """TCP ports on which a new listener on 127.0.0.1 would collide, from `/proc/net/tcp` and `tcp6`."""
    ports: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = read(table).splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            address, _, port = columns[1].partition(":")
            mapped = address.removeprefix("0000000000000000FFFF0000")
            if columns[3] == "0A" and (set(address) == {"0"} or set(mapped) == {"0"} or mapped[6:] == "7F"):
                ports.add(int(port, 16))
    return frozenset(ports)


def gather(
    needs: Needs,
    cache: Cache,
    previous: Facts,
    *,
    ask: bool = True,
    own_ports: frozenset[int] = frozenset(),
    headers: Headers | None = None,
) -> Facts:
    """The facts of this box. Never raises; may take a minute per new binary: call it in a thread.

    `previous` gives what the caller knows (GPUs, kept ports and GPUs). `ask` False (the restart path): no binary is
    run, what the cache does not hold stays unknown. `own_ports`: ports of our own living runs, which are not busy.
    """
    headers = headers or Headers()
    environ = {name: os.environ[name] for name in ALLOWED if name in os.environ}
    path = os.environ.get("PATH") or os.defpath
    return Facts(
        binaries={
            name: look_at(name, help_args, version_args, pattern, path, cache, ask)
            for name, help_args, version_args, pattern in sorted(needs.binaries)
        },
        files={
            **{name: look(name) for name in needs.files - needs.contents},
            **{name: look(name, content=True) for name in needs.contents},
        },
        secrets={
            ref: hash8(value) if (value := read_secret(ref, os.environ)) is not None else None for ref in needs.secrets
        },
        gpus=previous.gpus,
        gpu_error=previous.gpu_error,
        cpus=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_limit=memory_limit(),
        memory_free=meminfo().get("MemAvailable"),
        environ=environ,
        kept_ports=previous.kept_ports,
        kept_gpus=previous.kept_gpus,
        kept_gpu_words=previous.kept_gpu_words,
        busy_ports=listening_ports() - own_ports,
        ggufs={model: headers.read(model) for model in needs.ggufs},
        folders={path: headers.folder(path) for path in needs.folders},
        tags={tag: headers.tag(tag, environ.get("HOME")) for tag in needs.tags},
        blobs={
            tag: os.path.basename(blob)
            for tag in needs.tags
            if isinstance(blob := headers.weights(tag, environ.get("HOME")), str)
        },
        learned=previous.learned,
        digests=previous.digests,
    )


# --- writing ------------------------------------------------------------------------------------------------------


def rewrite(path: Path, base: str, text: str) -> None:
    """Another text in place of the spec with the SHA-256 `base`; mode and owner stay."""
    new = edited(read_spec(path)[0], base, text)
    if isinstance(new, Conflict):
        raise LlmsupervisorError(f"{path}: {new}")
    real = path.resolve()
    try:
        before = os.stat(real)
        if os.geteuid() not in (0, before.st_uid):
            raise PermissionError(errno.EPERM, f"belongs to user {before.st_uid}, and this is user {os.geteuid()}")
        atomic_write(real, new.encode(), before.st_mode & 0o777)
        with contextlib.suppress(PermissionError):  # a group that its owner is not in
            os.chown(real, before.st_uid, before.st_gid)
    except OSError as error:
        raise LlmsupervisorError(
            f"{path} cannot be written: {error.strerror}; its owner can make the change (llmsupervisor check --fix, or an editor)"
        ) from error


def atomic_write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Whole or not at all, and on the disk when it returns. OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

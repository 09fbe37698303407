"""Reading what must be trusted, facts of whatever lies on the disk, and safe writing."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support import process
from support.wait import Spent, wait_until

from llmsupervisor.base.errors import SpecError, UsageError
from llmsupervisor.host import binaries, files
from llmsupervisor.host.binaries import Cache
from llmsupervisor.plan.facts import Facts, Needs

SPEC = '[services.chat]\nruntime = "llama-server"\n'


def refused(path: Path) -> str:
    spent = Spent()
    with pytest.raises(SpecError) as error:
        files.read_spec(path)
    assert spent() < 1.0
    assert error.value.problems[0].file == str(path)
    return str(error.value)


def test_a_spec_is_read_with_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SPEC)
    text, identity = files.read_spec(path)
    st = path.stat()
    assert (text, identity) == (SPEC, f"{st.st_dev}:{st.st_ino}:{st.st_size}:{st.st_mtime_ns}")


def test_what_is_no_spec_is_refused_at_once(tmp_path: Path) -> None:
    fifo, loop, big, latin = (tmp_path / name for name in ("fifo", "loop", "big", "latin"))
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    with big.open("wb") as file:
        file.truncate(1024**3)
    latin.write_bytes(b"# ok\n# caf\xe9\n")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        assert "a socket" in refused(tmp_path / "sock")
    assert "a FIFO" in refused(fifo)
    assert "a directory" in refused(tmp_path)
    assert "symbolic links" in refused(loop)
    assert "larger than 1024 KiB" in refused(big)
    assert "a device" in refused(Path("/dev/zero"))
    assert "No such file" in refused(tmp_path / "missing")
    assert "not UTF-8" in refused(latin) and f"{latin}:2:" in refused(latin)


def test_an_unreadable_spec_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SPEC)
    path.chmod(0o000)
    if os.geteuid() == 0:
        pid = os.fork()
        if pid == 0:  # root reads everything: look as somebody else
            os.chmod(tmp_path, 0o711)
            try:
                os.chown(path, 65534, 65534)
                os.setegid(65534)
                os.seteuid(65534)
                files.read_spec(path)
            except SpecError as error:
                os._exit(0 if "denied" in str(error) else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    else:
        assert "denied" in refused(path)


@pytest.mark.parametrize(("mode", "words"), [(0o666, "everybody may write"), (0o646, "everybody may write")])
def test_a_spec_that_others_can_write_is_refused(tmp_path: Path, mode: int, words: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SPEC)
    path.chmod(mode)
    assert words in refused(path)


def test_a_spec_in_a_folder_where_all_can_write_is_refused_unless_sticky(tmp_path: Path) -> None:
    path = tmp_path / "d" / "s.toml"
    path.parent.mkdir()
    path.write_text(SPEC)
    path.parent.chmod(0o777)
    assert "everybody may replace it" in refused(path)
    path.parent.chmod(0o1777)
    assert files.read_spec(path)[0] == SPEC


def test_whose_file_may_be_believed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("")
    own = path.stat()

    def told(uid: int = own.st_uid, gid: int = own.st_gid, mode: int = 0o100644) -> str:
        return files._untrusted(os.stat_result((mode, *own[1:4], uid, gid, *own[6:])))

    assert told() == told(uid=0) == told(gid=0, mode=0o100664) == told(gid=os.getegid(), mode=0o100664) == ""
    assert "belongs to uid 4242" in told(uid=4242)
    assert "group 4242 may write" in told(gid=4242, mode=0o100664)
    assert told(gid=4242, mode=0o100640) == ""


def test_the_search_order_of_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "etc.toml"
    monkeypatch.setattr(files, "SYSTEM_SPEC", system)
    with pytest.raises(UsageError, match="-c"):
        files.find_spec(None, {}, tmp_path)
    system.touch()
    assert files.find_spec(None, {}, tmp_path) == system
    here = tmp_path / "llmsupervisor.toml"
    here.touch()
    assert files.find_spec(None, {}, tmp_path) == here
    assert files.find_spec(None, {"LLMSUPERVISOR_CONFIG": "/x.toml"}, tmp_path) == Path("/x.toml")
    assert files.find_spec("y.toml", {"LLMSUPERVISOR_CONFIG": "/x.toml"}, tmp_path) == tmp_path / "y.toml"


def test_root_does_not_take_somebody_elses_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llmsupervisor.toml").touch()
    monkeypatch.setattr(files, "SYSTEM_SPEC", tmp_path / "none")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if os.getuid() == 0:
        os.chown(tmp_path / "llmsupervisor.toml", 4242, 4242)
    with pytest.raises(UsageError, match="root takes it only with -c"):
        files.find_spec(None, {}, tmp_path)


def test_facts_of_files(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + b"x" * 5000)
    (tmp_path / "t.jinja").write_text("hello")
    (tmp_path / "big.jinja").write_bytes(b"x" * (1024**2 + 1))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names = {n: str(tmp_path / n) for n in ("m.gguf", "t.jinja", "big.jinja", "fifo", "loop", "gone", "m.gguf/x")}
    needs = Needs(
        files=frozenset([*names.values(), str(tmp_path), "nul\0"]),
        contents=frozenset([names["t.jinja"], names["big.jinja"]]),
    )
    found = files.gather(needs, Cache(), Facts()).files
    model = found[names["m.gguf"]]
    assert (model.kind, model.size, len(model.head), model.sha256) == ("file", 5004, 1024, None)
    assert found[names["t.jinja"]].sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert found[names["big.jinja"]].sha256 is None and "larger" in found[names["big.jinja"]].error
    assert [found[names[n]].kind for n in ("fifo", "loop", "gone", "m.gguf/x")] == [
        "other",
        "other",
        "missing",
        "missing",
    ]
    assert found[str(tmp_path)].kind == "dir"
    assert found["nul\0"].kind == "other"


def test_the_identity_of_a_replaced_file_differs(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"aaaa")
    before = files.look(str(path)).identity
    (tmp_path / "n").write_bytes(b"bbbb")
    os.replace(tmp_path / "n", path)
    assert files.look(str(path)).identity != before


def test_secrets_are_hashed_and_missing_ones_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("hunter2\n")
    (tmp_path / "empty").write_text("\n")
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setenv("A_KEY", "hunter2")
    monkeypatch.delenv("NO_KEY", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    refs = {name: ("file", str(tmp_path / name)) for name in ("key", "empty", "fifo", "gone")}
    credential = ("file", "/etc/llmsupervisor/$CREDENTIALS_DIRECTORY/key")
    needs = Needs(secrets=frozenset([*refs.values(), ("env", "A_KEY"), ("env", "NO_KEY"), credential]))
    secrets = files.gather(needs, Cache(), Facts()).secrets
    assert secrets[refs["key"]] == secrets["env", "A_KEY"] == secrets[credential] == "f52fbd32"
    assert [secrets[r] for r in (refs["empty"], refs["fifo"], refs["gone"], ("env", "NO_KEY"))] == [None] * 4
    assert files.read_secret(credential, {}) is None
    assert "hunter2" not in repr(secrets)


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_binary_is_asked_once_per_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    engine = script(
        tmp_path / "engine",
        f'echo "$1 $SECRET" >> {runs}\ncase $1 in --help) echo "-c,    --ctx-size N    size of the context";; *) echo "version: 7";; esac',
    )
    monkeypatch.setenv("PATH", f"relative:{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SECRET", "hunter2")
    needs = Needs(binaries=frozenset({("engine", ("--help",), ("--version",), r"version: (?P<v>\S+)")}))
    cache = Cache()
    unasked = files.gather(needs, cache, Facts(), ask=False)
    assert unasked.binaries["engine"].flags is None and unasked.unasked == [str(engine)]
    assert not runs.exists()
    binary = files.gather(needs, cache, Facts()).binaries["engine"]
    assert (binary.path, binary.version, binary.error) == (str(engine), "7", "")
    assert binary.flags is not None and "--ctx-size" in binary.flags
    cache = Cache.from_json(json.loads(json.dumps(cache.to_json())))
    known = files.gather(needs, cache, Facts(), ask=False)
    assert known.binaries["engine"] == binary and known.unasked == []
    files.gather(needs, cache, Facts())
    assert sorted(runs.read_text().split("\n")) == ["", "--help ", "--version "]
    os.utime(engine, (1, 1))
    files.gather(needs, cache, Facts())
    assert runs.read_text().count("--help") == 2
    assert len(cache.texts) == 2


def test_a_binary_that_hangs_floods_or_fails_tells_nothing(tmp_path: Path) -> None:
    hang = script(tmp_path / "hang", "echo begun; sleep 60")
    spent = Spent()
    assert binaries.run((str(hang),), limit=0.3) is None
    assert spent() < 20
    assert binaries.run((str(script(tmp_path / "flood", "exec yes")),), limit=10) is None
    assert binaries.run((str(tmp_path / "gone"),)) is None
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    assert binaries.run((str(tmp_path / "text"),)) is None


def test_a_binary_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    engine = script(tmp_path / "engine", f"echo x >> {runs}; exec yes")
    needs = Needs(binaries=frozenset({(str(engine), ("--help",), (), "")}))
    cache = Cache()
    for _ in range(2):
        assert files.gather(needs, cache, Facts()).binaries[str(engine)].flags is None
    assert runs.read_text() == "x\n"


def test_the_leftovers_of_a_help_are_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    engine = script(tmp_path / "engine", f"sleep 60 >/dev/null 2>&1 & echo $! > {pid_file}; echo done")
    assert binaries.run((str(engine),)) == "done\n"
    wait_until(lambda: not process.alive(int(pid_file.read_text())), 5, "its end")


def test_where_executables_are_found(tmp_path: Path) -> None:
    own = Path(sys.executable).name
    assert binaries.find(own, str(tmp_path)) == (sys.executable, "")
    (tmp_path / "tool").write_text("")
    path, error = binaries.find("tool", str(tmp_path))
    assert path == str(tmp_path / "tool") and "not executable" in error
    path, error = binaries.find("no-such-tool", f"{tmp_path}:/usr/bin")
    assert path is None and str(tmp_path) in error and "/usr/bin" in error and os.path.dirname(sys.executable) in error
    assert binaries.find(str(tmp_path), "") == (str(tmp_path), f"{tmp_path} is a directory, not an executable")
    assert binaries.find("/no/such", "")[0] is None
    later = tmp_path / "later"
    later.mkdir()
    script(later / "tool", "")
    assert binaries.find("tool", f"{tmp_path}:{later}") == (str(later / "tool"), "")


def test_a_cache_that_cannot_be_read_is_empty() -> None:
    assert Cache.from_json({"texts": [["a"], 5, ["a", "b", ["--help"], "text"]]}).texts == {
        ("a", "b", ("--help",)): "text"
    }
    assert Cache.from_json({}).texts == {}
    full = Cache(size=2)
    for n in range(4):
        full.put((f"/{n}", "", ()), "")
    assert [path for path, _, _ in full.texts] == ["/2", "/3"]


def test_listening_ports_are_busy_and_our_own_are_not() -> None:
    with socket.socket() as mine, socket.socket(socket.AF_INET6) as any6, socket.socket() as bound:
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        any6.bind(("::", 0))
        any6.listen()
        bound.bind(("127.0.0.1", 0))
        a, b, c = mine.getsockname()[1], any6.getsockname()[1], bound.getsockname()[1]
        busy = files.gather(Needs(), Cache(), Facts()).busy_ports
        assert a in busy and b in busy and c not in busy
        assert a not in files.gather(Needs(), Cache(), Facts(), own_ports=frozenset({a})).busy_ports


def test_a_listener_on_another_address_does_not_collide() -> None:
    head = "  sl  local_address rem_address st\n"
    tables = {
        "/proc/net/tcp": head
        + "0: 0A01A8C0:1F90 00000000:0000 0A\n1: 3500007F:1F91 00000000:0000 0A\n2: 0100007F:1F92 0:0 01\n",
        "/proc/net/tcp6": head
        + "0: 0000000000000000FFFF00000100007F:1F93 0:0 0A\n1: 00000000000000000000000001000000:1F94 0:0 0A\n",
    }
    assert files.listening_ports(tables.__getitem__) == {0x1F91, 0x1F93}

    def none(path: str) -> str:
        raise FileNotFoundError(path)

    assert files.listening_ports(none) == frozenset()


def test_gather_carries_on_what_the_caller_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("LD_PRELOAD_NOT", "x")
    known = Facts(
        gpus=None, gpu_error="no driver", kept_ports={"a": 1}, kept_gpus={"a": ("u",)}, kept_gpu_words={"a": [0]}
    )
    facts = files.gather(Needs(), Cache(), known)
    assert (facts.gpus, facts.gpu_error, facts.kept_ports, facts.kept_gpus) == (
        None,
        "no driver",
        {"a": 1},
        {"a": ("u",)},
    )
    assert facts.kept_gpu_words == {"a": [0]} and facts.cpus >= 1
    assert facts.environ["HOME"] == "/home/x" and "LD_PRELOAD_NOT" not in facts.environ


def test_atomic_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    files.atomic_write(path, b"one")
    assert path.read_bytes() == b"one" and stat.S_IMODE(path.stat().st_mode) == 0o600
    files.atomic_write(path, b"two", 0o644)
    assert path.read_bytes() == b"two" and stat.S_IMODE(path.stat().st_mode) == 0o644

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.atomic_write(path, b"three")
    assert path.read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_kill_in_the_middle_of_a_write_leaves_nothing_for_good(tmp_path: Path) -> None:
    path = tmp_path / "f"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from llmsupervisor.host import files\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.atomic_write(Path(sys.argv[1]), b'half')\n"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    files.atomic_write(path, b"whole")
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and path.read_bytes() == b"whole"


def test_built_in_definitions_are_read_and_a_users_overrides(tmp_path: Path) -> None:
    built_in, problems = files.read_definitions()
    assert not problems and {"llama-server", "ollama", "vllm", "command"} <= built_in.keys()
    assert built_in["vllm"].source == "runtimes/vllm.toml"
    mine = tmp_path / "runtimes"
    assert files.read_definitions([mine])[0].keys() == built_in.keys()
    mine.mkdir()
    text = 'name = "{}"\ndoc = "mine"\ncommand = ["mine"]\n'
    (mine / "a.toml").write_text(text.format("vllm"))
    (mine / "b.toml").write_text(text.format("vllm"))
    (mine / "c.toml").write_text("name = 5")
    (mine / "d.toml").write_text(text.format("other"))
    (mine / "d.toml").chmod(0o666)
    (mine / "e.toml").write_text(text.format("sglang"))
    definitions, problems = files.read_definitions([mine])
    assert definitions["vllm"].doc == "mine" and definitions["vllm"].source == str(mine / "a.toml")
    assert "sglang" in definitions and "other" not in definitions
    assert {p.file for p in problems} == {str(mine / n) for n in ("b.toml", "c.toml", "d.toml")}

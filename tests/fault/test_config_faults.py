"""Faults C1 to C20: whatever happens to the spec, what runs goes on, and only a whole, valid text is applied."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
from support.daemon import Daemon
from support.edits import SEEN, Two
from support.faults import conditions
from support.http import chat
from support.spec import served, spec
from support.wait import wait_until


@pytest.fixture
def box(daemon: Daemon) -> Two:
    return Two(daemon)


# --- how it is written --------------------------------------------------------------------------------------------


def test_c1_a_half_written_file_is_not_applied(box: Two) -> None:
    """Its first half is a valid spec without the second service."""
    box.two_up()
    text = box.daemon.spec_path.read_text().replace("context_length = 1024", "context_length = 2048", 1)
    half = text.index("[services.other]")
    torn = box.folder / "torn.toml"
    torn.write_text(text[:half])
    assert box.daemon.cli("check", "-c", str(torn)).returncode == 0, "a torn file that looks whole"
    with box.daemon.spec_path.open("w") as file:
        file.write(text[:half])
        file.flush()
        time.sleep(1.0)
        box.unchanged()
        file.write(text[half:])
    box.applied()
    box.restarted("--ctx-size 4096")
    box.unchanged("other")


def test_c2_an_emptied_file_stops_nothing(box: Two) -> None:
    box.two_up()
    text = box.daemon.spec_path.read_text()
    os.truncate(box.daemon.spec_path, 0)
    box.refused("names no service")
    box.unchanged()
    box.daemon.spec_path.write_text(text)
    wait_until(lambda: not box.error, SEEN, "the whole text again")
    box.unchanged()


def test_c3_every_way_of_saving_is_seen(box: Two) -> None:
    """A hundred swaps: tests/fault/test_watch.py."""
    box.two_up()
    path = box.daemon.spec_path

    def swap(text: str) -> None:
        box.daemon.write_text(text)

    def in_place(text: str) -> None:
        path.write_text(text)

    def backup_then_new(text: str) -> None:
        path.rename(path.with_suffix(".toml~"))
        path.write_text(text)

    def sed(text: str) -> None:
        number = re.findall(r"(?m)^# edit (\d+)$", text)[-1]
        subprocess.run(["sed", "-i", f"$a # edit {number}", str(path)], check=True)

    def append(text: str) -> None:
        with path.open("a") as file:
            file.write(text.splitlines()[-1] + "\n")

    def twenty_swaps(text: str) -> None:
        for number in range(20):
            swap(f"{text}# swap {number}\n")

    for number, save in enumerate((swap, in_place, backup_then_new, sed, append, twenty_swaps)):
        save(path.read_text() + f"# edit {number}\n")
        assert f"# edit {number}\n" in path.read_text()
        box.applied()
    box.unchanged()


@pytest.mark.slow
def test_c10_flapping_edits_are_paced(box: Two) -> None:
    box.two_up()
    edited = []
    for number in range(60):
        text = spec(box.spec(context_length=1024 * (2 + number % 2)), box.daemon.ports)
        box.daemon.write_text(f"{text}# edit {number}\n")
        edited.append(time.monotonic())
        time.sleep(0.1)
    spent = time.monotonic() - edited[0]
    pauses = sum(later - earlier > 0.2 for earlier, later in pairwise([*edited, time.monotonic()]))
    box.applied()
    wait_until(lambda: "--ctx-size 6144" in " ".join(box.starts()[-1].argv), 20, "the last content to run")
    box.ready()
    reloads = [event for event in box.daemon.events(kind="reload") if event["why"] != "started"]
    print(f"60 edits in {spent:.1f} s, {pauses} pauses: {len(reloads)} reloads, {len(box.starts()) - 1} restarts")
    assert len(box.starts()) - 1 <= len(reloads) <= spent / 2 + 2 + pauses, "what lies still for a while is an edit"
    box.once(len(box.starts()))
    box.unchanged("other")


def test_c11_back_to_the_old_content_is_no_change(box: Two) -> None:
    """Unless this machine stood still meanwhile: what lies there for long enough is an edit."""
    box.two_up()
    text, stalls = box.daemon.spec_path.read_text(), 0
    for _ in range(3):
        began = time.monotonic()
        box.write(context_length=2048)
        time.sleep(0.08)
        box.daemon.write_text(text)
        stalls += time.monotonic() - began > 0.12
        time.sleep(0.4)
    box.daemon.write_text(text + "# later\n")
    box.applied()
    if stalls:
        pytest.skip(f"{stalls} times too slow to be an edit that was taken back")
    box.unchanged()


def test_c12_the_folder_goes_and_comes_back(box: Two) -> None:
    folder = box.folder / "conf"
    folder.mkdir()
    shutil.move(box.folder / "runtimes", folder)
    box.daemon.spec_path = folder / "llmsupervisor.toml"
    box.two_up()
    text = box.daemon.spec_path.read_text()
    shutil.copytree(folder, box.folder / "backup")
    box.daemon.spec_path.unlink()  # first: without the definition alone it would be another spec
    shutil.rmtree(folder)
    box.refused("cannot be read: No such file")
    box.unchanged()
    (box.folder / "backup").rename(folder)
    box.daemon.spec_path.write_text(text + "# back\n")
    box.applied(10)
    box.daemon.write_text(text + "# and watched again\n")
    box.applied()
    box.unchanged()


def test_c13_kubernetes_swaps_its_data_link(box: Two) -> None:
    box.daemon.write(box.spec())
    text = box.daemon.spec_path.read_text()
    mount = box.folder / "mount"

    def publish(version: int, text: str) -> None:
        (mount / f"..v{version}").mkdir(parents=True)
        (mount / f"..v{version}" / "llmsupervisor.toml").write_text(text)
        (mount / "..tmp").symlink_to(f"..v{version}")
        (mount / "..tmp").replace(mount / "..data")

    publish(1, text)
    shutil.move(box.folder / "runtimes", mount)
    box.daemon.spec_path = mount / "llmsupervisor.toml"
    box.daemon.spec_path.symlink_to("..data/llmsupervisor.toml")
    box.daemon.up()
    box.pids = {name: box.ready(name)["pid"] for name in ("chat", "other")}
    publish(2, text.replace("context_length = 1024", "context_length = 2048", 1))
    shutil.rmtree(mount / "..v1")
    box.applied()
    box.restarted("--ctx-size 4096")
    box.unchanged("other")


# --- what stands in it --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_c4_c5_c6_a_wrong_text_changes_nothing(box: Two) -> None:
    """Each text also holds a change of `other` that is right: nothing of it is applied."""
    box.two_up()
    path, good = box.daemon.spec_path, box.daemon.spec_path.read_text()
    head, tail = good.split("[services.other]")
    changed = head + "[services.other]" + tail.replace("context_length = 1024", "context_length = 4096")
    line = changed[: changed.index("context_length = 1024")].count("\n") + 1
    cases = [
        ("context_length = 1024", "context_length = ", rf"{path}:{line}: not valid TOML: .*\(column \d+\)"),
        ("context_length = 1024", "num_ctx = 1024", rf"{path}:{line}: services\.chat\.num_ctx: .*context_length"),
        ("context_length = 1024", "context_lenght = 1024", rf"{path}:{line}: .*did you mean context_length\?"),
        ("context_length = 1024", 'context_length = "1k"', rf'{path}:{line}: services\.chat.* found "1k"'),
        ("[services.other]", "[services.chat]", "services.chat: stands twice"),
    ]
    texts = [(changed.replace(old, new, 1), words) for old, new, words in cases]
    texts.append((changed.replace("parallel = 2", "parallel = 2\nport = 1234"), "1234 is also that of services.chat"))
    for text, words in texts:
        box.daemon.write_text(text)
        error = box.refused(words)
        shown = box.daemon.cli("status").stdout
        assert all(line in shown for line in error.splitlines())
        box.unchanged()
    for command in (["check"], ["reload"]):
        done = box.daemon.cli(*command, "-c", str(path))
        assert done.returncode == 3 and "1234" in done.stdout + done.stderr
    assert len({row["error"] for row in box.daemon.events(kind="refused")}) == len(texts)

    box.daemon.write_text(changed)
    box.wait_starts(2, "other")
    assert box.ready("other")["generation"] == 2 and not box.error
    box.unchanged("chat")


def test_c14_what_is_no_file_is_refused(box: Two) -> None:
    box.two_up()
    path, text = box.daemon.spec_path, box.daemon.spec_path.read_text()

    def huge() -> None:
        with path.open("wb") as file:
            file.truncate(1 << 30)

    cases = [
        (lambda: os.mkfifo(path), "is a FIFO, not a file"),
        (path.mkdir, "is a directory, not a file"),
        (lambda: path.symlink_to(path), "symbolic links"),
        (huge, "larger than 1024 KiB"),
        (lambda: path.write_bytes(text.encode() + b"# \xff\n"), "is not UTF-8"),
    ]
    for make, words in cases:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        began = time.monotonic()
        make()
        box.refused(words)
        print(f"{words}: refused after {time.monotonic() - began:.2f} s")
        box.unchanged()
    path.unlink()
    path.write_text(text)
    wait_until(lambda: not box.error, SEEN, "the file again")
    box.unchanged()


def test_c14_c15_a_daemon_does_not_start_with_a_file_that_must_not_be_believed(box: Two) -> None:
    path = box.daemon.spec_path
    box.write()
    path.chmod(0o666)
    box.daemon.launch()
    assert box.daemon.wait_exit() == 3
    assert "everybody may write it" in box.daemon.told() and "chmod o-w" in box.daemon.told()
    path.unlink()
    os.mkfifo(path)
    box.daemon.launch()
    assert box.daemon.wait_exit() == 3
    assert box.starts() == []


def test_c15_a_spec_that_becomes_writable_for_all_is_not_applied(box: Two) -> None:
    box.two_up()
    box.daemon.spec_path.chmod(0o666)
    box.daemon.spec_path.write_text(box.daemon.spec_path.read_text().replace("= 1024", "= 2048"))
    assert "everybody may write it" in box.refused("writ")
    box.unchanged()
    box.daemon.spec_path.chmod(0o600)
    assert box.daemon.cli("reload").returncode == 0
    box.restarted("--ctx-size 4096")


def test_c16_a_missing_secret_holds_back_its_service_and_is_never_told(box: Two) -> None:
    canary, secret = "canary-1f0e2d3c4b", box.folder / "token"
    box.daemon.write(box.spec(secret_env={"HF_TOKEN": {"file": str(secret)}, "TOKEN": {"env": "NO_SUCH_TOKEN"}}))
    box.daemon.environ["FAKE_UNUSED"] = "1"
    box.daemon.up()
    status = box.daemon.wait_state("chat", "PENDING")
    assert "NO_SUCH_TOKEN" in status["reason"] and str(secret) in status["reason"]
    box.ready("other")

    box.daemon.write(box.spec(secret_env={"HF_TOKEN": {"file": str(secret)}}))
    box.applied()
    box.daemon.wait_service("chat", lambda s: "NO_SUCH_TOKEN" not in s["reason"], 15, "one secret is missing")
    secret.write_text(canary + "\n")
    status = box.ready(timeout=15)
    environ = Path(f"/proc/{status['pid']}/environ").read_bytes()
    assert f"HF_TOKEN={canary}".encode() in environ.split(b"\0"), "the service has it"

    box.inject(status, log=f"it says {canary} aloud")
    wait_until(lambda: "it says *** aloud" in box.daemon.log("chat"), 5, "the log line")
    os.kill(status["pid"], 9)
    box.again()
    box.wait_exits(1)
    told = [box.daemon.told(), str(box.daemon.status()), box.daemon.cli("plan", "-c", str(box.daemon.spec_path)).stdout]
    told += [str(box.daemon.call("plan")), *(p.read_text() for p in box.daemon.state.glob("crashes/*.json"))]
    for path in box.daemon.state.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a temporary file that was just renamed
            told += [path.read_text(errors="replace")] if path.is_file() and path.name != "secrets" else []
    assert not any(canary in text for text in told)

    secret.unlink()
    box.daemon.write(box.spec(secret_env={"HF_TOKEN": {"file": str(secret)}}, context_length=2048))
    held = box.daemon.wait_service("chat", lambda s: "refused" in conditions(s), 10, "the refusal beside what runs")
    assert held["state"] == "READY" and str(secret) in conditions(held)["refused"]
    box.once(2)


# --- what it names ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_c8_a_replaced_model_is_told_and_restarts_nothing(box: Two) -> None:
    box.two_up()
    new = box.model.with_suffix(".new")
    new.write_bytes(box.model.read_bytes() + b"\0" * 64)
    new.replace(box.model)
    began = time.monotonic()
    status = box.daemon.wait_service("chat", lambda s: s["drift"], 15, "drift")
    print(f"told after {time.monotonic() - began:.1f} s")
    assert status["drift"] == [f"model file replaced: {box.model}"]
    assert "model file replaced" in box.daemon.cli("status").stdout
    box.daemon.wait_service("other", lambda s: s["drift"], 5, "drift")
    box.unchanged()
    assert box.daemon.cli("restart", "--drifted", timeout=60).returncode == 0
    for name in ("chat", "other"):
        box.wait_starts(2, name)
        assert box.ready(name)["drift"] == []
        box.once(2, name)


@pytest.mark.slow
@pytest.mark.engine
def test_c9_a_model_cut_under_a_running_server(daemon: Daemon, llama_server: Path, model: Path) -> None:
    """mmap: the engine dies by SIGBUS at its next look, and what is left of the file is not loaded again and again."""
    copy = daemon.folder / "model.gguf"
    shutil.copy(model, copy)
    daemon.write({"chat": served(llama_server, copy)})
    daemon.up()
    status = daemon.wait_state("chat", "READY", 90)
    os.truncate(copy, 1_000_000)
    with pytest.raises((OSError, AssertionError)):
        chat(status["endpoint"], daemon.key("chat"))
    failed = daemon.wait_state("chat", "FAILED", 60)
    assert failed["last_exit"]["cause"] == "model-corrupt" and failed["retry_at"] is None
    ends = wait_until(lambda: len(rows := daemon.events(service="chat", kind="exit")) > 1 and rows, 30, "two ends")
    assert [row["exit"]["cause"] for row in ends] == ["model-cut", "model-corrupt"], ends
    shutil.copy(model, copy)
    daemon.wait_state("chat", "READY", 90)

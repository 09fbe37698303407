"""The log of a runtime: never in its way, bounded on disk, without secrets."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from support.shimkit import Box, memory_kib
from support.wait import Spent

from llmsupervisor.host import shim, spawn

MIB = 1 << 20
PATIENCE = 1.0
"""Seconds that one write of a runtime may take: ten times the bound, for a shared machine; less what that stood still."""

FLOOD = """
import os, sys, time
path, rate, seconds, size = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
data = (b"x" * 99 + b"\\n") * (size // 100)
least = int(sys.argv[5]) if len(sys.argv) > 5 else 0
longest = written = 0
begin = time.monotonic()
while (now := time.monotonic()) < begin + seconds or written < least:
    if written > (now - begin) * rate:
        time.sleep(0.001)
        continue
    written += os.write(1, data)
    longest = max(longest, time.monotonic() - now)
with open(path + ".new", "w") as file:
    print(written, longest, file=file)
os.rename(path + ".new", path)
"""


@pytest.fixture
def box(tmp_path: Path):
    made = Box(tmp_path)
    yield made
    made.close()


def flood(box: Box, rate: float, seconds: float, least: int = 0, **changes) -> tuple[dict, int]:
    """Record and bytes written; asserts that the runtime was never held up and the shim did not grow."""
    spent, words = Spent(), map(str, (box.root / "told", rate, seconds, 100_000, least))
    run = box.python(FLOOD + "sys.stdin.close(); time.sleep(60)", *words, **changes)
    base = memory_kib(run.shim.pid, "VmRSS")
    written, longest = box.file("told", seconds + 10).split()
    peak = memory_kib(run.shim.pid, "VmHWM")
    print(f"{int(written) / MIB / seconds:.0f} MiB/s, longest write {float(longest) * 1000:.1f} ms, "
          f"shim {base} -> {peak} KiB at most")  # fmt: skip
    assert float(longest) - spent.lost() < PATIENCE
    assert peak - base < 64 * 1024
    spawn.signal_main(run, 9)
    return box.over(run), int(written)


def test_flood_holds_nobody_up(box: Box) -> None:
    record, written = flood(box, 200e6, 1.5, least=200 * MIB)
    assert written > 50 * MIB
    assert record["dropped_bytes"] > 0
    assert "[llmsupervisor] dropped " in "".join(p.read_text() for p in box.log.parent.iterdir())


def test_stalled_disk_holds_nobody_up(box: Box) -> None:
    """Nobody reads the FIFO: its open waits for ever."""
    box.log.parent.mkdir(parents=True)
    os.mkfifo(box.log)
    record, written = flood(box, 100e6, 0.6)
    assert record["dropped_bytes"] > written - 16 * MIB - 2 * MIB


@pytest.mark.parametrize("what", ["/dev/full", "folder"])
def test_disk_that_refuses_holds_nobody_up(box: Box, what: str) -> None:
    if what == "folder":
        box.log.mkdir(parents=True)
        what = str(box.log)
    record, written = flood(box, 20e6, 0.3, log={"path": what})
    assert record["dropped_bytes"] > 0.5 * written


def test_a_line_of_one_mebibyte_arrives_whole(box: Box) -> None:
    run = box.python(f"import os; n = 0\nwhile n < {MIB}: n += os.write(1, b'y' * ({MIB} - n))\nprint()")
    assert box.over(run)["dropped_bytes"] == 0
    assert box.text() == "y" * MIB + "\n"


def test_raw_bytes_arrive_as_they_are(box: Box) -> None:
    data = b"\0\xff\x1b[31m\r no newline"
    box.over(box.python(f"import os; os.write(1, {data[:4]!r}); os.write(2, {data[4:]!r})"))
    assert box.log.read_bytes() == data


def test_what_is_shed_is_counted_to_the_byte(box: Box) -> None:
    """Lines of 100 bytes: a shorter one was cut, and got a newline, where a gap begins."""
    run = box.python(FLOOD, str(box.root / "told"), "2e6", "1.0", "5000", log={"burst": 100_000, "rate": 50_000})
    written = int(box.file("told").split()[0])
    record = box.over(run)
    lines = [line for line in box.text().split("\n") if line]
    told = [int(m[1]) for line in lines if (m := re.fullmatch(r"\[llmsupervisor\] dropped (\d+) bytes", line))]
    kept = sum(100 if len(line) == 99 else len(line) for line in lines if line.strip("x") == "")
    print(f"{written} written, {kept} kept, {len(told)} gaps")
    assert told and kept + sum(told) == written
    assert sum(told) >= record["dropped_bytes"] > 0
    assert kept < 100_000 + 2 * 50_000 + 2 * shim.READ


def test_rotation_bounds_the_disk_and_cuts_no_line(box: Box) -> None:
    code = "for n in range(20000): print(f'{n:06d} ' + 'z' * 42)"
    box.over(box.python(code, log={"size": 64 * 1024, "keep": 2}))
    files = sorted(box.log.parent.iterdir())
    assert [f.name for f in files] == ["log", "log.1", "log.2"]
    assert all(f.stat().st_size <= 64 * 1024 for f in files)
    lines = "".join(f.read_text() for f in reversed(files)).splitlines()
    assert [int(line[:6]) for line in lines] == list(range(20000 - len(lines), 20000))
    assert all(f.stat().st_mode & 0o777 == 0o600 for f in files)


def test_no_old_file_is_kept_where_none_is_wanted(box: Box) -> None:
    box.over(box.python("for n in range(5000): print('z' * 49)", log={"size": 4096, "keep": 0}))
    assert [f.name for f in box.log.parent.iterdir()] == ["log"]


def test_next_run_appends(box: Box) -> None:
    box.over(box.begin("/bin/echo", "one"))
    box.over(box.begin("/bin/echo", "two"))
    assert box.text() == "one\ntwo\n"


# --- secrets ------------------------------------------------------------------------------------------------------


def test_secret_never_reaches_the_disk_also_in_two_pieces(box: Box) -> None:
    code = (
        "import os,time\nkey = os.environ['KEY'].encode()\n"
        "os.write(1, b'key=' + key + b' and ' + key[:9]); time.sleep(0.2)\n"
        "os.write(2, key[9:] + b' end\\n'); os.write(1, b'short: hf\\n')"
    )
    box.over(box.python(code, hidden={"KEY": "hf_abcdefghijklmnop", "MODE": "end"}))
    assert box.text() == "key=*** and *** end\nshort: hf\n"


def redactor(tmp_path: Path, *secrets: bytes, **limits) -> shim.Log:
    return shim.Log({"path": str(tmp_path / "log"), **limits}, list(secrets))


def test_redaction_does_not_depend_on_where_reads_are_cut(tmp_path: Path) -> None:
    secrets = (b"abcabcabd", b"abcabcabdxyz", b"zzzabcab", b"-----BEGIN\nKEY")
    text = b"abcabcabcabd abcabcabdxyzabcabcabd zzzabcabcabcabd -----BEGIN\nKEY abcabca\n"
    whole = redactor(tmp_path, *secrets)
    expected = whole.redact(text)
    assert expected == b"abc*** ****** ***cabcabd *** abcabca\n" and not whole.tail
    for first in range(len(text)):
        for second in range(first, len(text), 7):
            log = redactor(tmp_path, *secrets)
            parts = [log.redact(p) for p in (text[:first], text[first:second], text[second:])]
            assert b"".join(parts) == expected, (first, second)


def test_half_a_secret_beside_a_gap_is_not_written(tmp_path: Path) -> None:
    log = redactor(tmp_path, b"hush-hush-hush")
    log.accept(b"one hush-hu")
    log.cut(6, True)
    log.accept(b"sh-hush two\nthree\n")
    assert (tmp_path / "log").read_bytes() == b"one \n[llmsupervisor] dropped 25 bytes\nthree\n"


def test_disk_is_tried_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "DISK_RETRY", 60.0)
    (tmp_path / "state").write_text("in the way")
    log = shim.Log({"path": str(tmp_path / "state" / "log")}, [])
    log.accept(b"lost\n")
    (tmp_path / "state").unlink()
    log.accept(b"lost too\n")
    assert log.dropped == 14 and not (tmp_path / "state").exists()
    assert 0 < log.retry_at - time.monotonic() <= 60
    log.retry_at = time.monotonic()  # a minute later
    log.accept(b"kept\n")
    assert (tmp_path / "state" / "log").read_text() == "[llmsupervisor] dropped 14 bytes\nkept\n"

"""`requests.db` as the gateway writes it: what it survives, and what it costs."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from support.records import record
from support.wait import Spent, undisturbed, wait_until

from llmsupervisor.gateway.history import BATCH, ROOM, History
from llmsupervisor.link.history import COLUMNS, TEXT_LIMIT, VERSION, to_record
from llmsupervisor.link.requests import RequestRecord

Json = dict[str, Any]
Make = Callable[..., History]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.db"


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    made: list[History] = []

    def make(*args: Any, **more: Any) -> History:
        made.append(History(path, *args, **{"retry": 0.1, "tell": lambda text: None, **more}))
        return made[-1]

    yield make
    for history in made:
        history.close()


def stored(path: Path) -> list[RequestRecord]:
    """What can be read now; nothing while there is no file, or a corrupt one."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            cursor = db.execute("SELECT * FROM requests ORDER BY rowid")
            names = [column[0] for column in cursor.description]
            return [to_record(names, row) for row in cursor]
    except sqlite3.DatabaseError:
        return []


def ids(path: Path) -> list[str]:
    return [each["id"] for each in stored(path)]


def wait_stored(path: Path, count: int, timeout: float = 10.0) -> None:
    wait_until(lambda: len(ids(path)) >= count, timeout, lambda: f"{count} records, there are {len(ids(path))}")


def test_the_columns_are_the_fields_of_a_record() -> None:
    assert list(COLUMNS) == list(get_type_hints(RequestRecord))


def test_what_goes_in_comes_out(path: Path, make: Make) -> None:
    known = record("a", hash_ids=["00ff", "11ee"], session_id="s", client="alice")
    unknown = record("b", **{name: None for name in COLUMNS if name.endswith("_ms") and name != "total_ms"})
    history = make()
    history.put(known)
    history.put(unknown)
    history.close()
    assert stored(path) == [known, unknown]
    assert (history.dropped, history.degraded) == (0, None)


def test_it_is_there_within_a_batch_without_a_close(path: Path, make: Make) -> None:
    history = make()
    history.put(record("a"))
    wait_stored(path, 1, timeout=BATCH + 2)


def test_only_its_owner_reads_it(path: Path, make: Make) -> None:
    before = os.umask(0o000)
    try:
        history = make()
        history.put(record("a"))
        wait_stored(path, 1)
    finally:
        os.umask(before)
    files = sorted(path.parent.glob("requests*"))
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    assert len(files) == 4, "the file, its WAL, its index, the salt"


def test_what_a_client_made_up_loses_no_record(path: Path, make: Make) -> None:
    history = make()
    history.put(record("a", model="\ud800" + "x" * 10_000, max_tokens=10**30, decode_tokens_per_s=float("nan")))
    history.put(record("b", prompt_tokens={1, 2}))
    history.put(record("c"))
    history.close()
    first, last = stored(path)
    assert first["model"] == "?" + "x" * (TEXT_LIMIT - 1)
    assert (first["max_tokens"], first["decode_tokens_per_s"]) == (2**63 - 1, None)
    assert (last["id"], history.dropped) == ("c", 1)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_waited_for(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "later" / "requests.db"
    history = History(path, retry=0.1, tell=lambda text: None)
    history.put(record("a"))
    wait_until(lambda: history.degraded, 10, "the missing folder to be told")
    path.parent.mkdir()
    wait_stored(path, 1)
    wait_until(lambda: history.degraded is None, 10, "that it is over")
    history.close()
    assert history.dropped == 0


def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    history = History(tmp_path / "missing" / "requests.db", tell=lambda text: None)
    wait_until(lambda: history.degraded, 10, "the missing folder to be told")
    for number in range(ROOM + 100):
        history.put(record(str(number)))
    assert history.dropped == 100
    spent = Spent()
    history.close()
    assert spent() < 5
    assert history.dropped == ROOM + 100


def test_a_prompt_with_many_hashes_takes_more_room(tmp_path: Path) -> None:
    history = History(tmp_path / "missing" / "requests.db", tell=lambda text: None)
    for number in range(ROOM):
        history.put(record(str(number), hash_ids=["0" * 16] * 6400))
    assert history.dropped > ROOM * 0.98
    history.close()


@pytest.mark.parametrize("damage", ["not a database at all" * 100, "pages"])
def test_a_corrupt_file_is_set_aside(path: Path, make: Make, damage: str) -> None:
    told: list[str] = []
    if damage == "pages":
        old = make()
        for number in range(200):
            old.put(record(str(number)))
        old.close()
        content = bytearray(path.read_bytes())
        content[4096:] = b"\xa5" * (len(content) - 4096)
        path.write_bytes(content)
    else:
        path.write_text(damage)
    damaged = path.read_bytes()
    history = make(tell=told.append)
    history.put(record("new"))
    wait_until(lambda: ids(path) == ["new"], 10, lambda: f"a new file, told: {told}")
    assert path.with_name("requests.db.bad").read_bytes()[4096:] == damaged[4096:]
    assert "corrupt" in told[0] and "requests.db.bad" in told[0]
    wait_until(lambda: history.degraded is None, 10, "that it is over")
    assert history.dropped == 0


def test_a_newer_file_is_left_as_it_is(path: Path, make: Make) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE requests (everything)")
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    before = path.read_bytes()
    history = make()
    history.put(record("a"))
    wait_until(lambda: history.degraded, 10, "that it is newer")
    assert f"schema {VERSION + 1}, this one knows {VERSION}" in str(history.degraded)
    history.close()
    assert path.read_bytes() == before
    assert history.dropped == 1


def test_an_older_file_gets_the_columns_that_it_lacks(path: Path, make: Make) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(
            "CREATE TABLE requests (rowid INTEGER PRIMARY KEY AUTOINCREMENT, id, time, service, stream, truncated)"
        )
        db.execute("INSERT INTO requests (id, time, service) VALUES ('old', 1.0, 'chat')")
        db.execute(f"PRAGMA user_version={VERSION}")
    history = make()
    history.put(record("new"))
    history.close()
    old, new = stored(path)
    assert (old["id"], old["prompt_tokens"]) == ("old", None)
    assert new == record("new")


def test_a_file_that_was_removed_is_made_again(path: Path, make: Make) -> None:
    history = make()
    history.put(record("a"))
    wait_stored(path, 1)
    for each in path.parent.glob("requests.db*"):
        each.unlink()
    history.put(record("b"))
    wait_until(lambda: ids(path) == ["b"], 10, "the record in a new file")


def test_a_lock_is_waited_for(path: Path, make: Make) -> None:
    history = make()
    history.put(record("a"))
    wait_stored(path, 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    history.put(record("b"))
    wait_until(lambda: history.degraded, 10, "the lock to be told")
    assert "locked" in str(history.degraded)
    other.execute("ROLLBACK")
    other.close()
    wait_stored(path, 2)
    assert history.dropped == 0


WRITER = """
import json, resource, signal, sys, time
from pathlib import Path
from support.records import record
from llmsupervisor.gateway.history import History

def told(**facts):
    print(json.dumps(facts), flush=True)
"""


def program(text: str, path: Path, *words: str) -> subprocess.Popen[str]:
    tests = Path(__file__).resolve().parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER + text, str(path), *words],
        env=os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_loses_nothing_that_fits_into_the_queue(path: Path) -> None:
    """A limit on the size of files instead of a full disk: the same error from the same calls, for everybody's tests."""
    text = """
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
history, n = History(Path(sys.argv[1]), retry=0.1), 0
while history.degraded is None:
    history.put(record(str(n))); n += 1; time.sleep(0.0005)
told(degraded=history.degraded)
for _ in range(100):
    history.put(record(str(n))); n += 1
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
until = time.monotonic() + 60
while history.degraded is not None and time.monotonic() < until:
    time.sleep(0.01)
history.close()
told(put=n, dropped=history.dropped, degraded=history.degraded)
"""
    writer = program(text, path)
    assert writer.stdout and writer.stdin
    full = json.loads(writer.stdout.readline())
    assert "tried again" in full["degraded"]
    writer.stdin.write("\n")
    writer.stdin.flush()
    end = json.loads(writer.stdout.readline())
    assert writer.wait(60) == 0
    assert (end["dropped"], end["degraded"]) == (0, None)
    assert ids(path) == [str(number) for number in range(end["put"])]


def test_kill_9_costs_a_batch_at_most(path: Path, make: Make) -> None:
    text = """
history, n = History(Path(sys.argv[1])), 0
while True:
    history.put(record(str(n), time=time.time())); n += 1; time.sleep(0.0005)
"""

    def measure() -> None:
        for each in path.parent.iterdir():
            each.unlink()
        writer = program(text, path)
        wait_stored(path, 500)
        killed = time.time()
        writer.send_signal(signal.SIGKILL)
        writer.wait(20)
        found = stored(path)
        assert [each["id"] for each in found] == [str(number) for number in range(len(found))]
        assert killed - found[-1]["time"] < BATCH + 1.5

    undisturbed(measure)
    count = len(ids(path))
    history = make()
    history.put(record("next"))
    wait_stored(path, count + 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_gateways_at_a_hand_over_write_both(path: Path) -> None:
    text = """
history, who = History(Path(sys.argv[1])), sys.argv[2]
for n in range(3000):
    history.put(record(f"{who}{n}"))
    time.sleep(0.0005)
history.close()
told(dropped=history.dropped, degraded=history.degraded, salt=history.salt.hex())
"""
    writers = [program(text, path, who) for who in "ab"]
    ends = [json.loads(writer.communicate(timeout=120)[0]) for writer in writers]
    assert [(end["dropped"], end["degraded"]) for end in ends] == [(0, None)] * 2
    assert len({end["salt"] for end in ends}) == 1
    found = ids(path)
    assert sorted(found) == sorted(f"{who}{n}" for who in "ab" for n in range(3000))
    for who in "ab":
        assert [each for each in found if each[0] == who] == [f"{who}{n}" for n in range(3000)]


# --- limits ---------------------------------------------------------------------------------------------------------


def test_what_is_too_old_goes(path: Path, make: Make) -> None:
    history = make(lambda: 1_000_000.0)
    history.configure(3600.0, None)
    for number in range(2500):
        history.put(record(f"old{number}", time=1_000_000.0 - 3601))
    history.put(record("young", time=1_000_000.0 - 3599))
    history.put(record("future", time=1_000_000.0 + 1e9))
    wait_until(lambda: ids(path) == ["young", "future"], 20, lambda: f"{len(ids(path))} are left")


def test_a_clock_that_leaps_does_not_empty_the_history(path: Path, make: Make) -> None:
    now = [1_000_000.0]
    history = make(lambda: now[0])
    history.configure(3600.0, None)
    history.put(record("a", time=now[0]))
    wait_stored(path, 1)
    now[0] += 10 * 365 * 86400
    history.put(record("b", time=now[0]))
    wait_stored(path, 2)
    now[0] -= 20 * 365 * 86400
    history.put(record("c", time=now[0]))
    wait_stored(path, 3)
    history.close()
    assert ids(path) == ["a", "b", "c"]


def test_the_oldest_go_where_the_file_is_too_large(path: Path, make: Make) -> None:
    limit = 400_000
    history = make()
    history.configure(None, limit)
    for number in range(8000):
        history.put(record(str(number), hash_ids=["0123456789abcdef"] * 8))
    wait_until(lambda: ids(path)[-1:] == ["7999"], 20, "the last record")
    wait_until(lambda: path.stat().st_size <= limit, 30, lambda: f"{path.stat().st_size} bytes are at most {limit}")
    left = [int(each) for each in ids(path)]
    assert left == list(range(left[0], 8000)), "only the oldest go"
    assert len(left) * 300 > limit / 2, "not more than it has to"
    assert history.dropped == 0


# --- the salt -------------------------------------------------------------------------------------------------------


def test_the_salt_stays(path: Path, make: Make) -> None:
    first = make().salt
    assert len(first) == 32
    assert make().salt == first
    path.write_text("a database that is set aside")
    assert make().salt == first
    path.with_suffix(".salt").write_bytes(b"short")
    anew = make().salt
    assert len(anew) == 32 and anew != first
    assert make().salt == anew


def test_two_that_begin_at_once_have_one_salt(path: Path) -> None:
    made: list[History] = []
    threads = [threading.Thread(target=lambda: made.append(History(path, tell=lambda text: None))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({history.salt for history in made}) == 1
    for history in made:
        history.close()


def test_without_a_folder_there_is_a_salt_of_this_process(tmp_path: Path) -> None:
    history = History(tmp_path / "missing" / "requests.db", tell=lambda text: None)
    assert len(history.salt) == 32
    history.close()

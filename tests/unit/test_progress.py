"""How far something is: the bar, its words, and how fast it goes on."""

from __future__ import annotations

import pytest

from llmsupervisor.base.progress import bar, name_of, shares, transfer, with_bar
from llmsupervisor.base.text import ascii_only, width
from llmsupervisor.runtime.models import Progress
from llmsupervisor.runtime.pace import Pace

MIB = 1024**2


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0.0, "[-----]"), (0.39, "[#----]"), (0.999, "[####-]"), (1.0, "[#####]"), (1.5, "[#####]"), (-1.0, "[-----]")],
)
def test_a_bar_is_full_only_at_the_end(share: float, drawn: str) -> None:
    assert ascii_only(bar(share, 5)) == drawn
    assert width(bar(share, 5)) == len(drawn)


@pytest.mark.parametrize(
    ("done", "total", "rate", "words"),
    [
        (52 * MIB, 100 * MIB, 8 * MIB, "52 % [█████░░░░░] 52.0 of 100.0 MiB, 8.0 MiB/s, 6s left"),
        (52 * MIB, 100 * MIB, None, "52 % [█████░░░░░] 52.0 of 100.0 MiB"),
        (52 * MIB, 100 * MIB, 0.0, "52 % [█████░░░░░] 52.0 of 100.0 MiB, 0 B/s"),
        (100 * MIB, 100 * MIB, 8 * MIB, "100 % [██████████] 100.0 of 100.0 MiB, 8.0 MiB/s"),
        (101 * MIB, 100 * MIB, 8 * MIB, "100 % [██████████] 101.0 of 100.0 MiB, 8.0 MiB/s"),
        (99 * MIB, 100 * MIB, 1024 * MIB, "99 % [█████████░] 99.0 of 100.0 MiB, 1.0 GiB/s, 1s left"),
        (52 * MIB, 1024 * MIB, None, "5 % [░░░░░░░░░░] 52.0 MiB of 1.0 GiB"),
        (52 * MIB, 1024 * MIB, 1.0, "5 % [░░░░░░░░░░] 52.0 MiB of 1.0 GiB, 1 B/s"),
        (52 * MIB, None, 8 * MIB, "52.0 MiB, 8.0 MiB/s"),
        (0, 0, None, "0 B"),
    ],
)
def test_what_is_not_known_is_not_told(done: int, total: int | None, rate: float | None, words: str) -> None:
    assert transfer(done, total, rate) == words


def test_a_step_is_one_however_far_it_is() -> None:
    assert name_of("loads weights, 43 %") == name_of("loads weights") == "loads weights"
    assert name_of("KV cache of 131,072 tokens made") == "KV cache of 131,072 tokens made"


def test_words_that_tell_a_share_get_a_bar() -> None:
    assert with_bar("loads weights, 43 %") == "loads weights 43 % [████░░░░░░]"
    assert with_bar("loads weights") == "loads weights"
    assert shares(with_bar("loads weights, 43 %")) == [43]


def test_a_rate_is_that_of_the_last_ten_seconds() -> None:
    pace = Pace()
    for second in range(30):
        pace.look(100.0 + second, Progress("uploading", min(second, 20) * 7, 1000))
        if second == 5:
            assert pace.bytes_per_s("uploading") == 7, "all that was seen"
    assert pace.bytes_per_s("uploading") == pytest.approx(0.7)
    for second in range(30, 40):
        pace.look(100.0 + second, Progress("uploading", 140, 1000))
    assert pace.bytes_per_s("uploading") == 0.0, "it stands still, and that was seen"


def test_each_step_has_a_rate_of_its_own() -> None:
    pace = Pace()
    pace.look(1.0, Progress("reading a.gguf", 10, 100))
    pace.look(2.0, Progress("reading a.gguf", 90, 100))
    assert pace.bytes_per_s("reading a.gguf") == 80
    assert pace.bytes_per_s("uploading") is None, "not looked at yet"
    pace.look(3.0, Progress("uploading", 5, 100))
    assert pace.bytes_per_s("uploading") is None, "one look is no rate"
    pace.look(4.0, Progress("uploading", 15, 100))
    assert pace.bytes_per_s("uploading") == 10
    pace.look(5.0, Progress("uploading", 0, 100))
    assert pace.bytes_per_s("uploading") is None, "it began anew"
    pace.look(6.0, Progress("verifying"))
    pace.look(6.1, None)
    assert pace.bytes_per_s("verifying") is None

"""The name that somebody probably meant."""

from __future__ import annotations

from collections.abc import Iterable


def distance(left: str, right: str) -> int:
    """Edits from one word to the other: a letter more, less or other, or two neighbours swapped."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        last, before, row = before, row, [i]
        for j, b in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def near(word: str, names: Iterable[str]) -> str:
    """The nearest of `names`, or "" where none is near: at most one edit in three letters, at least one."""
    plain = word.casefold()
    limit = max(1, len(plain) // 3)
    ranked = sorted((distance(plain, name.casefold()), name) for name in names if abs(len(name) - len(word)) <= limit)
    return ranked[0][1] if ranked and ranked[0][0] <= limit else ""

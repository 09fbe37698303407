"""What the repository must not contain, and how long its files may be."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SKIPPED_FOLDERS = {".git", ".venv", ".demo", "dist", "__pycache__"}
MACHINE_PATH = re.compile(r"(?<![\w./*-])/(?:work|root|Users)/\w")
REGISTRY = re.compile(r"//(?:[\w-]+\.)*(?:pypi|pythonhosted|npmjs|docker|debian)\.(?:org|com)|(?:extra-)?index-(?:url)")
LONGEST = 400
LONGER: dict[str, str] = {
    "llmsupervisor/host/shim.py": "one file on purpose: it runs alone, beside no other module of ours",
    "llmsupervisor/service/lifecycle.py": "one total table, read as a whole",
    "tests/fakes/fake_runtime.py": "one file on purpose: it is an executable that tests copy and rename",
}
"""Files over 400 lines, each with its reason."""


@cache
def texts() -> dict[str, str]:
    """Every text file that git would carry, tracked or not yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    names = [n for n in listed.stdout.decode().split("\0") if n] if listed.returncode == 0 else walked()
    found = {}
    for name in names:
        path = REPOSITORY / name
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if b"\0" not in data:
                found[name] = data.decode(errors="replace")
    return found


def walked() -> list[str]:
    """The same from the folder alone: an unpacked archive has no git."""
    paths = (p.relative_to(REPOSITORY) for p in REPOSITORY.rglob("*") if p.is_file())
    return [str(p) for p in paths if not SKIPPED_FOLDERS.intersection(p.parts)]


def lines_matching(pattern: re.Pattern[str], but: set[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:160]}"
        for name, text in texts().items()
        if name not in but
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_path_of_one_machine() -> None:
    assert not (found := lines_matching(MACHINE_PATH, {"tests/contract/test_repository.py"})), "\n".join(found)


def test_no_host_of_a_package_registry() -> None:
    assert not (found := lines_matching(REGISTRY, {"tests/contract/test_repository.py"})), "\n".join(found)


def test_every_dependency_has_its_reason() -> None:
    """In `pyproject.toml` each line that names packages ends with a comment that says what for."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    requirement = re.compile(r'^\s+"[A-Za-z][\w.-]*(\[[\w,]+\])?[=<>~!]|^requires = ')
    lines = [line for line in text.splitlines() if requirement.match(line)]
    assert len(lines) >= 10
    assert not (bare := [line for line in lines if not re.search(r"#\s*\S.{8,}$", line)]), "\n".join(bare)


def test_files_are_short() -> None:
    counts = {name: text.count("\n") for name, text in texts().items() if name.endswith(".py")}
    long = {name: n for name, n in counts.items() if n > LONGEST}
    assert not (unexplained := {k: v for k, v in long.items() if k not in LONGER}), unexplained
    assert not (stale := set(LONGER) - set(long)), f"no longer over {LONGEST} lines: {stale}"


def test_no_left_over_marks() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|^(<<<<<<<|>>>>>>>) ")
    names = {n for n in texts() if n.endswith((".py", ".toml", ".md", "Makefile", ".service"))}
    own = {"tests/contract/test_repository.py"}
    found = [line for line in lines_matching(marks, own) if line.split(":")[0] in names]
    assert not found, "\n".join(found)

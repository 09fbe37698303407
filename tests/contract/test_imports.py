"""Who may import whom (`docs/architecture.md`), read with `ast`; and what the light commands really load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "llmsupervisor"

PURE = ("base", "spec", "runtime", "plan", "service")
MAY_IMPORT = {
    "base": {"base"},
    "spec": {"base", "spec"},
    "runtime": {"base", "spec", "runtime"},
    "plan": {"base", "spec", "runtime", "plan"},
    "service": {*PURE},
    "link": {"base", "link"},
    "host": {*PURE, "link", "host"},
    "daemon": {*PURE, "link", "host", "daemon"},
    "gateway": {*PURE, "link", "host", "gateway"},
    "cli": {*PURE, "link", "host", "daemon", "gateway", "tui", "cli"},
    "tui": {"base", "link", "tui"},
}
PURE_MODULES = {
    f"gateway.{name}" for name in ("route", "view", "call", "fit", "queue", "timing", "filter", "record", "guard")
}
LIGHT_COMMANDS = {
    f"cli.{name}"
    for name in (
        "main",
        "status",
        "logs",
        "events",
        "requests",
        "orders",
        "gpus",
        "lend",
        "views",
        "servicetable",
        "advise",
    )
}
VIEWS = {"cli.views", "cli.servicetable", "cli.requestviews", "cli.adviceviews", "cli.gpuviews"}
"""Pure views: the terminal UI shares them."""
LAZY_HELPERS = {"cli.specs"}
"""Not a command: imported by commands when they run."""

PURE_IMPORTS = {
    "__future__",
    "abc",
    "array",
    "base64",
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "datetime",  # TOML has dates; the clock is among FORBIDDEN_CALLS
    "difflib",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "hmac",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "operator",
    "pathlib",  # PurePosixPath only
    "pydantic",
    "pydantic_core",
    "re",
    "shlex",
    "string",
    "struct",
    "textwrap",
    "tomlkit",
    "tomllib",
    "types",
    "typing",
    "unicodedata",
    "urllib",  # parse only
}
FORBIDDEN_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}
FORBIDDEN_METHODS = {"now", "today", "utcnow", "read_text", "write_text", "read_bytes", "write_bytes"}
LINK_IMPORTS = set(sys.stdlib_module_names) - {"asyncio", "logging"}
HEAVY = {"pydantic", "httpx", "textual", "rich", "tomlkit", "asyncio", "psutil", "pynvml", "watchfiles", "httptools"}


@dataclass(frozen=True)
class Import:
    module: str
    """Absolute: `llmsupervisor.plan.facts`."""
    names: tuple[str, ...]
    line: int


def imports(name: str, tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            if node.level:
                parents = f"llmsupervisor.{name}".split(".")[: -node.level]
                yield Import(".".join([*parents, *([node.module] if node.module else [])]), names, node.lineno)
            else:
                yield Import(node.module or "", names, node.lineno)


def ours(found: Import) -> list[str]:
    """Dotted names inside the package that an import may mean: `from llmsupervisor.cli import views` is `cli.views`."""
    if found.module == "llmsupervisor":
        return [n for n in found.names if not n.startswith("__")] if found.names else ["llmsupervisor"]
    inside = found.module.removeprefix("llmsupervisor.")
    return [f"{inside}.{n}" for n in found.names] if found.names and "." not in inside else [inside]


def violations(name: str, source: str) -> list[str]:
    """What is wrong with one module; `name` is dotted and without the package (`plan.facts`)."""
    tree = ast.parse(source, name)
    folder = name.split(".")[0]
    pure = folder in PURE or name in PURE_MODULES
    found: list[str] = []
    for imported in imports(name, tree):
        place = f"{name}:{imported.line}"
        top = imported.module.split(".")[0]
        if top == "llmsupervisor":
            found += [f"{place}: {problem}" for target in ours(imported) if (problem := wrong_target(name, target))]
        elif name == "host.shim" and (top not in sys.stdlib_module_names or top == "asyncio"):
            found.append(f"{place}: the shim imports {imported.module}")
        elif pure and (problem := wrong_pure(imported)):
            found.append(f"{place}: {problem}")
        elif folder == "link" and top not in LINK_IMPORTS:
            found.append(f"{place}: link imports {imported.module}, which is not light")
    if pure:
        found += forbidden_calls(name, tree)
    return found


def wrong_target(name: str, target: str) -> str:
    folder, to = name.split(".")[0], target.split(".")[0]
    if name == "host.shim":
        return f"the shim imports our own {target}"
    if name in PURE_MODULES and to not in PURE and to != "link" and target not in PURE_MODULES:
        return f"a pure module imports {target}"
    if name in LIGHT_COMMANDS and to not in ("base", "link", "cli"):
        return f"a light command imports {target}"
    if folder in MAY_IMPORT and to not in MAY_IMPORT[folder] and not (folder == "tui" and target in VIEWS):
        return f"{folder} imports {target}"
    return ""


def wrong_pure(imported: Import) -> str:
    if imported.module.split(".")[0] not in PURE_IMPORTS:
        return f"a pure module imports {imported.module}"
    if imported.module == "pathlib" and set(imported.names) != {"PurePosixPath"}:
        return "a pure module imports more of pathlib than PurePosixPath"
    if imported.module.split(".")[0] == "urllib" and imported.module != "urllib.parse":
        return "a pure module imports more of urllib than parse"
    return ""


def forbidden_calls(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
                yield f"{name}:{node.lineno}: a pure module calls {called.id}"
            if isinstance(called, ast.Attribute) and called.attr in FORBIDDEN_METHODS:
                yield f"{name}:{node.lineno}: a pure module calls .{called.attr}"


def modules() -> dict[str, Path]:
    paths = (p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def test_the_house_is_kept() -> None:
    found = [problem for name, path in modules().items() for problem in violations(name, path.read_text())]
    assert not found, "\n".join(found)


def test_every_folder_has_a_rule() -> None:
    assert {name.split(".")[0] for name in modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("base.units", "from llmsupervisor.spec.model import Spec"),
        ("plan.place", "from llmsupervisor.service.states import State"),
        ("service.exit", "def f():\n    from llmsupervisor.host.files import read_spec"),
        ("host.files", "import llmsupervisor.daemon.loop"),
        ("host.files", "from ..daemon import loop"),
        ("daemon.loop", "from llmsupervisor.gateway import relay"),
        ("gateway.relay", "from llmsupervisor import daemon"),
        ("link.client", "import httpx"),
        ("link.client", "from llmsupervisor.spec.model import Spec"),
        ("cli.status", "def run():\n    from llmsupervisor.host.files import find_spec"),
        ("tui.app", "from llmsupervisor.cli import main"),
        ("tui.app", "from llmsupervisor.daemon.loop import Loop"),
        ("host.shim", "from llmsupervisor.base.errors import Exit"),
        ("host.shim", "import asyncio"),
        ("host.shim", "import psutil"),
        ("plan.place", "import os"),
        ("plan.place", "import time"),
        ("plan.place", "from random import random"),
        ("plan.place", "from pathlib import Path"),
        ("plan.place", "from urllib.request import urlopen"),
        ("plan.place", "open('x')"),
        ("plan.place", "print('x')"),
        ("service.restart", "import datetime\nx = datetime.datetime.now()"),
        ("gateway.timing", "import time"),
        ("gateway.route", "from llmsupervisor.gateway.listen import Listener"),
    ],
)
def test_the_checker_sees(name: str, source: str) -> None:
    assert violations(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("service.exit", "from llmsupervisor.plan.launch import Plan\nimport re"),
        ("host.files", "from pathlib import Path\nopen('x')"),
        ("tui.app", "from llmsupervisor.cli import views\nimport textual"),
        ("cli.plan", "def run():\n    from llmsupervisor.plan import show"),
        ("gateway.timing", "from llmsupervisor.link.requests import RequestRecord"),
    ],
)
def test_the_checker_allows(name: str, source: str) -> None:
    assert violations(name, source) == []


def test_commands_load_nothing_heavy_until_they_run() -> None:
    light = [n for n in modules() if n.startswith(("cli.", "link.")) and n not in LAZY_HELPERS]
    names = sorted(f"llmsupervisor.{n}" for n in light)
    program = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
print(" ".join(sorted({HEAVY!r} & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

"""`runtimes [show NAME]`: the definitions that are known here, built in and beside the spec."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from llmsupervisor.base.errors import Exit, UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("show", nargs="?", choices=["show"], help="print one definition")
    parser.add_argument("name", nargs="?", help="its name")


def run(args: argparse.Namespace) -> int:
    from llmsupervisor.host.files import NoSpec, built_in_folder, find_spec, read_definitions

    folders = []
    try:
        folders.append(Path(find_spec(args.config, os.environ, Path.cwd())).parent / "runtimes")
    except NoSpec:
        pass
    definitions, problems = read_definitions(folders)
    if args.show:
        definition = definitions.get(args.name or "")
        if definition is None:
            wrong = f"there is no runtime {args.name!r}" if args.name else "the name of the runtime is missing"
            raise UsageError(f"{wrong}; known here: {', '.join(definitions)}")
        source = Path(definition.source)
        text = source if source.is_absolute() else built_in_folder() / source.name
        print(text.read_text(encoding="utf-8"), end="")
        return Exit.OK
    for name, definition in definitions.items():
        version = definition.version.written_for if definition.version else "–"
        print(f"{name:<14} written for {version:<12} {definition.source}\n    {definition.doc}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return Exit.SPEC_INVALID if problems else Exit.OK

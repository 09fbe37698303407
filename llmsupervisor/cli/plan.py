"""`plan`: what would be executed, with the origin of every item. Starts nothing."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from llmsupervisor.base.errors import Exit, UsageError

if TYPE_CHECKING:
    from llmsupervisor.plan.shapes import KnownModel


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", nargs="?", help="the file (else -c and the usual places)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the plan as JSON")
    form.add_argument("--shell", action="store_true", help="command lines to paste into a shell")
    form.add_argument("--table", action="store_true", help="what fits, for each type of the KV cache")
    form.add_argument("--forget", action="store_true", help="forget what starts taught about memory (learned.json)")
    parser.add_argument(
        "--model-shape", metavar="NAME", help="with --table: a known model, a GGUF file or a folder, instead of a spec"
    )
    parser.add_argument("--vram", metavar="SIZE", help="with --model-shape: memory of the GPU, such as 24GiB")


def run(args: argparse.Namespace) -> int:
    from llmsupervisor.cli.specs import planned, read_valid
    from llmsupervisor.plan import show
    from llmsupervisor.plan.answers import most

    if args.forget:
        return _forget(args)
    if args.model_shape or args.vram:
        return _shape(args)
    found = read_valid(args.spec or args.config)
    made, facts = planned(found, args)
    for name, service in made.services.items():
        if service.memory is not None:
            made.services[name] = replace(service, memory=replace(service.memory, most=most(service, facts)))
    if args.table:
        from llmsupervisor.plan.tables import of_plan

        print(of_plan(made, facts))
    elif args.json:
        print(json.dumps(show.to_json(made), indent=1))
    elif args.shell:
        print("\n\n".join(show.shell(service) for service in made.services.values()))
    else:
        print(show.text(made))
    refused = [name for name, service in made.services.items() if service.refusals]
    if refused:
        print(f"cannot start on this box now: {', '.join(refused)}", file=sys.stderr)
    return Exit.IMPOSSIBLE if refused else Exit.OK


def _forget(args: argparse.Namespace) -> int:
    """By the daemon that owns the file, or where none runs in the file itself."""
    from llmsupervisor.base.errors import Unreachable
    from llmsupervisor.base.layout import default_layout
    from llmsupervisor.daemon.lessons import of_file
    from llmsupervisor.link.client import connect, find_socket

    path = default_layout(os.environ, args.state_dir).learned
    try:
        with connect(find_socket(args, os.environ, os.getuid())) as client:
            count = client.call("forget")["forgotten"]
    except Unreachable:
        count = len(of_file(path))
        for name in (path, path.with_name(f"{path.name}.prev")):
            if os.path.exists(name):
                os.unlink(name)
    print(f"{count} lesson{'s' * (count != 1)} forgotten")
    return Exit.OK


def _shape(args: argparse.Namespace) -> int:
    """A model on a card of some size: no spec, no box."""
    from llmsupervisor.base.units import parse_size
    from llmsupervisor.plan.tables import of_model, wrong

    if not (args.table and args.model_shape and args.vram):
        raise UsageError("a model without a spec: plan --model-shape llama-3.1-8b --vram 24GiB --table")
    try:
        vram = parse_size(args.vram)
    except ValueError as error:
        raise UsageError(f"--vram: {error}") from None
    model = _model(args.model_shape)
    if why := wrong(model):
        raise UsageError(f"{model.title}: {why}")
    print(of_model(model, vram))
    return Exit.OK


def _model(said: str) -> KnownModel:
    """By its name, or of a GGUF file or a folder of a Hugging Face model."""
    from llmsupervisor.host.headers import Headers
    from llmsupervisor.plan.answers import LONGEST
    from llmsupervisor.plan.facts import gguf
    from llmsupervisor.plan.gguf import GgufError
    from llmsupervisor.plan.hf import HfError
    from llmsupervisor.plan.shapes import SHAPES, KnownModel

    if said in SHAPES:
        return SHAPES[said].known()
    path = os.path.abspath(said)
    title = os.path.basename(path)
    if os.path.isdir(path):
        folder = Headers().folder(path)
        if isinstance(folder, HfError):
            raise UsageError(f"{said} {folder}")
        return KnownModel(title, {}, {"its files": folder}, folder.number("max_position_embeddings") or LONGEST)
    if not os.path.exists(path):
        raise UsageError(
            f"no shape {said!r} is known, and no such file or folder; known: {', '.join(SHAPES)}, a GGUF file, a folder with config.json"
        )
    header = Headers().read(gguf(path))
    if isinstance(header, GgufError):
        raise UsageError(f"{said}: {header.wrong}")
    return KnownModel(title, {"the file": header}, {}, header.context_train or LONGEST)

"""`llmsupervisor`: the verbs. Each verb's module is imported only when it is used."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from llmsupervisor import __version__
from llmsupervisor.base.errors import Exit, LlmsupervisorError

VERBS: dict[str, tuple[str, str, str]] = {
    "up": (
        "llmsupervisor.cli.up",
        "run the daemon: start what the spec says and keep it up",
        "up -c configs/demo.toml",
    ),
    "down": ("llmsupervisor.cli.down", "drain, stop everything, end the daemon", "down --now"),
    "leave": ("llmsupervisor.cli.orders", "end the daemon, leave the services running", "leave"),
    "status": ("llmsupervisor.cli.status", "what runs, and what is wrong with it", "status --json"),
    "top": ("llmsupervisor.cli.top", "how fast everything works and whose memory it is, as text", "top --once"),
    "start": ("llmsupervisor.cli.orders", "start a service", "start chat"),
    "stop": ("llmsupervisor.cli.orders", "drain and stop a service until it is started again", "stop chat --now"),
    "restart": ("llmsupervisor.cli.orders", "restart a service, or all that drifted (--drifted)", "restart --drifted"),
    "drain": (
        "llmsupervisor.cli.orders",
        "let running requests end, then stop the service",
        "drain chat --timeout 600",
    ),
    "reload": ("llmsupervisor.cli.orders", "read the spec again and apply the difference", "reload --dry-run"),
    "logs": ("llmsupervisor.cli.logs", "the log of a service", "logs chat -f"),
    "events": ("llmsupervisor.cli.events", "what happened, one line each", "events -n 20"),
    "requests": (
        "llmsupervisor.cli.requests",
        "every request that the gateway saw, and where its time went",
        "requests --summary",
    ),
    "gpus": ("llmsupervisor.cli.gpus", "GPUs, their memory and who holds it", "gpus --json"),
    "lend": (
        "llmsupervisor.cli.lend",
        "drain and stop what sits on a GPU, and keep it away for another job",
        "lend 0 --for 1h",
    ),
    "take": ("llmsupervisor.cli.lend", "take a lent or quarantined GPU back into use", "take 0"),
    "tui": ("llmsupervisor.cli.tui", "the terminal UI", "tui"),
    "check": (
        "llmsupervisor.cli.check",
        "every error of a spec at once, and what will hurt in its plan",
        "check llmsupervisor.toml --strict",
    ),
    "advise": (
        "llmsupervisor.cli.advise",
        "what would serve better: findings on the plan and on recorded requests, and the change for each",
        "advise --fix C13:chat",
    ),
    "plan": (
        "llmsupervisor.cli.plan",
        "what would be executed, with the origin of every item",
        "plan configs/demo.toml --shell",
    ),
    "doctor": (
        "llmsupervisor.cli.doctor",
        "this box, the runtimes and the spec: what would go wrong",
        "doctor -c llmsupervisor.toml",
    ),
    "init": (
        "llmsupervisor.cli.init",
        "write a commented spec for what is found on this box",
        "init ~/models/Llama-3.1-8B-Instruct-Q4_K_M.gguf",
    ),
    "runtimes": ("llmsupervisor.cli.runtimes", "the runtime definitions", "runtimes show llama-server"),
    "schema": ("llmsupervisor.cli.schema", "the JSON schema of the spec", "schema > llmsupervisor.schema.json"),
}
"""Verb → its module, what it does, an example."""


def parser_for(verb: str | None) -> argparse.ArgumentParser:
    """The whole list of verbs, but only the arguments of `verb`: the other modules stay unimported."""
    parser = argparse.ArgumentParser(
        prog="llmsupervisor",
        description="Brings up, keeps up and reloads local LLM servers from one TOML spec.",
        epilog="example: llmsupervisor up -c configs/demo.toml",
    )
    parser.add_argument("--version", action="version", version=f"llmsupervisor {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (module, text, example) in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example: llmsupervisor {example}",
        )
        if name == verb:
            common(sub)
            importlib.import_module(module).arguments(sub)
    return parser


def common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where")
    group.add_argument(
        "-c", "--config", metavar="SPEC", help="the spec (else $LLMSUPERVISOR_CONFIG, ./llmsupervisor.toml, …)"
    )
    group.add_argument("--socket", metavar="PATH", help="the daemon's control socket (else $LLMSUPERVISOR_SOCKET, …)")
    group.add_argument("--state-dir", metavar="DIR", help="the state folder (else $LLMSUPERVISOR_STATE_DIR, …)")


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((w for w in words if w in VERBS), None)
    args = parser_for(verb).parse_args(words)
    try:
        return int(importlib.import_module(VERBS[args.verb][0]).run(args))
    except LlmsupervisorError as error:
        print(f"llmsupervisor: {error}", file=sys.stderr)
        return int(error.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(Exit.FAILURE)
    except KeyboardInterrupt:
        return 130

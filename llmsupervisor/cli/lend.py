"""`llmsupervisor lend GPU`, `take GPU`: a card for another job, and back."""

from __future__ import annotations

import argparse
import getpass
import os

from llmsupervisor.base.errors import Exit, UsageError
from llmsupervisor.base.units import parse_duration

SLACK = 10.0
"""Seconds that the daemon gets beyond the timeout to say so itself."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gpu", metavar="GPU", help="its index or UUID (llmsupervisor gpus)")
    if parser.prog.split()[-1] == "lend":
        parser.add_argument("--for", dest="length", metavar="TIME", help="30m, 1h, 2d; else until `take`")
        parser.add_argument("--no-wait", action="store_true", help="return at once")
        parser.add_argument("--timeout", type=float, default=900.0, metavar="S", help="seconds to wait (default 900)")


def run(args: argparse.Namespace) -> int:
    from llmsupervisor.link.client import connect, find_socket

    wish = {"gpu": args.gpu, "by": getpass.getuser()}
    with connect(find_socket(args, os.environ, os.getuid())) as client:
        if args.verb == "take":
            lifted = client.call("take", **wish)
            print(_lifted(lifted))
            return Exit.OK
        wish |= {"for_s": _seconds(args.length), "wait": not args.no_wait, "wait_s": args.timeout}
        for line in client.stream("lend", timeout=args.timeout + SLACK, **wish):
            print(f"{line['service']}  {line['state']}  {line.get('reason') or ''}".rstrip())
        done = "is lent; what sits there is being stopped" if args.no_wait else "is free for another job"
        print(f"GPU {args.gpu} {done}; `llmsupervisor take {args.gpu}` ends that")
        return Exit.OK


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from None


def _lifted(said: dict[str, dict[str, object] | None]) -> str:
    gpu, lent, quarantine = said["gpu"] or {}, said["lent"], said["quarantine"]
    name = f"GPU {gpu.get('uuid') if gpu.get('index') is None else gpu['index']}"
    parts = [f"was lent to {lent['by']}"] if lent else []
    parts += [f"was quarantined ({quarantine['reason']})"] if quarantine else []
    if not parts:
        return f"{name} was neither lent nor quarantined"
    return f"{name} is in use again: it {' and '.join(parts)}"

"""`advise`: what the linter has to say of what runs, from the plan and from recorded requests; `--fix` makes a change."""

from __future__ import annotations

import getpass
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from llmsupervisor.base.errors import UsageError
from llmsupervisor.cli import adviceviews
from llmsupervisor.cli.requests import duration
from llmsupervisor.cli.terminal import Output
from llmsupervisor.cli.views import Span

if TYPE_CHECKING:
    from llmsupervisor.link.advice import Advice, Fixed
    from llmsupervisor.link.client import Client

TIMEOUT = 120.0
WINDOW = 7 * 86400.0


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("service", nargs="?", help="only of this service")
    parser.add_argument("--json", action="store_true", help="as one JSON object (docs/contracts.md)")
    parser.add_argument(
        "--since",
        metavar="DURATION",
        type=duration,
        default=WINDOW,
        help="of requests of the last 12h, 7d, … (default 7d)",
    )
    parser.add_argument("--all", action="store_true", help="also what is ignored with a reason")
    parser.add_argument("--fix", metavar="ID", nargs="+", help="make the changes of these findings, such as C13:chat")
    parser.add_argument(
        "--dry-run", action="store_true", help="with --fix: show the change and what it does, make nothing"
    )
    parser.add_argument("--yes", action="store_true", help="with --fix: do not ask")


def run(args: Namespace) -> int:
    from llmsupervisor.link.client import connect, find_socket

    with connect(find_socket(args, os.environ, os.getuid())) as client:
        if args.fix:
            return _fix(args, client)
        said: Advice = client.call("advice", timeout=TIMEOUT, service=args.service, window_s=args.since)
        if args.json:
            print(json.dumps(said))
        else:
            Output().write(adviceviews.advice(said, every=args.all))
    return 0


def _fix(args: Namespace, client: Client) -> int:
    """What was looked at is what is changed: the text of the spec is named by its hash."""
    wish = {"ids": args.fix, "by": getpass.getuser(), "window_s": args.since}
    staged: Fixed = client.call("fix", timeout=TIMEOUT, dry_run=True, **wish)
    out = Output(sys.stderr if args.json else None)
    out.write(adviceviews.staged(staged))
    if args.dry_run or not (args.yes or _agreed(out)):
        if args.json:
            print(json.dumps(staged))
        return 0
    done: Fixed = client.call("fix", timeout=TIMEOUT, dry_run=False, sha256=staged["base"], **wish)
    if args.json:
        print(json.dumps(done))
    else:
        out.write([[Span(f"applied as generation {done['generation']}", "good")]])
    return 0


def _agreed(out: Output) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here: --yes makes the change, --dry-run only shows it")
    out.stream.write("make this change? [y/N] ")
    out.stream.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")

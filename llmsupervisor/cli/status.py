"""`llmsupervisor status`: what is, and what is wrong with it."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from llmsupervisor.cli import servicetable, views
from llmsupervisor.cli.terminal import Output

if TYPE_CHECKING:
    from llmsupervisor.cli.views import Line
    from llmsupervisor.link.status import Status


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the status as one JSON object (docs/contracts.md)")
    parser.add_argument("--watch", "-w", action="store_true", help="print it again each second, until Ctrl-C")


def run(args: Namespace) -> int:
    from llmsupervisor.link.client import connect, find_socket

    out = Output()
    with connect(find_socket(args, os.environ, os.getuid())) as client:
        if not args.watch:
            _print(client.call("status"), args.json, out)
            return 0
        try:
            for count, status in enumerate(client.stream("watch", interval=1.0)):
                if args.json:
                    _print(status, True, out)
                elif out.tty:
                    out.stream.write(redraw(render(status, time.time(), out), out, first=count == 0))
                    out.stream.flush()
                else:
                    out.write([*([[]] if count else []), *render(status, time.time(), out)])
        except KeyboardInterrupt:
            pass
    return 0


def render(status: Status, now: float, out: Output) -> list[Line]:
    return [
        views.daemon_line(status),
        *views.troubles(status, now),
        *servicetable.table(status, now, out.width),
    ]


def redraw(lines: list[Line], out: Output, first: bool) -> str:
    """From the top left, each line cleared behind its text, the rest of the screen cleared; never scrolls."""
    shown = [views.clip(line, out.width) for line in lines[: max(1, out.height - 1)]]
    start = "\x1b[2J\x1b[H" if first else "\x1b[H"
    return start + "".join(f"{out.format(line)}\x1b[K\n" for line in shown) + "\x1b[J"


def _print(status: Status, as_json: bool, out: Output) -> None:
    if as_json:
        sys.stdout.write(json.dumps(status) + "\n")
        sys.stdout.flush()
    else:
        out.write(render(status, time.time(), out))

"""`llmsupervisor top`: figures of all services and GPUs as text, once or again and again."""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING, cast

from llmsupervisor.cli import topview
from llmsupervisor.cli.status import redraw
from llmsupervisor.cli.terminal import Output

if TYPE_CHECKING:
    from llmsupervisor.cli.views import Line
    from llmsupervisor.link.client import Client
    from llmsupervisor.link.series import Series
    from llmsupervisor.link.status import Status

TRAIL = 900.0
"""Seconds of the small curves."""


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print it once and end, also at a terminal")
    parser.add_argument("--interval", type=_seconds, default=2.0, metavar="S", help="seconds between two looks (2)")


def run(args: Namespace) -> int:
    from llmsupervisor.link.client import connect, find_socket

    out = Output()
    with connect(find_socket(args, os.environ, os.getuid())) as client:
        if args.once:
            out.write(look(client, out))
            return 0
        first = True
        try:
            while True:
                lines = look(client, out)
                if out.tty:
                    out.stream.write(redraw(lines, out, first=first))
                    out.stream.flush()
                else:
                    out.write([*([] if first else [[]]), *lines])
                first = False
                time.sleep(args.interval)
        except KeyboardInterrupt:
            return 0


def look(client: Client, out: Output) -> list[Line]:
    status = cast("Status", client.call("status"))
    names, step = ["services.*.tokens_per_s"], TRAIL / topview.CURVE
    series = cast("Series", client.call("series", names=names, window_s=TRAIL, step_s=step))
    return topview.screen(status, series, time.time(), out.width, out.ascii)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.2 <= value <= 3600:
        raise ArgumentTypeError(f"{text}: seconds from 0.2 to 3600 are expected")
    return value

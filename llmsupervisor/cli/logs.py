"""`llmsupervisor logs`: what the runtimes said, safe to look at."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from llmsupervisor.base.text import printable
from llmsupervisor.cli.terminal import Output
from llmsupervisor.cli.views import Span


def count(text: str) -> int:
    """A number of lines from 0 up."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a number of lines, such as 100")
    return int(text)


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("service", nargs="?", metavar="SERVICE", help="may be left out where there is only one")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines, until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", type=count, default=100, metavar="N", help="how many to begin with (default: 100)"
    )
    parser.add_argument("--previous", action="store_true", help="of the start before the present one")


def run(args: Namespace) -> int:
    from llmsupervisor.link.client import connect, find_socket

    out = Output()
    wanted = {"service": args.service} if args.service else {}
    with connect(find_socket(args, os.environ, os.getuid())) as client:
        stream = client.stream(
            "logs",
            timeout=None if args.follow else 30.0,
            lines=args.lines,
            follow=args.follow,
            previous=args.previous,
            **wanted,
        )
        try:
            for item in stream:
                out.write([[Span(printable(item["text"].rstrip("\r\n")))]])
        except KeyboardInterrupt:
            pass
    return 0

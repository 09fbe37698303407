"""`llmsupervisor events`: what happened, when and why."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace

from llmsupervisor.cli import views
from llmsupervisor.cli.logs import count
from llmsupervisor.cli.terminal import Output


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new events, until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", type=count, default=100, metavar="N", help="how many to begin with (default: 100)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line (docs/contracts.md)")


def run(args: Namespace) -> int:
    from llmsupervisor.link.client import connect, find_socket

    out = Output()
    with connect(find_socket(args, os.environ, os.getuid())) as client:
        stream = client.stream("events", timeout=None if args.follow else 30.0, lines=args.lines, follow=args.follow)
        try:
            for event in stream:
                if args.json:
                    sys.stdout.write(json.dumps(event) + "\n")
                    sys.stdout.flush()
                else:
                    out.write([views.event_line(event, time.time())])
        except KeyboardInterrupt:
            pass
    return 0

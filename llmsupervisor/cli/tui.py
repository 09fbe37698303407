"""`llmsupervisor tui`: the terminal UI; Textual is imported only when it runs."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack

FAST, SLOW = 1.0, 4.0
"""Seconds between two pictures."""


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--slow", action="store_true", help="a picture each 4 s instead of each second: for thin links")
    parser.add_argument("--readonly", action="store_true", help="no order can be given from it")
    parser.add_argument(
        "--mouse",
        action="store_true",
        help="the wheel scrolls, a click selects or sorts; the terminal's own selection then needs Shift",
    )
    parser.add_argument(
        "--ssh",
        metavar="HOST",
        help="the daemon of that machine: its socket comes through ssh, the screen is drawn here",
    )
    parser.add_argument(
        "--remote",
        metavar="PROGRAM",
        default="llmsupervisor",
        help="with --ssh: llmsupervisor over there (default: the one on its PATH)",
    )
    parser.add_argument(
        "--where", action="store_true", help="print the path of the daemon's socket, and do nothing else"
    )


def run(args: Namespace) -> int:
    from llmsupervisor.link.client import find_socket
    from llmsupervisor.tui.feeds import Feeds

    def find() -> str:
        return find_socket(args, os.environ, os.getuid())

    if args.where:
        print(find())
        return 0
    with ExitStack() as stack:
        if args.ssh:
            from llmsupervisor.tui.tunnel import Tunnel

            tunnel = Tunnel(args.ssh, args.remote, os.environ)
            stack.callback(tunnel.close)
            find = tunnel.socket
        interval = SLOW if args.slow else FAST
        feeds = Feeds(find, interval, os.environ, args.readonly, args.ssh)
        # The daemon answers while Textual is imported, which takes the longest.
        feeds.start()

        from llmsupervisor.tui.app import run as run_app

        return run_app(feeds, args.mouse)

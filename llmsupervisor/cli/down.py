"""`down`: drain, stop everything, end the daemon. Works without a daemon too: it takes the lock, adopts, stops."""

from __future__ import annotations

import argparse
import getpass
import os
import sys

from llmsupervisor.base.errors import Exit, Unreachable


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="do not wait for running requests")
    parser.add_argument(
        "--unfinished", action="store_true", help="only finish a down that was begun and not finished; else do nothing"
    )


def run(args: argparse.Namespace) -> int:
    from llmsupervisor.link.client import connect, find_socket

    if args.unfinished:
        return _alone(args)
    try:
        client = connect(find_socket(args, os.environ, os.getuid()))
    except Unreachable:
        return _alone(args)
    with client:
        for item in client.stream("down", timeout=None, by=getpass.getuser(), now=args.now):
            print(f"{item['service']}  {item['state']}  {item.get('reason') or ''}".rstrip())
    return Exit.OK


def _alone(args: argparse.Namespace) -> int:
    from llmsupervisor.cli.up import Teller
    from llmsupervisor.daemon.daemon import Options, run_daemon

    options = Options.from_args(args)
    if not os.path.isdir(options.layout.run / "services"):
        print("nothing runs", file=sys.stderr)
        return Exit.OK
    teller = Teller()
    try:
        return run_daemon(options.finishing(only_unfinished=args.unfinished), teller.put)
    finally:
        teller.close()

"""`llmsupervisor requests`: every request that the gateway saw, and where its time went."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, TextIO

from llmsupervisor.base.errors import LlmsupervisorError, Unreachable, UsageError
from llmsupervisor.base.text import printable
from llmsupervisor.base.units import format_duration, parse_duration
from llmsupervisor.cli import requestviews
from llmsupervisor.cli.logs import count
from llmsupervisor.cli.terminal import Output
from llmsupervisor.cli.trace import Trace

if TYPE_CHECKING:
    from llmsupervisor.link.client import Client
    from llmsupervisor.link.requests import Live, RequestRecord

LINES = 100
FIRST = 1000
"""Records that the widths of the columns are taken from, at most."""
WINDOW = 7 * 86400.0
LOOK = 10.0
"""Seconds; the gateway tells each second."""


def duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("service", nargs="?", metavar="SERVICE", help="only requests to this one")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new requests, until Ctrl-C")
    parser.add_argument("-n", "--lines", type=count, metavar="N", help=f"the last N (default: {LINES}; export: all)")
    parser.add_argument("--since", type=duration, metavar="DURATION", help="those of the last 10m, 2h, 7d, …")
    parser.add_argument("--live", action="store_true", help="those that have not ended, now; with -f each second")
    parser.add_argument("--json", action="store_true", help="one JSON object a line (docs/contracts.md)")
    parser.add_argument(
        "--summary", action="store_true", help="lengths and times by target, and the context_length that they imply"
    )
    parser.add_argument("--export", metavar="FILE", help="a trace for replay, as Mooncake's JSON lines; - = print it")


def run(args: Namespace) -> int:
    _check(args)
    with _connect(args) as client:
        try:
            if args.summary:
                return _summary(args, client)
            if args.export:
                return _export(args, client)
            if args.live:
                return _live(args, client)
            records = _records(args, client, LINES if args.lines is None else args.lines, "end")
            return _print_json(records) if args.json else _print_table(args, records)
        except KeyboardInterrupt:
            return 0


def _check(args: Namespace) -> None:
    if sum((args.summary, bool(args.export), args.live)) > 1:
        raise UsageError("--summary, --export, --live: one at a time")
    if args.live and (args.lines is not None or args.since is not None):
        raise UsageError("--live tells all that have not ended: leave --lines and --since out")
    for option, given in (("--summary", args.summary), ("--export", args.export)):
        if given and args.follow:
            raise UsageError(f"{option} ends with what is recorded: leave --follow out")
    if args.summary and args.lines is not None:
        raise UsageError("--summary is of a time, not of a number of requests: --since 7d instead of --lines")


def _connect(args: Namespace) -> Client:
    from llmsupervisor.link.client import connect, find_socket

    try:
        return connect(find_socket(args, os.environ, os.getuid()))
    except Unreachable as error:
        raise Unreachable(f"{error}; requests are read through the daemon, and kept while it is away") from None


def _records(args: Namespace, client: Client, lines: int | None, order: str) -> Iterator[RequestRecord]:
    return client.stream(
        "requests",
        timeout=None if args.follow else 60.0,
        lines=lines,
        follow=args.follow,
        service=args.service,
        since=None if args.since is None else time.time() - args.since,
        order=order,
    )


def _live(args: Namespace, client: Client) -> int:
    out = Output()
    for said in client.stream("live", timeout=LOOK):
        found = [each for each in said["requests"] if args.service in (None, each["service"], each["model"])]
        if args.json:
            _print_json(iter(found))
        else:
            out.write(requestviews.live(found, time.time()))
        if not args.follow:
            break
    return 0


def _print_json(records: Iterator[RequestRecord] | Iterator[Live]) -> int:
    for record in records:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()
    return 0


def _print_table(args: Namespace, records: Iterator[RequestRecord]) -> int:
    out = Output()
    first = [] if args.follow else list(islice(records, FIRST))
    if not first and not args.follow:
        where = f" of {printable(args.service)}" if args.service else ""
        when = f" within {format_duration(args.since)}" if args.since is not None else ""
        print(f"no request{where} is recorded{when}", file=sys.stderr)
        return 0
    columns = requestviews.fit([requestviews.cells(record, time.time()) for record in first], out.width)
    out.write([requestviews.heading(columns, out.width)])
    out.write(requestviews.row(record, columns, time.time()) for record in first)
    for record in records:
        out.write([requestviews.row(record, columns, time.time())])
    return 0


def _summary(args: Namespace, client: Client) -> int:
    window = WINDOW if args.since is None else args.since
    said = client.call("requests_summary", timeout=60.0, service=args.service, window_s=window)
    if args.json:
        print(json.dumps(said))
    elif args.service and not said["targets"] and said["reason"] is None:
        raise LlmsupervisorError(f"no service {args.service!r} is known, and no request of one is recorded")
    else:
        Output().write(requestviews.summary(said))
    return 0


# --- export ---------------------------------------------------------------------------------------------------------


def _export(args: Namespace, client: Client) -> int:
    records = _records(args, client, args.lines, "arrival")
    if args.export == "-":
        written, left_out = _write(sys.stdout, records)
        target = "standard output"
    else:
        written, left_out = _write_file(args.export, records)
        target = printable(args.export)
    more = f"; {left_out} left out: they have no known lengths (refused, or without an answer)" if left_out else ""
    print(f"{written} requests written to {target}{more}", file=sys.stderr)
    return 0


def _write_file(path: str, records: Iterator[RequestRecord]) -> tuple[int, int]:
    """All of it, or the file as it was."""
    draft = f"{path}.part"
    try:
        with open(draft, "w", encoding="ascii") as file:
            done = _write(file, records)
        os.replace(draft, path)
    except OSError as error:
        raise LlmsupervisorError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            os.unlink(draft)
    return done


def _write(file: TextIO, records: Iterator[RequestRecord]) -> tuple[int, int]:
    """How many were written, and left out."""
    trace, written = Trace(), 0
    for record in records:
        line = trace.line(record)
        if line is not None:
            file.write(json.dumps(line) + "\n")
            written += 1
    file.flush()
    return written, trace.left_out

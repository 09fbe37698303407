"""`start stop restart drain reload leave`: one order to the daemon, and what came of it."""

from __future__ import annotations

import argparse
import getpass
import os

from llmsupervisor.base.errors import Exit, UsageError

SLACK = 10.0
"""Seconds that the daemon gets beyond the timeout to say so itself."""


def arguments(parser: argparse.ArgumentParser) -> None:
    verb = parser.prog.split()[-1]
    if verb in ("start", "stop", "restart", "drain"):
        parser.add_argument("service", nargs="?" if verb == "restart" else None, help="the name in the spec")
        parser.add_argument("--no-wait", action="store_true", help="return at once")
        parser.add_argument("--timeout", type=float, default=900.0, metavar="S", help="seconds to wait (default 900)")
    if verb in ("stop", "restart"):
        parser.add_argument("--now", action="store_true", help="do not wait for running requests")
    if verb == "restart":
        parser.add_argument("--drifted", action="store_true", help="every service whose command line is out of date")
    if verb == "reload":
        parser.add_argument("--dry-run", action="store_true", help="say what would change, change nothing")


def run(args: argparse.Namespace) -> int:
    from llmsupervisor.link.client import connect, find_socket

    with connect(find_socket(args, os.environ, os.getuid())) as client:
        if args.verb == "leave":
            client.call("leave")
            return Exit.OK
        if args.verb == "reload":
            return _reload(client.call("reload", dry_run=args.dry_run, timeout=120))
        if args.service is None and not getattr(args, "drifted", False):
            raise UsageError("restart what? name a service, or say --drifted")
        wish = {"service": args.service, "by": getpass.getuser(), "wait": not args.no_wait, "wait_s": args.timeout}
        if args.verb in ("stop", "restart"):
            wish["now"] = args.now
        if args.verb == "restart":
            wish["drifted"] = args.drifted
        for line in client.stream(args.verb, timeout=args.timeout + SLACK, **wish):
            print(f"{line['service']}  {line['state']}  {line.get('reason') or ''}".rstrip())
        return Exit.OK


def _reload(result: dict[str, object]) -> int:
    changes = result["changes"]
    assert isinstance(changes, list)
    for change in changes:
        print(f"{change['service']}  {change['action']}  {change['why']}".rstrip())
    findings = result.get("findings") or []  # an older daemon says none
    assert isinstance(findings, list)
    for found in findings:
        if found["severity"] != "info" and found["ignored"] is None:
            of = f"services.{found['service']}.{found['key']}" if found["service"] else found["key"]
            print(f"{found['severity']} {found['rule']} {of}: {found['says']}")
    if result["error"]:
        print(result["error"])
        return Exit.SPEC_INVALID
    if not changes:
        print("nothing to change")
    return Exit.OK

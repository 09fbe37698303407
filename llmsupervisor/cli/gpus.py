"""`llmsupervisor gpus`: the cards, their memory, and who holds it."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace

from llmsupervisor.cli.gpuviews import gpu_lines
from llmsupervisor.cli.terminal import Output


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the GPUs as one JSON array, null where NVML failed")


def run(args: Namespace) -> int:
    from llmsupervisor.link.client import connect, find_socket

    with connect(find_socket(args, os.environ, os.getuid())) as client:
        gpus = client.call("status")["gpus"]
    if args.json:
        sys.stdout.write(json.dumps(gpus) + "\n")
    else:
        Output().write(gpu_lines(gpus, time.time()))
    return 0

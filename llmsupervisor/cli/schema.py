"""`schema`: the JSON schema of the spec, for editors."""

from __future__ import annotations

import argparse
import json


def arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> int:
    from llmsupervisor.spec.schema import json_schema

    print(json.dumps(json_schema(), indent=1))
    return 0

"""`make bench-gateway`: the gateway beside nginx, HAProxy, aiohttp and no proxy at all, on one trivial upstream, in one run.

Client and upstream share the first core, the proxy has the last. Rounds are interleaved: each measure goes over all
proxies before the next one. Figures of one machine in one minute: compare ratios, not microseconds. Exits 1 where a
goal is missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from bench.gateway import load, proxies
from bench.gateway.report import ONCE, Round, report


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-gateway")
    parser.add_argument("--quick", action="store_true", help="one short round: under a minute, for a first look")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(proxies.ALL)}")
    args = parser.parse_args()
    rounds = args.rounds or (1 if args.quick else 3)
    names = args.only.split(",") if args.only else [n for n in proxies.ALL if not (args.quick and n in ONCE)]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    os.sched_setaffinity(0, {proxies.LOAD_CORE})
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, proxies.started(Path(folder), names) as started:
        found, idle = uvloop.run(measure(started, rounds, args.quick))
    seconds, load_average = time.monotonic() - begin, os.getloadavg()[0]
    print(f"\n{_machine()}; {seconds:.0f} s; load average {load_average:.1f}, of which 1 to 2 are ours\n")
    return report(found, idle)


async def measure(
    started: list[proxies.Proxy], rounds: int, quick: bool
) -> tuple[list[dict[str, Round]], dict[str, float]]:
    found: list[dict[str, Round]] = []
    for number in range(rounds):
        taking = [proxy for proxy in started if not (number and proxy.name in ONCE)]
        turn = number % len(taking)
        of = {proxy.name: Round() for proxy in taking}
        found.append(of)
        for what in ("one at a time", "32 at once", "200 streams", "2,000 streams"):
            for proxy in taking[turn:] + taking[:turn]:
                _say(f"round {number + 1} of {rounds}: {what}, {proxy.name}")
                mine = of[proxy.name]
                with load.quiet_collector():
                    if what == "one at a time":
                        mine.single = await load.one_at_a_time(proxy, 0.3 if quick else 0.6)
                        mine.rss = proxy.rss()
                    elif what == "32 at once":
                        mine.many = await load.at_once(proxy, 0.6 if quick else 1.2)
                    elif what == "200 streams":
                        mine.few = await load.streams(proxy, 200, 20, 1.5 if quick else 3.0)
                    else:
                        mine.crowd = await load.streams(proxy, 2000, 10, 2.5 if quick else 4.0)
    idle = {}
    for proxy in started:
        if proxy.process is not None:
            _say(f"5,000 idle connections, {proxy.name}")
            idle[proxy.name] = await load.idle(proxy, 5000)
    _say("")
    return found, idle


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{len(proxies.CORES)} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}"


def _say(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)
    elif text:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

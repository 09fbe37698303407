"""A daemon that says what a test tells it to say: real socket, real protocol, no services."""

from __future__ import annotations

import contextlib
import copy
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tui.samples import GIB

from llmsupervisor.link.frames import decode, encode

Json = dict[str, Any]
ORDERS = {"start", "stop", "restart", "drain", "reload", "lend", "take"}


class StandIn:
    def __init__(self, path: Path, services: list[Json]) -> None:
        self.path = path
        self.orders: list[Json] = []
        self.refusal: str | None = None
        self.paced = False
        """Statuses come at the interval asked for, not at once."""
        self.events: list[Json] = []
        self.plans: dict[str, Json] = {}
        self.live: list[Json] | None = None
        """None: nobody tells."""
        self.looking = 0
        """Clients that are told of them."""
        self.crashes: list[Json] = []
        self.answers: dict[str, Any] = {}
        """Results of calls that are asked for as a whole: `spec`, `advice`, …"""
        self.asked: list[str] = []
        self.old_log: list[str] = []
        """All lines of a log, for searches: also those that `logs` does not tell."""
        self.searching = threading.Event()
        """A search goes on to its end."""
        self.searching.set()
        self._requests: list[Json] = []
        self._status: Json = {
            "v": 1,
            "daemon": {
                "pid": 4700, "version": "0.1.0", "uptime_s": 3725.0, "state_dir": "/var/lib/llmsupervisor",
                "conditions": [],
                "spec": {"path": "/etc/llmsupervisor/llmsupervisor.toml", "generation": 3, "sha256": "ab", "error": None},
            },
            "gateway": None,
            "services": services,
            "gpus": [],
            "nvml": {"error": None, "time": time.time() - 1, "driver": "580.95.05"},
            "host": {
                "time": time.time() - 1, "cpu_count": 16, "cpu_busy": 0.12, "memory_total_bytes": 64 * GIB,
                "memory_available_bytes": 48 * GIB, "swap_total_bytes": 0, "swap_used_bytes": 0,
                "disks": [{"path": "/models", "services": ["chat"], "total_bytes": 932 * GIB, "free_bytes": 373 * GIB}],
                "weights": [{"service": "chat", "bytes": 5 * GIB, "cached_bytes": None}],
            },
        }  # fmt: skip
        self._logs: dict[str, list[str]] = {}
        self._news = threading.Condition()
        self._silent = False
        self._stuck: set[socket.socket] = set()
        self._round = 0
        self._peers: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.start()

    # --- what the test says ---

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def die(self) -> None:
        """As after SIGKILL: connections break, the socket file stays."""
        assert self._listener
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._news:
            peers, self._peers = self._peers, []
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def silence(self, on: bool) -> None:
        """As under SIGSTOP: connections stay, nothing comes."""
        with self._news:
            self._silent = on
            self._round += 1
            self._news.notify_all()

    def stick(self) -> None:
        """The connections that are there stay and say nothing more; new ones are served."""
        with self._news:
            self._stuck.update(self._peers)

    def say(self, *services: Json, error: str | None = None) -> None:
        with self._news:
            self._status = copy.deepcopy(self._status)
            if services:
                self._status["services"] = list(services)
            self._status["daemon"]["spec"]["error"] = error
            self._round += 1
            self._news.notify_all()

    def tell(self, **changes: Any) -> None:
        """Other keys of the status."""
        with self._news:
            self._status = {**copy.deepcopy(self._status), **changes}
            self._round += 1
            self._news.notify_all()

    def log(self, service: str, *lines: str) -> None:
        with self._news:
            self._logs.setdefault(service, []).extend(lines)
            self._round += 1
            self._news.notify_all()

    def happened(self, *events: Json) -> None:
        with self._news:
            self.events.extend(events)
            self._round += 1
            self._news.notify_all()

    def runs(self, *live: Json) -> None:
        with self._news:
            self.live = list(live)
            self._round += 1
            self._news.notify_all()

    def ended(self, *records: Json) -> None:
        with self._news:
            self._requests.extend(records)
            self._round += 1
            self._news.notify_all()

    # --- what it does ---

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with self._news:
                self._peers.append(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer, peer.makefile("rb") as lines:
            for line in lines:
                request = decode(line)
                self._answer(peer, request["id"], request["call"], request["args"])

    def _answer(self, peer: socket.socket, number: int, call: str, args: Json) -> None:
        result: Any = None
        self.asked.append(call)
        if call == "watch":
            self._watch(peer, number, args)
        elif call == "status":
            result = self._status
        elif call == "events":
            self._follow_list(peer, number, args, lambda: self.events)
        elif call == "live":
            self._look(peer, number)
        elif call == "crashes":
            for crash in self.crashes:
                if args.get("record") in (None, crash["record"]):
                    peer.sendall(encode({"id": number, "item": crash}))
        elif call == "logs":
            self._follow(peer, number, args)
        elif call == "log_search":
            self._search(peer, number, args)
        elif call == "log_at":
            lines = [{"offset": n * 10, "text": text} for n, text in enumerate(self.old_log)]
            at = args["offset"] // 10
            result = {"lines": lines[max(at - args["before"], 0) : at + args["after"] + 1]}
        elif call == "requests":
            self._follow_list(peer, number, args, lambda: self._requests)
        elif call == "plan":
            plan = self.plans.get(args["service"])
            if plan is None:
                text = f"no service {args['service']!r}"
                peer.sendall(encode({"id": number, "ok": False, "error": {"code": 2, "text": text}}))
                return
            result = {"v": 1, "services": [plan]}
        elif call in self.answers:
            if not args.get("dry_run", True):
                self.orders.append({"call": call, **args})
            result = self.answers[call]
        elif call in ORDERS:
            self.orders.append({"call": call, **args})
            if self.refusal:
                peer.sendall(encode({"id": number, "ok": False, "error": {"code": 1, "text": self.refusal}}))
                return
            result = {"generation": 4, "changes": [], "error": None} if call == "reload" else None
            if call == "take":
                result = {"gpu": {"uuid": args["gpu"], "index": 1}, "lent": {"by": "alice"}, "quarantine": None}
            if "service" in args:
                peer.sendall(encode({"id": number, "item": {"service": args["service"], "state": "STARTING"}}))
        else:
            peer.sendall(encode({"id": number, "ok": False, "error": {"code": 1, "text": f"no call {call!r}"}}))
            return
        peer.sendall(encode({"id": number, "ok": True, "result": result}))

    def _watch(self, peer: socket.socket, number: int, args: Json) -> None:
        while True:
            with self._news:
                status = None if self._silent or peer in self._stuck else self._status
            if status is not None:
                peer.sendall(encode({"id": number, "item": status}))
            time.sleep(args["interval"]) if self.paced else self._wait(0.1)

    def _follow(self, peer: socket.socket, number: int, args: Json) -> None:
        service, sent, more = args["service"], 0, True
        while more:
            more = args["follow"]
            with self._news:
                lines = self._logs.get(service, [])[sent:]
            sent += len(lines)
            for line in lines:
                old = line.startswith("earlier ")
                if not old or args.get("previous"):
                    item = {"service": service, "text": line, **({"earlier": True} if old else {})}
                    peer.sendall(encode({"id": number, "item": item}))
            if more:
                self._wait(0.1)

    def _search(self, peer: socket.socket, number: int, args: Json) -> None:
        """Tells the newest hit, then the others."""
        found = [{"file": 7, "offset": n * 10, "text": text} for n, text in enumerate(self.old_log) if re.search(args["words"], text, re.IGNORECASE)]  # fmt: skip
        found.reverse()
        sizes = {"count": len(found), "read": 1024, "of": 2048}
        peer.sendall(encode({"id": number, "item": {"hits": found[:1], "complete": None, **sizes}}))
        self.searching.wait()
        sizes["read"] = 2048
        peer.sendall(
            encode({"id": number, "item": {"hits": found[1 : args.get("most", 1000)], "complete": True, **sizes}})
        )

    def _follow_list(self, peer: socket.socket, number: int, args: Json, found: Callable[[], list[Json]]) -> None:
        sent, more = max(len(found()) - args["lines"], 0), True
        while more:
            more = args["follow"]
            with self._news:
                items = found()[sent:]
            sent += len(items)
            for item in items:
                peer.sendall(encode({"id": number, "item": item}))
            if more:
                self._wait(0.1)

    def _look(self, peer: socket.socket, number: int) -> None:
        self.looking += 1
        try:
            while True:
                with self._news:
                    live = None if self._silent else self.live
                if live is not None:
                    peer.sendall(encode({"id": number, "item": {"requests": live}}))
                time.sleep(1.0) if self.paced else self._wait(0.1)
        finally:
            self.looking -= 1

    def _wait(self, timeout: float) -> None:
        with self._news:
            seen = self._round
            self._news.wait_for(lambda: self._round != seen, timeout)

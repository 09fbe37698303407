"""A real Prometheus over a real run, and its tool."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from support import process
from support.engines import REPOSITORY, missing
from support.http import get_json, request
from support.wait import wait_until

FOLDER = REPOSITORY / "configs" / "prometheus"


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        missing(name, "Debian: apt-get install prometheus")
    return str(found)


def promtool(*words: str | Path, given: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [program("promtool"), *map(str, words)]
    return subprocess.run(command, input=given, capture_output=True, timeout=60, cwd=cwd, check=False)


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Its result now. AssertionError where it is no query."""
        answer = get_json(f"{self.url}/api/v1/query?query={quote(expression)}")
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def value(self, expression: str) -> float | None:
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None


@contextmanager
def scraping(target: str, folder: Path) -> Iterator[Prometheus]:
    """With our configuration and rules, each second."""
    text = (FOLDER / "prometheus.yml").read_text().replace("127.0.0.1:8088", target).replace("15s", "1s")
    folder.mkdir()
    shutil.copy(FOLDER / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(text)
    listen = f"127.0.0.1:{process.free_ports(1)[0]}"
    words = [
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={listen}",
    ]
    log = folder / "log"
    with log.open("wb") as output:
        child = subprocess.Popen([program("prometheus"), *words], stdout=output, stderr=output)
    try:
        found = Prometheus(f"http://{listen}")
        wait_until(lambda: _ready(found.url), 60, lambda: f"Prometheus\n{log.read_text()}")
        yield found
    finally:
        child.terminate()
        child.wait(30)


def _ready(url: str) -> bool:
    try:
        return request(f"{url}/-/ready", timeout=5)[0] == 200
    except OSError:
        return False


def panels() -> list[dict[str, Any]]:
    """Of the dashboard, without the rows."""
    dashboard = json.loads((REPOSITORY / "configs" / "grafana" / "llmsupervisor.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]

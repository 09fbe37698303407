"""The alert rules and the example configuration, as Prometheus' own tool sees them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from support.engines import REPOSITORY
from support.prometheus import FOLDER, promtool

CASES = REPOSITORY / "tests" / "fixtures" / "prometheus" / "alerts_test.yml"


def test_the_configuration_is_valid() -> None:
    done = promtool("check", "config", FOLDER / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_comes_when_it_should_and_none_where_all_is_well(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "alerts.yml", tmp_path)
    shutil.copy(CASES, tmp_path)
    done = promtool("test", "rules", CASES.name, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = set(re.findall(r"alert: (\w+)", (FOLDER / "alerts.yml").read_text()))
    assert len(alerts) >= 15 and all(f'alertname="{name}"' in CASES.read_text() for name in alerts)


def test_alerts_name_metrics_that_there_are() -> None:
    page = set(re.findall(r"`(\w+)`", (REPOSITORY / "docs" / "metrics.md").read_text()))
    named = set(re.findall(r"llmsupervisor_\w+", (FOLDER / "alerts.yml").read_text()))
    unknown = {re.sub("_(bucket|sum|count)$", "", name) for name in named} - page
    assert not unknown

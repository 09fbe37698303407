"""A plan as text, JSON and shell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from support.boxes import CARDS, GGUF, MODEL, engine, facts, planned, service

from llmsupervisor.plan.facts import Binary, File
from llmsupervisor.plan.show import service_json, shell, text, to_json

KEY = '[key]\nenv = "ENGINE_KEY"\n'


def test_every_item_stands_on_a_line_with_its_origin() -> None:
    box = facts(gpus=CARDS, environ={"LANG": "C"})
    lines = text(planned(service(gpus=[0], kv_cache_type="q8_0"), box)).splitlines()
    assert lines[0] == "chat  engine  http://127.0.0.1:18400  GPU-aaaa"
    assert lines[1] == "  argv" and "  environment" in lines
    columns = {line.index(origin) for line in lines for origin in ("spec spec.toml:6", "allow-list") if origin in line}
    assert len(columns) == 1
    assert any(line.split() == ["--kv", "q8_0", "spec", "spec.toml:6"] for line in lines)
    assert any(line.split() == ["LANG=C", "allow-list"] for line in lines)
    assert lines[-1].strip() and not any(line != line.rstrip() for line in lines)


def test_what_holds_a_service_back_is_told_last() -> None:
    box = facts(files={MODEL: File("missing"), "/srv": File("dir")})
    lines = text(planned(service(cwd="/srv", threads=64) + service("b"), box)).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  cannot start (model): services.chat.model"))
    assert lines[at - 1].startswith("  warning: services.chat.threads") and lines[at - 2] == "  cwd /srv"
    assert lines[at + 1] == "" and lines[at + 2].startswith("b  engine  http://127.0.0.1:18401  CPU")


def test_long_items_do_not_push_the_origins_away_and_escapes_are_shown() -> None:
    model = "/m/" + "x" * 200
    lines = text(planned(service(model=model, env={"A": r"\u001b[31m"}))).splitlines()
    long = next(line for line in lines if model in line)
    assert long.endswith(f"{model}  spec spec.toml:3")
    assert all(len(line) < 150 for line in lines if model not in line)
    assert r"    A='\x1b[31m'" in "\n".join(lines)


def test_json_holds_the_same_and_is_json() -> None:
    plan = planned(service(secret_env={"T": {"env": "T"}}), facts(files={MODEL: File("missing")}), engine(KEY))
    out = json.loads(json.dumps(to_json(plan)))
    chat = out["services"][0]
    assert out["v"] == 1 and chat == json.loads(json.dumps(service_json(plan.services["chat"])))
    assert chat["argv"][0]["words"] == ["/usr/bin/engine"] and chat["cwd"] is None
    secrets = {v["name"]: (v["value"], v["secret"]) for v in chat["env"] if v["secret"]}
    assert secrets == {"T": ("secret:T@missing", "env:T"), "ENGINE_KEY": ("secret:ENGINE_KEY@generated", "generated")}
    assert [r["kind"] for r in chat["refusals"]] == ["model", "secret"]


def test_the_shell_line_runs_and_holds_no_secret(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\npwd\necho "$A|$B|$C|$ENGINE_KEY|$OUTSIDE"\nfor w in "$@"; do echo "$w"; done\n')
    tool.chmod(0o755)
    (tmp_path / "it's").write_text("hunter2")
    box = facts(
        binaries={"engine": Binary(str(tool), "1")},
        files={MODEL: GGUF, str(tmp_path): File("dir")},
        secrets={("file", f"{tmp_path}/it's"): "12345678", ("env", "BB"): "12345678"},
    )
    keys = {"A": "x y'z"}
    secrets = {"B": {"file": f"{tmp_path}/it's"}, "C": {"env": "BB"}}
    plan = planned(
        service(cwd=str(tmp_path), env=keys, secret_env=secrets, extra_args=["--say", "a b"]), box, engine(KEY)
    )
    line = shell(plan.services["chat"])
    assert "hunter2" not in line
    environ = {"PATH": "/usr/bin:/bin", "BB": "bee", "OUTSIDE": "1"}
    out = subprocess.run(
        ["sh", "-c", line], env=environ, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert out[:2] == [str(tmp_path), "x y'z|hunter2|bee|replace-me|"]
    assert out[2:] == list(plan.services["chat"].words[1:])
    assert shell(planned(service()).services["chat"]).startswith("env -i ")

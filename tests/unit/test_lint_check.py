"""`check` with the linter: what a person and a program are told, exit codes, and `--fix`."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest

from llmsupervisor.cli import check
from llmsupervisor.cli.main import main
from llmsupervisor.host import files
from llmsupervisor.plan import lint

Capture = pytest.CaptureFixture[str]
SPEC = """\
# my box
[services.chat]            # the chat
runtime = "llama-server"
model = "m.gguf"
context_length = 2048
parallel = 2               # two at once
kv_cache_type = "f16"      # as ever
gpus = []
extra_args = [
  "--swa-full",            # try it
  "--seed", "1",
]
"""


@pytest.fixture(autouse=True)
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.toml"
    path.write_text(SPEC)
    return path


def run(capture: Capture, *words: str) -> tuple[int, str, str]:
    code = main(["check", "s.toml", *words])
    told = capture.readouterr()
    return code, told.out, told.err


def test_findings_are_told_with_their_place_what_to_do_and_the_source(spec: Path, capsys: Capture) -> None:
    code, out, err = run(capsys)
    assert (code, out) == (0, f"{spec}: 1 service, no errors, 2 warnings\n")
    lines = err.splitlines()
    assert lines[0].startswith(f"{spec}:7: warning C13 services.chat.kv_cache_type: the KV cache of 2 requests")
    assert lines[1].startswith('    do: kv_cache_type = "q8_0"') and lines[2].startswith(
        "    source: llama.cpp PR #7412"
    )
    assert lines[3].startswith(f"{spec}:9: warning C37 services.chat.extra_args: ") and len(lines) == 6


def test_exit_codes(spec: Path, capsys: Capture) -> None:
    assert run(capsys, "--strict")[0] == 3
    spec.write_text(SPEC.replace('"f16" ', '"q8_0"').replace('  "--swa-full",', ""))
    assert run(capsys, "--strict")[0] == 0
    spec.write_text(SPEC.replace("gpus = []", 'gpus = []\nkeep_alive = "0s"'))
    code, out, _ = run(capsys)
    assert code == 3 and "no errors in the text, 1 error in the plan, 2 warnings" in out
    spec.write_text(SPEC.replace("2048", "1000").replace('"f16" ', '"q8_0"').replace('  "--swa-full",', ""))
    code, out, _ = run(capsys, "--strict")
    assert code == 0 and "no errors, 1 remark" in out


def test_what_has_a_reason_is_counted_and_not_told(spec: Path, capsys: Capture) -> None:
    spec.write_text(SPEC.replace("# as ever", "# llmsupervisor: ignore C13, C37 small model"))
    code, out, err = run(capsys, "--strict")
    assert (code, out, err) == (0, f"{spec}: 1 service, no errors, 2 ignored with a reason\n", "")
    findings = json.loads(run(capsys, "--json")[1])["findings"]
    assert [(f["rule"], f["ignored"]) for f in findings] == [("C13", "small model"), ("C37", "small model")]


def test_json(spec: Path, capsys: Capture) -> None:
    told = json.loads(run(capsys, "--json")[1])
    assert (told["problems"], told["fixed"]) == ([], [])
    first = told["findings"][0]
    assert (first["rule"], first["severity"], first["service"], first["key"]) == (
        "C13",
        "warning",
        "chat",
        "kv_cache_type",
    )
    assert (first["file"], first["line"], first["fixable"]) == (str(spec), 7, True)
    assert first["evidence"] == {"kv_cache_type": "f16", "context_length": 2048, "parallel": 2}


def test_errors_first_then_findings_of_what_is_right(spec: Path, capsys: Capture) -> None:
    spec.write_text(SPEC + SPEC.replace("services.chat", "services.other").replace("parallel", "paralel"))
    code, out, err = run(capsys)
    lines = err.splitlines()
    assert code == 3 and not out
    assert ":14: services.other.parallel: missing" in lines[0] and ":18: services.other.paralel" in lines[1]
    assert [line.split()[2] for line in lines[2:] if ": warning " in line] == ["C13", "C37"]
    assert "services.other" not in "".join(lines[2:])
    before = spec.read_text()
    assert run(capsys, "--fix")[0] == 3 and spec.read_text() == before


def test_a_service_that_its_definition_refuses_is_left_out(spec: Path, capsys: Capture) -> None:
    spec.write_text(SPEC.replace('"f16" ', '"what"'))
    code, _, err = run(capsys)
    assert code == 3 and len(err.splitlines()) == 1


def test_fix_changes_only_what_it_says(spec: Path, capsys: Capture) -> None:
    spec.chmod(0o640)
    code, out, err = run(capsys, "--fix", "--strict")
    assert (code, out) == (0, f"{spec}: 1 service, no errors\n")
    assert [line.split(":")[0] for line in err.splitlines()] == [
        f"fixed {rule} of services.chat" for rule in ("C13", "C37")
    ]
    text = spec.read_text()
    chat = tomllib.loads(text)["services"]["chat"]
    assert (chat["kv_cache_type"], chat["extra_args"]) == ("q8_0", ["--seed", "1"])
    assert all(comment in text for comment in ("# my box", "# the chat", "# two at once", "# as ever"))
    assert spec.stat().st_mode & 0o777 == 0o640
    assert run(capsys, "--fix")[2] == "" and spec.read_text() == text


def test_fix_through_a_link_and_with_json(spec: Path, capsys: Capture) -> None:
    real = spec.rename(spec.with_name("real.toml"))
    spec.symlink_to(real)
    told = json.loads(run(capsys, "--fix", "--json")[1])
    assert [f["rule"] for f in told["fixed"]] == ["C13", "C37"] and told["findings"] == []
    assert spec.is_symlink() and "q8_0" in real.read_text()


def test_fix_keeps_what_has_a_reason(spec: Path, capsys: Capture) -> None:
    spec.write_text(SPEC.replace("# as ever", "# llmsupervisor: ignore C13 small"))
    assert run(capsys, "--fix")[0] == 0
    assert 'kv_cache_type = "f16"' in spec.read_text() and "--swa-full" not in spec.read_text()


def test_fix_leaves_what_stands_in_defaults(spec: Path, capsys: Capture) -> None:
    """And makes the other change: an input of 2048 tokens does not fit into 512."""
    text = SPEC.replace("gpus = []", 'gpus = []\ntask = "embed"\nubatch = 512').partition("extra_args")[0]
    spec.write_text('[defaults]\nextra_args = ["--swa-full"]\n' + text)
    code, _, err = run(capsys, "--fix")
    chat = tomllib.loads(spec.read_text())["services"]["chat"]
    assert code == 0 and chat["ubatch"] == 2048 and "fixed C86" in err and ":2: warning C37" in err


def test_fix_makes_no_change_that_breaks_the_spec(spec: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint, "fixed", lambda text, finding: text.replace("gpus", "gpu"))
    code, _, err = run(capsys, "--fix")
    assert code == 0 and "fixed" not in err and spec.read_text() == SPEC


def test_the_file_of_another_writer_is_not_overwritten(
    spec: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = check._facts

    def slow(found: object) -> object:
        spec.write_text(SPEC + "# somebody else\n")
        return facts(found)  # type: ignore[arg-type]

    monkeypatch.setattr(check, "_facts", slow)
    code, _, err = run(capsys, "--fix")
    assert code == 1 and "changed by somebody else" in err
    assert spec.read_text() == SPEC + "# somebody else\n"


def test_no_engine_is_run(spec: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_it(*_: object) -> None:
        raise AssertionError("asked a binary")

    monkeypatch.setattr(files, "look_at", run_it)
    assert run(capsys)[0] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_fix_leaves_the_owner(spec: Path, capsys: Capture) -> None:
    os.chown(spec, -1, 12345)
    assert run(capsys, "--fix")[0] == 0 and spec.stat().st_gid == 12345

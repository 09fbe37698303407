"""The commands that need no daemon, each as a person runs it: text, JSON, exit codes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.spec import write_gguf

from llmsupervisor.cli import init
from llmsupervisor.cli.main import VERBS, main, parser_for
from llmsupervisor.host import discover
from llmsupervisor.host.discover import Model, Server

Capture = pytest.CaptureFixture[str]
COMMAND = '[services.say]\nruntime = "command"\ncommand = ["/bin/echo", "a b", "$HOME", "{port}"]\ngpus = []\n'
WRONG = '[services.chat]\nruntime = "llama-server"\nnum_ctx = 1\nkv_cache_type = "q8"\nparallel = 2\nmodel = "m.gguf"\n'


@pytest.fixture(autouse=True)
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and nothing of this machine's settings."""
    for name in list(os.environ):
        if name.startswith(("LLMSUPERVISOR_", "HF_", "OLLAMA_", "XDG_", "STATE_", "RUNTIME_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(discover, "KNOWN_PORTS", {})
    monkeypatch.setattr(discover, "SHARED", ())
    return tmp_path


def run(capture: Capture, *words: str) -> tuple[int, str, str]:
    try:
        code = main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    told = capture.readouterr()
    return code, told.out, told.err


# --- the verbs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_that_it_understands(verb: str, capsys: Capture) -> None:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0 and f"usage: llmsupervisor {verb}" in out
    assert f"example: llmsupervisor {VERBS[verb][2]}" in " ".join(out.split())
    parser_for(verb).parse_args(VERBS[verb][2].partition(" > ")[0].split())


def test_the_list_of_verbs_and_the_version(capsys: Capture) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(f"    {verb} " in out for verb in VERBS)
    assert run(capsys, "--version")[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("bogus",),
        ("check", "--bogus"),
        ("plan", "--json", "--shell"),
        ("stop",),
        ("logs", "-n", "-1"),
        ("stop", "a", "b"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], capsys: Capture) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2 and not out and "usage: llmsupervisor" in err


@pytest.mark.parametrize("verb", ["status", "reload", "leave", "logs", "events", "gpus"])
def test_without_a_daemon(verb: str, capsys: Capture) -> None:
    code, out, err = run(capsys, verb)
    assert code == 5 and not out and err.startswith("llmsupervisor: no daemon is running") and "llmsupervisor up" in err


def test_down_without_a_daemon_and_without_services(capsys: Capture) -> None:
    assert run(capsys, "down") == (0, "", "nothing runs\n")


# --- check --------------------------------------------------------------------------------------------------------


def test_check_of_a_right_spec(box: Path, capsys: Capture) -> None:
    (box / "llmsupervisor.toml").write_text(COMMAND)
    assert run(capsys, "check") == (0, f"{box}/llmsupervisor.toml: 1 service, no errors\n", "")
    code, out, _ = run(capsys, "check", "llmsupervisor.toml", "--json")
    assert code == 0 and json.loads(out) == {
        "v": 1,
        "path": f"{box}/llmsupervisor.toml",
        "problems": [],
        "findings": [],
        "fixed": [],
    }


def test_check_tells_everything_at_once(box: Path, capsys: Capture) -> None:
    (box / "s.toml").write_text(WRONG)
    code, out, err = run(capsys, "check", "s.toml")
    keys = ["context_length", "num_ctx", "kv_cache_type"]
    assert code == 3 and not out
    assert [line.split(": ")[1] for line in err.splitlines()] == [f"services.chat.{key}" for key in keys]
    assert [line.split(":")[1] for line in err.splitlines()] == ["1", "3", "4"]
    code, out, _ = run(capsys, "check", "-c", "s.toml", "--json")
    problems = json.loads(out)["problems"]
    assert code == 3 and [p["key"] for p in problems] == [f"services.chat.{key}" for key in keys]
    assert "q8_0" in problems[2]["allowed"] and problems[2]["line"] == 4 and problems[2]["file"] == f"{box}/s.toml"


def test_check_of_what_cannot_be_read(box: Path, capsys: Capture) -> None:
    for given in ("missing.toml", "."):
        code, out, err = run(capsys, "check", given)
        assert code == 3 and not out and str(box) in err
    code, _, err = run(capsys, "check")
    assert code == 2 and "llmsupervisor init" in err


def test_check_tells_a_broken_definition_beside_the_spec(box: Path, capsys: Capture) -> None:
    (box / "llmsupervisor.toml").write_text(COMMAND)
    (box / "runtimes").mkdir()
    (box / "runtimes" / "x.toml").write_text("name = 5\n")
    code, _, err = run(capsys, "check")
    assert code == 3 and "runtimes/x.toml" in err


# --- plan ---------------------------------------------------------------------------------------------------------


def test_plan_as_text_and_json(box: Path, capsys: Capture) -> None:
    (box / "llmsupervisor.toml").write_text(COMMAND)
    code, out, err = run(capsys, "plan")
    assert code == 0 and not err and out.startswith("say  command  http://127.0.0.1:184") and "/bin/echo" in out
    code, out, _ = run(capsys, "plan", "--json")
    (service,) = json.loads(out)["services"]
    assert code == 0 and service["name"] == "say" and service["refusals"] == []
    assert [word for arg in service["argv"] for word in arg["words"]][:3] == ["/bin/echo", "a b", "$HOME"]


def test_plan_for_a_shell_runs_there(box: Path, capsys: Capture) -> None:
    (box / "llmsupervisor.toml").write_text(f'{COMMAND}cwd = "."\nenv = {{ A = "it\'s" }}\n')
    code, line, _ = run(capsys, "plan", "--shell")
    assert code == 0
    subprocess.run(["sh", "-n"], input=line, text=True, check=True)
    done = subprocess.run(["sh"], input=line, text=True, check=True, capture_output=True)
    words = done.stdout.split()
    assert words[:3] == ["a", "b", "$HOME"] and words[3].startswith("184")


def test_plan_of_what_cannot_start_here(box: Path, capsys: Capture) -> None:
    (box / "llmsupervisor.toml").write_text(COMMAND.replace("/bin/echo", "/nowhere/echo"))
    code, out, err = run(capsys, "plan")
    assert code == 4 and "/nowhere/echo" in out and err == "cannot start on this box now: say\n"


def test_plan_of_a_wrong_spec_is_its_errors(box: Path, capsys: Capture) -> None:
    (box / "llmsupervisor.toml").write_text(WRONG)
    code, out, err = run(capsys, "plan")
    assert code == 3 and not out and len(err.splitlines()) == 3


# --- schema and runtimes ------------------------------------------------------------------------------------------


def test_schema(capsys: Capture) -> None:
    code, out, _ = run(capsys, "schema")
    assert code == 0 and "services" in json.loads(out)["properties"]


def test_runtimes_list_show_and_unknown(box: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "runtimes")
    assert code == 0 and not err and all(name in out for name in ("llama-server", "vllm", "ollama", "command"))
    assert "written for 0.33.0" in out and "tested" not in out, "Ollama was never run"
    code, out, _ = run(capsys, "runtimes", "show", "vllm")
    assert code == 0 and tomllib.loads(out)["name"] == "vllm"
    for words in (("runtimes", "show", "vlm"), ("runtimes", "show")):
        code, out, err = run(capsys, *words)
        assert code == 2 and not out and "known here: command, llama-server, ollama, sglang, vllm" in err


def test_runtimes_beside_the_spec(box: Path, capsys: Capture) -> None:
    (box / "llmsupervisor.toml").write_text(COMMAND)
    (box / "runtimes").mkdir()
    (box / "runtimes" / "mine.toml").write_text('name = "mine"\ndoc = "of this box"\ncommand = ["x"]\n')
    assert "of this box" in run(capsys, "runtimes", "show", "mine")[1]
    (box / "runtimes" / "bad.toml").write_text("name = 5\n")
    code, out, err = run(capsys, "runtimes")
    assert code == 3 and "mine" in out and "bad.toml" in err and "bad.toml" not in out


# --- init ---------------------------------------------------------------------------------------------------------


def written(box: Path) -> dict[str, Any]:
    services: dict[str, Any] = tomllib.loads((box / "llmsupervisor.toml").read_text())["services"]
    return services


def test_init_with_models_given_passes_check(box: Path, capsys: Capture) -> None:
    folder = box / 'a "quoted" folder'
    folder.mkdir()
    for name in ("_Big.Model.Q4_K_M.gguf", "mmproj-x.gguf", *(f"split-0000{n}-of-00003.gguf" for n in (1, 2, 3))):
        write_gguf(folder / name)
    (box / "models").mkdir()
    write_gguf(box / "models" / "not-given.gguf")
    code, out, err = run(capsys, "init", str(folder))
    assert code == 0 and not out and "wrote llmsupervisor.toml; next: llmsupervisor check" in err
    services = written(box)
    assert sorted(services) == ["big-model-q4_k_m", "split"]
    assert services["split"]["model"] == str(folder / "split-00001-of-00003.gguf")
    assert run(capsys, "check")[0] == 0


def test_init_finds_what_lies_at_home(box: Path, capsys: Capture) -> None:
    hub = box / ".cache" / "huggingface" / "hub" / "models--org--name" / "snapshots" / "abc"
    hub.mkdir(parents=True)
    (hub / "config.json").write_text("{}")
    (hub / "model.safetensors").write_bytes(b"x" * 10)
    tags = box / ".ollama" / "models" / "manifests" / "registry.ollama.ai" / "library" / "llama3"
    tags.mkdir(parents=True)
    (tags / "8b").write_text(json.dumps({"layers": [{"size": 7}]}))
    (tags / "bad").write_text("{")
    for number in range(4):
        (box / "models" / f"m{number}").mkdir(parents=True)
        write_gguf(box / "models" / f"m{number}" / "m.gguf")
    assert run(capsys, "init")[0] == 0
    text = (box / "llmsupervisor.toml").read_text()
    assert sorted(written(box)) == ["m", "m-2", "m-3", "m-4"]
    assert f"# also found: {hub} (10 B, vllm)" in text and "# also found: llama3:8b (7 B, ollama)" in text
    assert run(capsys, "check")[0] == 0


def test_init_without_any_model_still_writes_a_valid_spec(box: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, "init")
    assert code == 0 and "no model was found" in err and list(written(box)) == ["chat"]
    assert run(capsys, "check")[0] == 0


def test_init_names_what_already_listens(box: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(discover, "KNOWN_PORTS", {port: "Ollama"})
        code, out, _ = run(capsys, "init", "-o", "-")
    assert code == 0 and f"# already runs on port {port} (usually Ollama): pid {os.getpid()}, " in out
    assert "`systemctl disable --now ollama`" in out and "or leave it alone" in out
    code, out, _ = run(capsys, "init", "-o", "-")
    assert code == 0 and "already runs" not in out


def test_init_overwrites_only_when_told(box: Path, capsys: Capture) -> None:
    path = box / "llmsupervisor.toml"
    path.write_text("mine")
    code, _, err = run(capsys, "init")
    assert code == 2 and "--force" in err and path.read_text() == "mine"
    code, out, _ = run(capsys, "init", "-o", "-")
    assert code == 0 and "[services.chat]" in out and path.read_text() == "mine"
    assert run(capsys, "init", "--force")[0] == 0 and path.read_text() == out


def test_init_that_cannot(box: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, "init", "-o", "no/such/folder.toml")
    assert code == 1 and "cannot write no/such/folder.toml: No such file" in err
    code, _, err = run(capsys, "init", "nothing.gguf")
    assert code == 2 and "nothing.gguf" in err and not (box / "llmsupervisor.toml").exists()


@pytest.mark.parametrize("gpus", [[], [(0, "RTX 4090", 24 * 1024**3)], [(0, "A", 48 * 1024**3), (1, "B", None)]])
def test_init_for_every_runtime_and_gpus_passes_check(
    gpus: list[tuple[int, str, int | None]], box: Path, capsys: Capture
) -> None:
    models = [Model("/m/a", "vllm", 5), Model("/m/b", "vllm", 4), Model("llama3:8b", "ollama", 3)]
    models += [Model("/m/c.gguf", "llama-server", 2), Model("/m/\n[x]\n.gguf", "llama-server", 1)]
    servers = [Server(11434, "Ollama", 5, "ollama\nserve"), Server(8000, "vLLM", None, "unknown program")]
    (box / "llmsupervisor.toml").write_text(init.spec_text({"vllm": "/usr/bin/vllm"}, gpus, models, servers))
    code, out, err = run(capsys, "check")
    assert code == 0 and out.startswith(f"{box}/llmsupervisor.toml: 4 services, no errors")
    found = {line.split()[2] for line in err.splitlines() if ": warning " in line or ": error " in line}
    assert found == ({"C95"} if gpus else set()), err  # on this GPU Ollama has company, and should be told
    assert [written(box)[n]["gpus"] for n in ("a", "b")] == ([[0], [len(gpus) - 1]] if gpus else [[], []])
    if len(gpus) == 1:
        assert [written(box)[n]["gpu_memory"] for n in ("a", "b")] == ["5GiB", "5GiB"]


# --- doctor -------------------------------------------------------------------------------------------------------


def findings(out: str) -> dict[str, tuple[str, str]]:
    return {f["what"]: (f["level"], f["text"]) for f in json.loads(out)["findings"]}


def test_doctor_as_text_and_json(box: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    (box / "llmsupervisor.toml").write_text(COMMAND)
    code, out, _ = run(capsys, "doctor", "--state-dir", "state")
    assert f"ok   python: {sys.version.split()[0]}" in out and "ok   say: can start on this box now" in out
    again, told, _ = run(capsys, "doctor", "--state-dir", "state", "--json")
    found = findings(told)
    assert again == code == any(level == "bad" for level, _ in found.values())
    assert {"python", "kernel", "cgroup", "memlock", "state", "spec", "say"} <= found.keys()


def test_doctor_names_what_is_bad(box: Path, capsys: Capture) -> None:
    (box / "llmsupervisor.toml").write_text(COMMAND.replace("/bin/echo", "/nowhere/echo"))
    (box / "file").write_text("")
    code, out, _ = run(capsys, "doctor", "--state-dir", "file", "--json")
    found = findings(out)
    assert code == 1 and found["say"][0] == "bad" and found["state"] == ("bad", "file cannot be written")
    (box / "llmsupervisor.toml").write_text(WRONG)
    code, out, _ = run(capsys, "doctor")
    assert code == 1 and out.count("BAD  spec: ") == 3
    (box / "llmsupervisor.toml").unlink()
    assert "note spec: no spec" in run(capsys, "doctor")[1]
    assert "BAD  spec: " in run(capsys, "doctor", "-c", "missing.toml")[1]


def test_doctor_knows_a_build_that_lacks_our_flags_and_a_server_on_a_known_port(
    box: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = box / "bin"
    tools.mkdir()
    old = tools / "llama-server"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo "version: 1.2";; *) echo "--model FNAME   path";; esac\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(discover, "KNOWN_PORTS", {port: "Ollama"})
        code, out, _ = run(capsys, "doctor", "--json")
    found = findings(out)
    level, text = found["llama-server"]
    assert code == 1 and level == "bad" and "does not know" in text and "--ctx-size" in text and "--model," not in text
    assert found[f"port {port}"][0] == "note" and f"pid {os.getpid()}" in found[f"port {port}"][1]

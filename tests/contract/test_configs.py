"""Every spec that we show plans without a refusal or a warning, with flags that the real engines know."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

import pytest
from support.boxes import engine

from llmsupervisor.base.ids import sha256
from llmsupervisor.host.files import read_definitions
from llmsupervisor.plan.check import check
from llmsupervisor.plan.facts import Binary, Facts, File, GpuFact, needs
from llmsupervisor.plan.launch import Plan
from llmsupervisor.plan.lint import lint
from llmsupervisor.plan.plan import plan
from llmsupervisor.plan.rules_doc import rules_page
from llmsupervisor.plan.settings_doc import settings_page
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.help import parse
from llmsupervisor.spec.resolve import resolve

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
GPUS = tuple(GpuFact(f"GPU-{n}", n, "RTX 4090", 24 * 1024**3, (8, 9)) for n in range(4))
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


@pytest.fixture(scope="module")
def definitions() -> dict[str, Definition]:
    found, problems = read_definitions()
    assert not problems
    return found


def planned(
    text: str, file: str, definitions: dict[str, Definition], gpus: tuple[GpuFact, ...] = GPUS, found: int = 0
) -> Plan:
    """On a box that has whatever the spec names, and four GPUs. The linter finds `found`, beside what has a written
    reason to stay."""
    checked = check(text, file, definitions)
    assert checked.spec is not None, "\n".join(map(str, checked.problems))
    spec = resolve(checked.spec, PurePosixPath("/etc/box"), PurePosixPath("/home/x"))
    wanted = needs(spec, definitions)
    facts = Facts(
        binaries={name: _binary(name) for name, _, _, _ in wanted.binaries},
        files={path: _file(path) for path in wanted.files}
        | {path: File("file", 9, path, sha256=sha256(path)) for path in wanted.contents},
        secrets=dict.fromkeys(wanted.secrets, "12345678"),
        gpus=gpus,
        cpus=64,
        memory=64 * 1024**3,
        environ={"PATH": "/usr/bin:/bin", "HOME": "/home/x"},
    )
    made = plan(spec, definitions, facts, checked.loaded.origins)
    told = [str(finding) for finding in lint(made, facts, checked.loaded) if not finding.ignored]
    assert len(told) == found, told
    return made


def _binary(name: str) -> Binary:
    flags: frozenset[str] | None = None
    values: dict[str, frozenset[str]] = {}
    if "llama-server" in name:
        flags, values = parse((FIXTURES / "llama-server" / "help.txt").read_text())
    elif name.endswith("vllm"):
        flags = frozenset(re.findall(r"--[a-z][\w-]*", (FIXTURES / "vllm" / "flags.txt").read_text()))
    return Binary(name if name.startswith("/") else f"/usr/bin/{name}", "1:1:1:1", "1", flags, values)


def _file(path: str) -> File:
    if path.endswith(".gguf"):
        return File("file", 5000, path, head=b"GGUF\x03\x00\x00\x00")
    return File("file", 500, path, head=b"{}") if path.endswith("/config.json") else File("dir", identity=path)


def settled(plan: Plan) -> None:
    told = [refusal.text for service in plan.services.values() for refusal in service.refusals]
    assert told == [] and plan.services
    assert [warning for service in plan.services.values() for warning in service.warnings] == []
    assert all(service.words[0].startswith("/") for service in plan.services.values())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.name))
def test_each_config_plans(path: Path, definitions: dict[str, Definition]) -> None:
    """With the command lines that are expected of it; UPDATE_GOLDEN=1 writes them anew."""
    made = planned(path.read_text(), f"configs/{path.name}", definitions)
    settled(made)
    found = "\n".join(
        f"[{name}]\n" + "".join(" ".join(arg.words) + "\n" for arg in each.argv) for name, each in made.services.items()
    )
    golden = ROOT / "tests" / "golden" / "configs" / f"{path.stem}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(found)
    assert found == golden.read_text()


@pytest.mark.parametrize(
    ("card", "capability", "taken"),
    [("RTX 4090", (8, 9), True), ("L4", (8, 9), True), ("RTX 3090", (8, 6), False), ("A10", (8, 6), False)],
)
def test_the_card_decides_about_fp8(
    card: str, capability: tuple[int, int], taken: bool, definitions: dict[str, Definition]
) -> None:
    text = (ROOT / "configs" / "llama-3.1-8b-vllm.toml").read_text()
    gpus = (GpuFact("GPU-0", 0, card, 24 * 1024**3, capability),)
    refusals = planned(text, "llama-3.1-8b-vllm.toml", definitions, gpus, not taken).services["chat"].refusals
    assert [refusal.kind for refusal in refusals] == ([] if taken else ["capability"])
    assert all(f"({card}) has 8.6; on this card: auto, float16, bfloat16" in refusal.text for refusal in refusals)


def test_the_ollama_of_the_readme_plans(definitions: dict[str, Definition]) -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Ollama\n")[2].partition("\n## ")[0]
    text = section.partition("```toml\n")[2].partition("```")[0]
    settled(planned(text, "README.md", definitions))
    assert all(f"`{key}" in section for key in ("context_length", "file", "pull", "preload", "keep_alive"))


def example() -> str:
    page = (ROOT / "docs" / "architecture.md").read_text()
    return page.partition("## Spec\n```toml\n")[2].partition("```")[0]


def test_the_example_of_the_architecture_plans(definitions: dict[str, Definition]) -> None:
    services = planned(example(), "architecture.md", definitions).services
    settled(Plan(services))
    env = {name: {e.name: e.value for e in service.env} for name, service in services.items()}
    assert {n: (e["CUDA_DEVICE_ORDER"], e["CUDA_VISIBLE_DEVICES"]) for n, e in env.items()} == {
        "chat": ("PCI_BUS_ID", "GPU-0"),
        "ollama": ("PCI_BUS_ID", "GPU-1"),
        "big": ("PCI_BUS_ID", "GPU-2,GPU-3"),
    }
    assert {n: (s.words[0], s.port) for n, s in services.items()} == {
        "chat": ("/usr/bin/llama-server", 18400),
        "ollama": ("/usr/bin/ollama", 18401),
        "big": ("/opt/vllm-0.32/bin/vllm", 18402),
    }


def test_the_page_of_settings_is_what_the_code_says(definitions: dict[str, Definition]) -> None:
    page = ROOT / "docs" / "settings.md"
    told = settings_page(definitions)
    if os.environ.get("LLMSUPERVISOR_WRITE_DOCS"):
        page.write_text(told)
    assert page.read_text() == told, "write it anew: LLMSUPERVISOR_WRITE_DOCS=1 pytest tests/contract/test_configs.py"


def test_the_page_of_rules_is_what_the_rules_say() -> None:
    page = ROOT / "docs" / "rules.md"
    told = rules_page()
    if os.environ.get("LLMSUPERVISOR_WRITE_DOCS"):
        page.write_text(told)
    assert page.read_text() == told, "write it anew: LLMSUPERVISOR_WRITE_DOCS=1 pytest tests/contract/test_configs.py"


def test_a_definition_without_notes_has_its_place_on_the_page() -> None:
    assert settings_page(engine()).endswith("\n\n## bare\n\nfor tests\n\n## engine\n\nfor tests\n")

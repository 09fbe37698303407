"""The tables of `docs/memory.md` are what the command prints."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from support.gguf_files import decoder, write

from llmsupervisor.cli.main import main
from llmsupervisor.plan.shapes import SHAPES
from llmsupervisor.plan.tables import of_model, wrong

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
TABLE = re.compile(r"(<!-- table -->\n)(.*)(<!-- end -->)", re.DOTALL)


def test_the_tables_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model-shape", "llama-3.1-8b", "--vram", "24GiB", "--table"]) == 0
    told = re.sub(r"^## .*\n\n", "", capsys.readouterr().out)
    page = PAGE.read_text()
    if os.environ.get("LLMSUPERVISOR_WRITE_DOCS"):
        page = TABLE.sub(lambda found: found[1] + told + found[3], page)
        PAGE.write_text(page)
    found = TABLE.search(page)
    assert found and found[2] == told, (
        "write it anew: LLMSUPERVISOR_WRITE_DOCS=1 pytest tests/contract/test_memory_doc.py"
    )


def test_known_figures() -> None:
    """Of the published files; vLLM logs 14.9888 GiB for the one in bf16 (vLLM #10517)."""
    model = SHAPES["llama-3.1-8b"].known()
    sizes = {name: header.weight_bytes for name, header in model.ggufs.items()}
    assert sizes == {"Q4_K_M": 4_912_898_304, "Q8_0": 8_532_934_912, "F16": 16_061_055_232}
    assert model.hubs["bf16"].weight_bytes / 1024**3 == pytest.approx(14.9888, abs=0.04)
    assert "| Q8_0, q8_0 |" in of_model(model, 24 * 1024**3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model-shape", "llama-3.1-8b", "--table"], "--vram 24GiB"),
        (["--model-shape", "gpt-9", "--vram", "24GiB", "--table"], "known: llama-3.1-8b"),
        (["--model-shape", __file__, "--vram", "24GiB", "--table"], "test_memory_doc.py: "),
        (["--model-shape", "llama-3.1-8b", "--vram", "much", "--table"], "--vram: "),
    ],
)
def test_what_the_command_asks_for(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", SHAPES)
def test_every_known_model_has_sums(name: str) -> None:
    assert not wrong(SHAPES[name].known())


def test_a_model_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A GGUF file, and a folder as the Hub has it."""
    words = ["--vram", "24GiB", "--table"]
    path = write(decoder("qwen3", qk_norm=True, head=128, layers=2, context=40960), tmp_path / "own.gguf")
    assert main(["plan", "--model-shape", str(path), *words]) == 0
    told = capsys.readouterr().out
    assert "## own.gguf on 24.0 GiB" in told and "| vLLM, " not in told
    (row,) = re.findall(r"\| the file, q8_0 \|.*", told)
    assert row.endswith(" | – |") and row.count("–") == 1, "128k, and it was trained for 40k"
    write(decoder("falcon"), path)
    assert main(["plan", "--model-shape", str(path), *words]) == 2
    assert "own.gguf: " in capsys.readouterr().err
    config = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    header = b'{"model.norm.weight": {"dtype": "BF16", "shape": [64], "data_offsets": [0, 128]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(128))
    assert main(["plan", "--model-shape", str(tmp_path), *words]) == 0
    assert "| its files, fp8 |" in capsys.readouterr().out

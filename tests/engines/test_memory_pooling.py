"""Our sums of embedding and reranking servers against what llama-server allocates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.encoders import bert, gemma_embedding
from support.gguf_files import Model, decoder, write
from support.oracle import COMPUTE, MIB, header_of, server_log

from llmsupervisor.plan.memory import Memory, Settings, estimate

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

QWEN3 = decoder("qwen3", qk_norm=True, head=128)
CASES: dict[str, tuple[Model, dict[str, Any]]] = {
    "bert": (bert(), {}),
    "bert without flash attention": (bert(), {"flash_attention": False}),
    "bert mean": (bert(), {"pooling": "mean", "parallel": 2, "context_length": 256}),
    "bert that ranks": (bert(ranks=True), {"pooling": "rank"}),
    "nomic-bert": (bert("nomic-bert"), {}),
    "gemma-embedding": (gemma_embedding(), {"parallel": 2}),
    "gemma-embedding without flash attention": (gemma_embedding(), {"flash_attention": False}),
    "qwen3 none": (QWEN3, {}),
    "qwen3 last": (QWEN3, {"pooling": "last", "parallel": 4}),
    "qwen3 that ranks": (QWEN3, {"pooling": "rank"}),
    "llama mean": (decoder(vocabulary=4096), {"pooling": "mean", "parallel": 2, "flash_attention": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_llama_server_allocates(name: str, tmp_path: Path) -> None:
    model, said = CASES[name]
    settings = Settings(**{"context_length": 512, "batch": 512, **said}, embedding=True)
    path, kind = write(model, tmp_path / "model.gguf"), settings.pooling
    flags = ["--reranking"] if kind == "rank" else ["--embeddings", *(["--pooling", kind] if kind else [])]
    usual = ["-m", path, "-c", settings.tokens, "-np", settings.parallel, "-b", 512, "--no-kv-unified"]
    text = server_log([*usual, *flags], tmp_path, COMPUTE, flash=settings.flash_attention)
    memory = estimate(header_of(path), settings)
    assert isinstance(memory, Memory) and memory.exact, memory
    ours = {part.name: part.bytes / MIB for part in memory.parts}
    assert float(re.findall(COMPUTE, text)[-1]) == pytest.approx(ours["compute"], abs=0.006)

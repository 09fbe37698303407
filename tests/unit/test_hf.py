"""Models in Hugging Face's layout: what is read of them, and that no bytes break the reader."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsupervisor.host.headers import Headers
from llmsupervisor.plan.gguf import GgufError
from llmsupervisor.plan.hf import (
    MAX_HEADER,
    HfError,
    HfModel,
    file_names,
    header_length,
    read_config,
    read_index,
    read_tensors,
)

TENSOR = {"dtype": "BF16", "shape": [4, 2], "data_offsets": [0, 16]}


def safetensors(path: Path, header: Any, data: int) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + data)
    return path


def folder(path: Path, **files: Any) -> Path:
    (path / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    for name, header in (files or {"model": {"a": TENSOR}}).items():
        safetensors(path / f"{name}.safetensors", header, 16)
    return path


def test_tensors_of_a_folder(tmp_path: Path) -> None:
    headers = Headers()
    found = headers.folder(
        str(folder(tmp_path, one={"__metadata__": {"format": "pt"}, "a": TENSOR}, two={"b": TENSOR}))
    )
    assert isinstance(found, HfModel)
    assert [(t.name, t.shape, t.bytes) for t in found.tensors] == [("a", (4, 2), 16), ("b", (4, 2), 16)]
    assert found.weight_bytes == 32 and found.number("missing", "num_hidden_layers") == 2
    assert headers.folder(str(tmp_path)) is found, "the same content is the same object"
    index = {"weight_map": {"a": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    only = headers.folder(str(tmp_path))
    assert isinstance(only, HfModel) and only.weight_bytes == 16


def test_a_model_of_several_says_its_numbers_inside() -> None:
    assert HfModel({"text_config": {"hidden_size": 8, "flag": True}}, ()).number("flag", "hidden_size") == 8


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    def wrong() -> str:
        found = Headers().folder(str(tmp_path))
        assert isinstance(found, HfError)
        return str(found)

    assert "cannot be read" in wrong()
    (tmp_path / "config.json").write_text("[]")
    assert "config.json is no JSON object" in wrong()
    (tmp_path / "config.json").write_text("{}")
    assert "holds no safetensors files" in wrong()
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"1234")
    assert "shorter than 8 bytes" in wrong()
    file.write_bytes((2**40).to_bytes(8, "little"))
    assert f"its header claims {2**40} bytes" in wrong()
    file.write_bytes((100).to_bytes(8, "little") + b"{}")
    assert "cut off inside its header" in wrong()
    safetensors(file, {"a": TENSOR}, 15)
    assert "is cut off" in wrong() and "copy it again" in wrong()
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in wrong()
    (tmp_path / "model.safetensors.index.json").write_bytes(b" " * (16 * 1024**2 + 1))
    assert "larger than" in wrong()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to(tmp_path / "fifo")
    assert "is not a file" in wrong()


@pytest.mark.parametrize(
    "entry",
    [
        5,
        {},
        TENSOR | {"shape": [-1]},
        TENSOR | {"shape": [2**62, 2**62]},
        TENSOR | {"shape": [1] * 9},
        TENSOR | {"shape": [True]},
        TENSOR | {"data_offsets": [16, 0]},
        TENSOR | {"data_offsets": [0, 2**70]},
        TENSOR | {"data_offsets": [0]},
    ],
)
def test_a_tensor_that_is_none(entry: Any) -> None:
    found = read_tensors(json.dumps({"a\x1b": entry}).encode(), 10**6)
    assert isinstance(found, HfError) and "is not described" in found.wrong and "\x1b" not in found.wrong


def test_bounds() -> None:
    assert isinstance(read_tensors(json.dumps(dict.fromkeys(map(str, range(200_001)))).encode(), 9), HfError)
    assert isinstance(read_tensors(b"[" * 10**6, 9), HfError), "too deep"
    assert isinstance(read_config(b"1" * 10**5), HfError)
    assert isinstance(file_names(f"{n}.safetensors" for n in range(1001)), HfError)
    assert isinstance(file_names(["../../etc/shadow"]), HfError) and isinstance(file_names(["a.bin"]), HfError)
    assert read_index(json.dumps({"weight_map": {"a": "b.safetensors", "c": 5}}).encode()) == ("b.safetensors",)
    assert isinstance(read_index(b"x"), HfError)
    assert header_length((MAX_HEADER).to_bytes(8, "little")) == MAX_HEADER


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=200)
    | st.dictionaries(st.text(max_size=4), ANY, max_size=4).map(lambda d: json.dumps(d).encode())
)
def test_no_bytes_break_it(data: bytes) -> None:
    for read in (lambda: read_tensors(data, 1000), lambda: read_config(data), lambda: read_index(data)):
        assert read() is not None
    assert header_length(data) is not None


# --- Ollama's manifests ---


def test_weights_by_the_manifest(tmp_path: Path) -> None:
    def found(layers: Any, name: str = "m:latest") -> str:
        (tmp_path / "manifests/registry.ollama.ai/library/m").mkdir(parents=True, exist_ok=True)
        manifest = tmp_path / "manifests/registry.ollama.ai/library/m/latest"
        manifest.write_text(json.dumps({"layers": layers}))
        read = Headers().tag((str(tmp_path), name), None)
        assert isinstance(read, GgufError)
        return read.wrong

    weights = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:ab"}
    assert f"{tmp_path}/blobs/sha256-ab: cannot be read" in found([{"mediaType": "x"}, weights])
    assert "does not name one file" in found([]) and "does not name one file" in found([weights, weights])
    assert "does not name one file" in found([weights | {"digest": "../../etc/shadow"}])
    assert "cannot be read" in found(5) and "cannot be read" in found([5]) and "cannot be read" in found([], "n:latest")
    assert "is no name of a model" in found([], "../x:latest")
    missing = Headers().tag(("", "m:latest"), None)
    assert isinstance(missing, GgufError) and "HOME is not set" in missing.wrong
    assert Headers().weights(("", "m:latest"), None) == missing
    (tmp_path / "manifests/registry.ollama.ai/library/m/latest").write_text(json.dumps({"layers": [weights]}))
    assert Headers().weights((str(tmp_path), "m:latest"), None) == f"{tmp_path}/blobs/sha256-ab"
    home = Headers().tag(("", "you/m:1"), "/h")
    assert isinstance(home, GgufError) and "/h/.ollama/models/manifests/registry.ollama.ai/you/m/1" in home.wrong

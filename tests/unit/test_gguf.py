"""The header reader: what a file says, and everything that a file may do to its reader."""

from __future__ import annotations

import os
import struct
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gguf_files import Type, decoder, gpt_oss, lfm2, write

from llmsupervisor.host.headers import Headers
from llmsupervisor.plan.ggml_types import TYPES
from llmsupervisor.plan.gguf import MAX_KEPT_STRING, MAX_KEYS, MAX_TENSORS, GgufError, GgufHeader, join, read_header
from llmsupervisor.plan.memory import Settings, estimate, kv_bytes_per_token
from llmsupervisor.plan.memory_shape import shape_of

HUGE = 2**60


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def array(item: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", item, count) + payload


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(dims) if n_dims is None else n_dims)
        + b"".join(struct.pack("<Q", d) for d in dims)
        + struct.pack("<IQ", kind, offset)
    )


def file(
    *keys: bytes, tensors: tuple[bytes, ...] = (), n_keys: int | None = None, n_tensors: int | None = None
) -> bytes:
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(keys) + b"".join(tensors)


U32, STRING, ARRAY = 4, 8, 9
NAMED = key("general.architecture", STRING, text("llama"))
ALIGNMENT = "general.alignment"


def error(data: bytes) -> GgufError:
    found = read_header(data)
    assert isinstance(found, GgufError), found
    return found


def header(data: bytes) -> GgufHeader:
    found = read_header(data)
    assert isinstance(found, GgufHeader), found
    return found


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (b"", "truncated", "magic"),
        (b"GGU", "truncated", "magic"),
        (b"PK\x03\x04" + bytes(40), "broken", "not a GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "broken", "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "broken", "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "unsupported", "version 4"),
        (file(n_keys=HUGE), "broken", f"at most {MAX_KEYS}"),
        (file(n_tensors=HUGE), "broken", f"at most {MAX_TENSORS}"),
        (file(n_keys=2**64 - 1), "broken", "keys"),
        (file(NAMED, n_keys=2), "truncated", "key 2"),
        (file(struct.pack("<Q", HUGE)), "broken", "claims"),
        (file(struct.pack("<Q", 60_000)), "truncated", "key 1"),
        (file(key("", U32, bytes(4))), "broken", "empty"),
        (file(NAMED, NAMED), "broken", "twice"),
        (file(key("a", 13, bytes(8))), "broken", "type 13"),
        (file(key("a", STRING, struct.pack("<Q", HUGE))), "broken", "claims"),
        (file(key("a", ARRAY, array(STRING, HUGE // 2))), "truncated", "items"),
        (file(key("a", ARRAY, array(STRING, 2**64 - 1))), "broken", "claims"),
        (file(key("a", ARRAY, array(STRING, 2, text("x") + struct.pack("<Q", HUGE)))), "truncated", "items"),
        (file(key("a", ARRAY, array(U32, HUGE))), "truncated", "items"),
        (file(key("a", ARRAY, array(U32, 2**64 - 1))), "broken", "claims 18446744073709551615 items"),
        (file(key("a", ARRAY, array(U32, 1000))), "truncated", "items"),
        (file(key("a", ARRAY, array(ARRAY, 1, array(U32, 1, bytes(4))))), "broken", "array of type 9"),
        (file(key("a", ARRAY, array(99, 1))), "broken", "array of type 99"),
        (file(key(ALIGNMENT, U32, struct.pack("<I", 0))), "broken", "alignment"),
        (file(key(ALIGNMENT, U32, struct.pack("<I", 48))), "broken", "power of 2"),
        (file(key(ALIGNMENT, STRING, text("32"))), "broken", "alignment"),
        (file(key(ALIGNMENT, 7, b"\x01")), "broken", "alignment"),
        (file(tensors=(tensor("x", (1,), n_dims=5),)), "broken", "5 dimensions"),
        (file(tensors=(tensor("x" * 64, (1,)),)), "broken", "at most 63"),
        (file(tensors=(tensor("x", (2**63,)),)), "broken", "impossible shape"),
        (file(tensors=(tensor("x", (2**32, 2**32)),)), "broken", "impossible shape"),
        (file(tensors=(tensor("x", (2**62,)),)), "broken", "impossible size"),
        (file(tensors=(tensor("x", (33,), kind=8),)), "broken", "multiple of 32"),
        (file(tensors=(tensor("x", (), kind=8),)), "broken", "multiple of 32"),
        (file(tensors=(tensor("x", (32,), kind=4),)), "unsupported", "type 4"),
        (file(tensors=(tensor("x", (32,), kind=2**31),)), "unsupported", "type"),
        (file(tensors=(tensor("x", (8,), offset=32),)), "broken", "lies at 32"),
        (file(tensors=(tensor("x", (9,)), tensor("y", (1,), offset=36))), "broken", "end at 64"),
        (file(tensors=(tensor("x", (8,)), tensor("x", (8,), offset=32))), "broken", "twice"),
        (file(tensors=(tensor("x", (2**60,)), tensor("y", (2**60,), offset=2**62))), "broken", "beyond any file"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, kind: str, said: str) -> None:
    found = error(data)
    assert (found.kind, said in found.wrong) == (kind, True), found


def test_foreign_text_is_shown_without_what_a_terminal_obeys() -> None:
    found = error(file(key("a\x1b[2J\u202e", U32, bytes(4)), key("a\x1b[2J\u202e", U32, bytes(4))))
    assert "\x1b" not in str(found) and "\u202e" not in str(found)


VALID = file(
    NAMED,
    key("llama.block_count", U32, struct.pack("<I", 2)),
    key("llama.attention.head_count_kv", ARRAY, array(5, 2, struct.pack("<ii", 8, 0))),
    key("llama.rope.freq_base", 6, struct.pack("<f", 10000.0)),
    key("tokenizer.ggml.tokens", ARRAY, array(STRING, 3, text("a") + text("") + text(b"\xff"))),
    key("tokenizer.ggml.scores", ARRAY, array(6, 3, bytes(12))),
    key("flag", 7, b"\x01"),
    key("big", 10, struct.pack("<Q", 2**63)),
    tensors=(tensor("token_embd.weight", (64, 3), kind=8), tensor("blk.1.attn_q.weight", (3, 2), offset=224)),
)


def test_what_a_file_says() -> None:
    found = header(VALID)
    assert (found.architecture, found.n_layers, found.heads_kv) == ("llama", 2, (8, 0))
    assert found.vocabulary == 3
    assert found.values["llama.rope.freq_base"] == 10000.0
    assert found.values["flag"] is True
    assert "tokenizer.ggml.tokens" not in found.values
    assert [(t.name, t.bytes, t.layer) for t in found.tensors] == [
        ("token_embd.weight", 204, None),
        ("blk.1.attn_q.weight", 24, 1),
    ]
    assert found.data_offset % 32 == 0 and 0 <= found.data_offset - len(VALID) < 32
    assert found.data_bytes == 224 + 32
    assert found.bytes_by_type() == {"q8_0": 204, "f32": 24}
    assert (found.heads, found.context_train, found.embedding) == (None, None, None)


def test_of_a_long_text_only_its_length_is_kept() -> None:
    long, most = "x" * (MAX_KEPT_STRING + 1), "y" * MAX_KEPT_STRING
    found = header(file(key("long", STRING, text(long)), key("most", STRING, text(most)), NAMED))
    assert "long" not in found.values and found.values["most"] == most and found.architecture == "llama"
    assert found.lengths == {"long": len(long), "most": len(most), "general.architecture": 5}


def test_a_figure_of_another_type_is_unknown() -> None:
    for payload in (key("llama.block_count", STRING, text("2")), key("llama.block_count", 5, struct.pack("<i", -1))):
        assert header(file(NAMED, payload)).n_layers is None


@pytest.mark.parametrize("end", range(len(VALID)))
def test_every_beginning_is_truncated(end: int) -> None:
    assert error(VALID[:end]).kind == "truncated"


@pytest.mark.parametrize(
    "data",
    [
        file(n_keys=HUGE),
        file(n_tensors=MAX_TENSORS),
        file(struct.pack("<Q", HUGE)),
        file(key("a", ARRAY, array(U32, HUGE))),
        file(key("a", ARRAY, array(STRING, HUGE // 2))),
        file(key("a", ARRAY, array(STRING, HUGE // 2, bytes(1 << 20)))),
        file(key("a", ARRAY, array(0, 1 << 20, bytes(1 << 20)))),
        file(NAMED, key("llama.block_count", U32, struct.pack("<I", 2**32 - 1))),
    ],
)
def test_a_claim_takes_neither_memory_nor_time(data: bytes) -> None:
    began = time.process_time()
    tracemalloc.start()
    try:
        found = read_header(data)
        if isinstance(found, GgufHeader):
            assert found.heads is None
            shape_of(found)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    spent = time.process_time() - began
    assert peak < 1 << 20
    assert spent < 1 or spent < 5 * honest()


def honest() -> float:
    """Seconds for as many strings as the longest of them has, and says that it has."""
    data = file(key("a", ARRAY, array(STRING, 1 << 17, bytes(1 << 20))))
    began = time.process_time()
    tracemalloc.start()
    try:
        read_header(data)
    finally:
        tracemalloc.stop()
    return time.process_time() - began


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value(data: bytes) -> None:
    assert isinstance(read_header(b"GGUF" + struct.pack("<I", 3) + data), GgufHeader | GgufError)


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(VALID)))
def test_any_damage_gives_a_value(damage: list[tuple[int, int]], end: int) -> None:
    data = bytearray(VALID)
    for at, byte in damage:
        data[at] = byte
    found = read_header(bytes(data[:end]) if end % 3 == 0 else bytes(data))
    assert isinstance(found, GgufHeader | GgufError)
    if isinstance(found, GgufHeader):
        estimate(found, Settings(1024))


NUMBERS = st.one_of(
    st.integers(0, 4), st.sampled_from([32, 64, 128, 4096, 2**31, 2**32 - 1, 2**63]), st.booleans(), st.floats()
)
VALUES = st.one_of(NUMBERS, st.just("text"), st.lists(NUMBERS, max_size=6).map(tuple))


@given(st.data())
def test_any_figures_give_a_sum_or_a_reason(data: st.DataObject) -> None:
    """A file whose keys contradict its tensors: no exception, no long work."""
    model = data.draw(st.sampled_from(MODELS))
    values = dict(model.values)
    keys = sorted(k for k in values if k != "general.architecture")
    for name in data.draw(st.lists(st.sampled_from(keys), max_size=4)):
        values[name] = data.draw(VALUES)
    settings = Settings(
        context_length=data.draw(st.sampled_from([1, 100, 8192])),
        parallel=data.draw(st.sampled_from([1, 3])),
        flash_attention=data.draw(st.booleans()),
        gpus=data.draw(st.sampled_from([(), (1.0,), (1.0, 3.0)])),
        gpu_layers=data.draw(st.sampled_from([None, 0, 2, 99])),
    )
    damaged = replace(model, values=values)
    estimate(damaged, settings)
    kv_bytes_per_token(damaged, "f16", "q8_0")


def written(model: Any) -> GgufHeader:
    with tempfile.TemporaryDirectory() as folder:
        path = write(model, Path(folder) / "m.gguf")
        with path.open("rb") as opened:
            return header(opened.read(1 << 20))


MODELS = [
    written(model)
    for model in (
        decoder(layers=2),
        decoder("gemma3", layers=2, qk_norm=True, post_norms=True, keys={"attention.sliding_window": 512}),
        decoder("qwen3moe", layers=2, qk_norm=True, experts=4, experts_used=2, ff_exp=128),
        gpt_oss(layers=2),
        lfm2(kv=(0, 2)),
    )
]


def test_as_another_reader_reads_it(tmp_path: Path) -> None:
    path = write(decoder("qwen3moe", qk_norm=True, experts=4, experts_used=2, ff_exp=128), tmp_path / "m.gguf")
    ours = Headers().read([str(path)])
    assert isinstance(ours, GgufHeader), ours
    theirs = gguf.GGUFReader(path)
    assert [(t.name, t.shape, t.bytes) for t in ours.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.n_bytes) for t in theirs.tensors
    ]
    assert ours.data_offset == theirs.data_offset
    for name, field in theirs.fields.items():
        if name in ours.values:
            said = field.contents()
            assert ours.values[name] == (tuple(said) if isinstance(said, list) else said)
    assert ours.lengths["tokenizer.ggml.tokens"] == len(theirs.fields["tokenizer.ggml.tokens"].contents())


# --- files ---


def test_a_long_header_is_read_in_pieces_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(decoder(vocabulary=120_000), tmp_path / "m.gguf")
    headers, reads = Headers(), []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: reads.append((at, n)) or real(fd, n, at))
    found = headers.read([str(path)])
    assert isinstance(found, GgufHeader) and found.vocabulary == 120_000
    assert max(at + n for at, n in reads) <= 8 << 20 < path.stat().st_size
    reads.clear()
    assert headers.read([str(path)]) is not None and not reads
    os.utime(path, ns=(1, 1))
    assert isinstance(headers.read([str(path)]), GgufHeader) and reads


def test_a_file_cut_off(tmp_path: Path) -> None:
    path = write(decoder(), tmp_path / "m.gguf")
    whole = path.stat().st_size
    for size in (whole - 32 * 1024, 3000, 0):
        os.truncate(path, size)
        found = Headers().read([str(path)])
        assert isinstance(found, GgufError) and found.kind == "truncated", found
        assert str(path) in found.wrong and ("cut off" in found.wrong or "empty" in found.wrong)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "fifo", ".", "nul\0byte"):
        found = Headers().read([f"{tmp_path}/{name}"])
        assert isinstance(found, GgufError) and found.kind == "broken", name


def test_parts_of_a_split_file() -> None:
    def part(number: int, name: str, count: int = 2, tensors: int = 2) -> GgufHeader:
        numbers = {"split.no": number, "split.count": count, "split.tensors.count": tensors}
        return header(
            file(
                NAMED,
                *(key(k, U32, struct.pack("<I", v)) for k, v in numbers.items()),
                tensors=(tensor(name, (8,)),),
            )
        )

    whole = join([part(0, "a"), part(1, "b")])
    assert isinstance(whole, GgufHeader) and [t.name for t in whole.tensors] == ["a", "b"]
    for parts, said in (
        ([], "no part"),
        ([part(0, "a")], "2 parts; 1"),
        ([part(1, "a"), part(0, "b")], "part 1 of 2 says that it is part 2"),
        ([part(0, "a"), part(1, "a")], "in two parts"),
        ([part(0, "a", tensors=3), part(1, "b")], "of 3 tensors"),
    ):
        found = join(parts)
        assert isinstance(found, GgufError) and said in found.wrong, (said, found)


def test_types_are_as_the_package_has_them() -> None:
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        if kind != Type.Q8_1:  # the package has 40; `ggml-common.h` asserts 36; no file holds it
            assert TYPES[int(kind)][1:] == (block, size), kind

"""What each architecture keeps per layer: windows, states and shared caches, figured by hand from the header's numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.gguf_files import decoder, header, lfm2

from llmsupervisor.plan.memory_shape import Layer, NoFormula, Shape, shape_of


def shape(architecture: str, keys: dict[str, Any] | None = None, **more: Any) -> Shape:
    found = shape_of(header(decoder(architecture, keys=keys, **more)))
    assert isinstance(found, Shape), found
    return found


def marks(of: Shape) -> str:
    """One letter a layer: s slides, r keeps a state, b keeps a state beside keys, - keeps nothing, f grows."""

    def one(layer: Layer) -> str:
        if layer.conv_state or layer.state:
            return "b" if layer.k else "r"
        return ("s" if layer.sliding else "f") if layer.k else "-"

    return "".join(map(one, of.layers))


# --- which layers slide ---


WINDOW = {"attention.sliding_window": 512}


@pytest.mark.parametrize(
    ("architecture", "keys", "layers", "window", "expected"),
    [
        ("gemma2", {}, 4, 4096, "sfsf"),
        ("gemma3", WINDOW, 7, 512, "sssssfs"),
        ("gemma3", {}, 4, 0, "ffff"),
        ("gemma3", {"attention.sliding_window": 0}, 4, 0, "ffff"),
        ("gemma3", WINDOW | {"attention.sliding_window_pattern": 3}, 4, 512, "ssfs"),
        ("llama4", WINDOW, 5, 8192, "sssfs"),
        ("laguna", WINDOW, 5, 512, "fsssf"),
        ("exaone4", WINDOW, 64, 512, "sssf" * 16),
        ("exaone4", {}, 64, 4096, "sssf" * 16),
        ("exaone4", WINDOW, 30, 0, "f" * 30),
        ("exaone-moe", {"nextn_predict_layers": 1}, 5, 128, "sssf"),
    ],
)
def test_which_layers_slide(architecture: str, keys: dict[str, Any], layers: int, window: int, expected: str) -> None:
    found = shape(architecture, keys, layers=layers)
    assert (found.window, marks(found)) == (window, expected)


def test_lfm2_slides_where_it_attends() -> None:
    model = lfm2(kv=(0, 2, 0, 2))
    found = shape_of(header(replace(model, keys={**model.keys, **WINDOW})))
    assert isinstance(found, Shape)
    assert (found.window, marks(found)) == (512, "rsrs")


# --- who has a cache of its own ---


def test_the_last_layers_of_gemma_share_a_cache() -> None:
    window = {"attention.sliding_window": 512}
    assert marks(shape("gemma3n", window, layers=30)) == "ssssf" * 4 + "-" * 10
    listed = window | {"attention.sliding_window_pattern": [True, False] * 3}
    assert marks(shape("gemma4", listed, layers=6)) == "sfsfsf"
    assert marks(shape("gemma4", listed | {"attention.shared_kv_layers": 2}, layers=6)) == "sfsf--"


def test_sliding_layers_may_have_heads_of_their_own() -> None:
    listed = {"attention.sliding_window": 512, "attention.sliding_window_pattern": [True, False]}
    keys = listed | {"attention.key_length_swa": 128, "attention.value_length_swa": 128}
    found = shape("gemma4", keys, layers=2, head=256, heads_kv=2)
    assert [(layer.k, layer.v) for layer in found.layers] == [(256, 256), (512, 512)]


# --- states ---


SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 1024, "ssm.state_size": 128, "ssm.group_count": 2}
SSM_STATE = (3 * (1024 + 2 * 2 * 128), 128 * 1024)


def states(of: Shape) -> set[tuple[int, int]]:
    return {(layer.conv_state, layer.state) for layer in of.layers if layer.recurrent}


@pytest.mark.parametrize(
    ("architecture", "keys", "layers", "expected"),
    [
        ("qwen3next", SSM, 5, "rrrfr"),
        ("qwen35moe", SSM | {"full_attention_interval": 2}, 4, "rfrf"),
        ("qwen35", SSM | {"attention.recurrent_layers": [True, False, False, True]}, 4, "rffr"),
        ("qwen35", SSM | {"nextn_predict_layers": 1}, 5, "rrrf"),
        ("falcon-h1", SSM, 3, "bbb"),
    ],
)
def test_which_layers_keep_a_state(architecture: str, keys: dict[str, Any], layers: int, expected: str) -> None:
    found = shape(architecture, keys, layers=layers)
    assert marks(found) == expected
    assert states(found) == {SSM_STATE}


def test_a_layer_of_nemotron_h_does_one_thing() -> None:
    """A state without heads and feed-forward, attention without feed-forward, or feed-forward alone."""
    keys = SSM | {"feed_forward_length": [0, 1536, 0, 1536]}
    found = shape("nemotron_h", keys, heads_kv=[0, 0, 2, 0])
    assert marks(found) == "r-f-"
    assert states(found) == {SSM_STATE}


@pytest.mark.parametrize("architecture", ["jamba", "granitehybrid"])
def test_a_layer_without_kv_heads_keeps_a_state(architecture: str) -> None:
    found = shape(architecture, SSM, heads_kv=[0, 2, 0, 0])
    assert marks(found) == "rfrr"
    assert states(found) == {SSM_STATE}


@pytest.mark.parametrize(
    ("architecture", "keys", "more", "state"),
    [
        ("rwkv6", {"wkv.head_size": 64}, {}, (2 * 512, 512 * 64)),
        ("rwkv7", {"wkv.head_size": 64, "token_shift_count": 1}, {}, (512, 512 * 64)),
        ("kimi-linear", {"kda.head_dim": 128, "ssm.conv_kernel": 4}, {"heads_kv": [0, 0, 0, 1]}, (9216, 131072)),
        ("kimi-linear", {"kda.head_dim": 128}, {"heads_kv": [0, 0, 0, 1]}, (9216, 131072)),
        ("minimax-01", {}, {"head": 128}, (0, 128 * 128 * 8)),
    ],
)
def test_states_of_other_kinds(
    architecture: str, keys: dict[str, Any], more: dict[str, Any], state: tuple[int, int]
) -> None:
    """KDA: 3 × (4 - 1) × 8 heads × 128 and 128 × 128 × 8 heads."""
    assert states(shape(architecture, keys, **more)) == {state}


# --- what the file does not say ---


@pytest.mark.parametrize(
    ("architecture", "keys", "said"),
    [
        ("llama", {"block_count": 0}, "no layers"),
        ("llama", {"embedding_length": 0}, "embedding_length"),
        ("llama", {"nextn_predict_layers": 4}, "only layers that predict"),
        ("llama", {"attention.head_count": 0}, "head_count"),
        ("gemma4", WINDOW, "which layers slide"),
        ("qwen3next", {"ssm.inner_size": 1024}, "recurrent state"),
    ],
)
def test_no_formula_without(architecture: str, keys: dict[str, Any], said: str) -> None:
    found = shape_of(header(decoder(architecture, keys=keys)))
    assert isinstance(found, NoFormula) and said in found.reason

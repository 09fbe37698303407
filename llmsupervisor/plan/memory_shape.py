"""What each layer of a GGUF model keeps between tokens, as llama.cpp reads it out of the header.

Source: `load_hparams`, `load_arch_hparams` of each architecture and `create_memory` of llama.cpp 0.6. An architecture
that is not in the tables here has no formula: nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmsupervisor.plan.gguf import MAX_LAYERS, GgufHeader


@dataclass(frozen=True, slots=True)
class NoFormula:
    """Why there is no figure. The model may well run."""

    reason: str


@dataclass(frozen=True, slots=True)
class Layer:
    """Elements per token (`k`, `v`) of its KV cache, 0 without one; floats per sequence of its recurrent state."""

    index: int
    heads: int
    heads_kv: int
    head_k: int
    head_v: int
    ff: int
    k: int = 0
    v: int = 0
    sliding: bool = False
    recurrent: bool = False
    conv_state: int = 0
    state: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """`layers` are those that run; `layers_all` counts also those that only predict further tokens, for the split
    over GPUs. `window`: tokens that a sliding layer sees, 0 where none slides."""

    architecture: str
    embedding: int
    layers: tuple[Layer, ...]
    layers_all: int
    window: int
    mla: bool
    cache: bool
    """False: an encoder, which keeps nothing."""


PLAIN = frozenset(
    [
        "llama",
        "llama-embed",
        "deci",
        "falcon",
        "grok",
        "gpt2",
        "gptneox",
        "mpt",
        "baichuan",
        "starcoder",
        "refact",
        "bloom",
        "stablelm",
        "qwen",
        "qwen2",
        "qwen2moe",
        "qwen2vl",
        "qwen3",
        "qwen3moe",
        "qwen3vl",
        "qwen3vlmoe",
        "phi2",
        "phi3",
        "phimoe",
        "plamo",
        "codeshell",
        "orion",
        "internlm2",
        "minicpm",
        "minicpm3",
        "gemma",
        "starcoder2",
        "xverse",
        "command-r",
        "dbrx",
        "olmo",
        "olmoe",
        "openelm",
        "arctic",
        "deepseek",
        "deepseek2",
        "deepseek2-ocr",
        "chatglm",
        "glm4",
        "glm4moe",
        "bitnet",
        "jais",
        "jais2",
        "nemotron",
        "exaone",
        "granite",
        "granitemoe",
        "chameleon",
        "plm",
        "bailingmoe",
        "bailingmoe2",
        "dots1",
        "arcee",
        "ernie4_5",
        "ernie4_5-moe",
        "hunyuan-moe",
        "hunyuan-dense",
        "hunyuan_vl",
        "hy_v3",
        "smollm3",
        "seed_oss",
        "grovemoe",
        "apertus",
        "minimax-m2",
        "cogvlm",
        "pangu-embedded",
        "mistral3",
        "mistral4",
        "paddleocr",
        "maincoder",
        "talkie",
    ]
)

ENCODERS = frozenset(
    [
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "gemma-embedding",
    ]
)

MLA = frozenset(("deepseek2", "mistral4", "kimi-linear", "bailingmoe3"))


@dataclass(frozen=True, slots=True)
class Sliding:
    """`window`: where the file says none; None: then nothing slides. `fixed`: whatever the file says, unless it says 0.
    `every`: one full layer in so many; None: the file lists them."""

    window: int | None
    every: int | None
    dense_first: bool = False
    fixed: bool = False


SLIDING = {
    "afmoe": Sliding(None, 4),
    "cohere2": Sliding(None, 4),
    "cohere2moe": Sliding(None, 4, dense_first=True),
    "exaone-moe": Sliding(128, 4),
    "gemma2": Sliding(4096, 2),
    "gemma3": Sliding(None, 6),
    "gemma3n": Sliding(None, 5),
    "gemma4": Sliding(None, None),
    "granite_swa": Sliding(None, None),
    "laguna": Sliding(None, 4, dense_first=True),
    "llama4": Sliding(8192, 4, fixed=True),
    "maple": Sliding(None, None),
    "mellum": Sliding(None, 4),
    "mimo2": Sliding(None, None),
    "muse-glimmer": Sliding(None, 4),
    "olmo2": Sliding(None, 4),
    "gpt-oss": Sliding(None, 2),
    "plamo3": Sliding(None, 8),
    "spark2_5": Sliding(None, None),
    "step35": Sliding(None, None),
}

RECURRENT = frozenset(["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"])
BY_KV_HEADS = frozenset(["jamba", "granitehybrid", "lfm2", "lfm2moe", "plamo2", "kimi-linear", "bailingmoe3"])
"""Hybrids: a layer without KV heads is recurrent."""
BY_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}
"""Hybrids: the file lists the recurrent layers, or one in so many is full attention."""
HYBRID = BY_KV_HEADS | BY_INTERVAL.keys() | {"falcon-h1", "nemotron_h", "nemotron_h_moe"}


def shape_of(header: GgufHeader) -> Shape | NoFormula:
    architecture = header.architecture
    known = PLAIN | ENCODERS | RECURRENT | HYBRID | SLIDING.keys() | {"exaone4"}
    if architecture not in known:
        return NoFormula(f"no formula for architecture {architecture or '(not said)'!r}")
    n_all, embedding = header.n_layers, header.embedding
    if not n_all or n_all > MAX_LAYERS:
        return NoFormula(f"the file says {n_all or 'no'} layers; allowed: 1 to {MAX_LAYERS}")
    if not embedding:
        return NoFormula(f"the file does not say {architecture}.embedding_length")
    extra = header.number("nextn_predict_layers") or 0
    if extra >= n_all:
        return NoFormula("the file holds only layers that predict further tokens")
    heads, heads_kv = header.heads, header.heads_kv
    if architecture in RECURRENT:
        heads, heads_kv = heads or (0,) * n_all, heads_kv or (0,) * n_all
    if heads is None or heads_kv is None or not (any(heads) or architecture in RECURRENT):
        return NoFormula(f"the file does not say {architecture}.attention.head_count or head_count_kv of every layer")
    window, sliding = _sliding(header, n_all, extra)
    if sliding is None:
        return NoFormula(f"the file does not say which layers slide ({architecture}.attention.sliding_window_pattern)")
    recurrent = _recurrent(header, n_all, extra, heads_kv)
    state = _state(header, embedding, heads)
    if any(recurrent) and state is None:
        return NoFormula(f"the file does not say the size of the recurrent state ({architecture}.ssm.*)")
    owners = _kv_owners(header, n_all)
    mla = architecture in MLA and bool(header.number("attention.key_length_mla"))
    ff = header.numbers("feed_forward_length", n_all) or (0,) * n_all
    layers = []
    for i in range(n_all - extra):
        k, v = _head_sizes(header, embedding, heads[0], sliding[i])
        attends = i < owners and architecture not in RECURRENT | ENCODERS and (not recurrent[i] or _both(architecture))
        if architecture.startswith("nemotron_h"):
            attends = attends and ff[i] == 0
        conv, size = state if recurrent[i] and state else (0, 0)
        layers.append(
            Layer(
                index=i,
                heads=heads[i],
                heads_kv=heads_kv[i],
                head_k=k,
                head_v=v,
                ff=ff[i],
                k=k * heads_kv[i] if attends else 0,
                v=v * heads_kv[i] if attends and not mla else 0,
                sliding=sliding[i],
                recurrent=recurrent[i],
                conv_state=conv,
                state=size,
            )
        )
    cache = architecture not in ENCODERS
    return Shape(architecture, embedding, tuple(layers), n_all, window, mla, cache)


def _both(architecture: str) -> bool:
    """Layers with attention and a recurrent state side by side."""
    return architecture == "falcon-h1"


def _head_sizes(header: GgufHeader, embedding: int, heads: int, sliding: bool) -> tuple[int, int]:
    default = embedding // heads if heads else 0
    sizes = []
    for name in ("key", "value"):
        size = header.number(f"attention.{name}_length")
        of_sliding = header.number(f"attention.{name}_length_swa") if sliding else None
        sizes.append(of_sliding or (default if size is None else size))
    return sizes[0], sizes[1]


def _sliding(header: GgufHeader, n: int, extra: int) -> tuple[int, tuple[bool, ...] | None]:
    """(window, which layers slide); None: the file had to say and does not."""
    none = (False,) * n
    said = header.number("attention.sliding_window")
    if header.architecture == "lfm2" and said:
        return said, tuple(kv > 0 for kv in header.heads_kv or (0,) * n)
    rule = SLIDING.get(header.architecture)
    if header.architecture == "exaone4" and n - extra == 64:
        rule = Sliding(4096, 4)
    if rule is None or said == 0:
        return 0, none
    window = rule.window if rule.fixed or said is None else said
    if not window:
        return 0, none
    listed = header.values.get(f"{header.architecture}.attention.sliding_window_pattern")
    if isinstance(listed, tuple) and len(listed) >= n - extra:
        return window, tuple(bool(one) for one in listed[:n]) + (False,) * max(0, n - len(listed))
    every = header.number("attention.sliding_window_pattern")
    if every is None or isinstance(listed, bool):
        every = rule.every
    if every is None:
        return window, None
    full = 0 if rule.dense_first else every - 1
    return window, tuple(i < n - extra and (every == 0 or i % every != full) for i in range(n))


def _recurrent(header: GgufHeader, n: int, extra: int, heads_kv: tuple[int, ...]) -> tuple[bool, ...]:
    architecture = header.architecture
    if architecture in RECURRENT or architecture == "falcon-h1":
        return (True,) * n
    if architecture in BY_KV_HEADS:
        return tuple(kv == 0 for kv in heads_kv)
    if architecture in ("nemotron_h", "nemotron_h_moe"):
        ff = header.numbers("feed_forward_length", n) or (0,) * n
        return tuple(i < n - extra and heads_kv[i] == 0 and ff[i] == 0 for i in range(n))
    if architecture in BY_INTERVAL:
        listed = header.values.get(f"{architecture}.attention.recurrent_layers")
        if isinstance(listed, tuple) and len(listed) >= n:
            return tuple(bool(one) for one in listed[:n])
        every = header.number("full_attention_interval") or BY_INTERVAL[architecture]
        return tuple(i < n - extra and (i + 1) % every != 0 for i in range(n))
    return (False,) * n


def _state(header: GgufHeader, embedding: int, heads: tuple[int, ...]) -> tuple[int, int] | None:
    """Floats per sequence of (convolution, state) of one recurrent layer."""
    if wkv := header.number("wkv.head_size"):
        shifts = header.number("token_shift_count")
        return (2 if shifts is None else shifts) * embedding, embedding * wkv
    if cached := header.number("shortconv.l_cache"):
        return embedding * (cached - 1), 0
    kernel = header.number("ssm.conv_kernel") or 0
    if kda := header.number("kda.head_dim"):
        return 3 * (kernel - 1 if kernel else 3) * heads[0] * kda, kda * kda * heads[0]
    if header.architecture == "minimax-01":
        size = _head_sizes(header, embedding, heads[0], False)[0]
        return 0, size * size * heads[0]
    inner, state = header.number("ssm.inner_size"), header.number("ssm.state_size")
    if inner is None or state is None:
        return None
    groups = header.number("ssm.group_count") or 0
    return max(0, kernel - 1) * (inner + 2 * groups * state), state * inner


def _kv_owners(header: GgufHeader, n: int) -> int:
    """Layers from here on use the cache of an earlier one."""
    if header.architecture == "gemma3n":
        return 20
    if header.architecture == "gemma4":
        return max(0, n - (header.number("attention.shared_kv_layers") or 0))
    return n

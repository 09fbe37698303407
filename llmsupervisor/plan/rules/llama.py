"""Flags of llama-server besides our settings: what they let clients do, and what they take from conversations."""

from __future__ import annotations

from collections.abc import Iterator

from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.rules.model import read
from llmsupervisor.plan.rules.rule import LLAMA, Box, Edit, Hit, number, on_gpu, release, rule, said, value, without

EXPOSES = {
    "--tools": "lets models run tools on this box, as the user of the daemon",
    "--agent": "lets models run every built-in tool on this box, as the user of the daemon",
    "-ag": "lets models run every built-in tool on this box, as the user of the daemon",
    "--media-path": "lets every client read files below that path",
    "--log-prompts-dir": "writes what people ask to files that nobody deletes",
    "--rpc": "computes layers on other machines, over connections without a key",
}


@rule(
    "C100",
    "llama-exposed",
    "warning",
    LLAMA,
    when="`--tools`, `--agent`, `--media-path`, `--log-prompts-dir` or `--rpc` is given",
    harm="clients reach tools or files of this box, or prompts leave the process",
    effect="clients reach the model and nothing else",
    source="--help of llama-server build 11434 (“do not enable in untrusted environments”); tools/rpc/README (“never run the RPC server on an open network”)",
)
def exposed(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    if found := said(plan, *EXPOSES):
        yield Hit(
            "extra_args",
            f"{found} {EXPOSES[found]}",
            f"leave {found} out, or say why it is needed: # llmsupervisor: ignore C100 REASON",
            {"extra_args": list(plan.service.extra_args)},
        )


@rule(
    "C101",
    "one-by-one",
    "warning",
    LLAMA,
    when="`--no-cont-batching` with `parallel` above 1",
    harm="a request waits until those that run have ended, though places are free",
    effect="a new request begins at once, beside those that run",
    source="runs of llama-server build 11434, SmolLM2 135M, beside one that runs: first token after 2.84 s, without the flag after 0.21 s",
)
def one_by_one(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    parallel = plan.service.parallel or 1
    if parallel > 1 and (found := said(plan, "--no-cont-batching", "-nocb")):
        yield Hit(
            "extra_args",
            f"{found}: of {parallel} places none takes a request before all that run have ended",
            f"leave {found} out",
            {"extra_args": list(plan.service.extra_args), "parallel": parallel},
            without(plan, found),
        )


@rule(
    "C39",
    "checkpoints-none",
    "warning",
    LLAMA,
    when="`--ctx-checkpoints 0` of a chat service (not of a model that is known to have neither sliding windows nor recurrent layers)",
    harm="models with sliding windows or recurrent layers compute every prompt from its beginning, whatever is cached",
    effect="turns of a conversation compute only what is new",
    source="llama.cpp PR #15293, #13194, #21831, #19794; its --help (32 by default)",
)
def checkpoints(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    flags = ("--ctx-checkpoints", "--swa-checkpoints", "-ctxcp")
    shape = next((model.shape for model in read(plan, box)), None)
    plain = shape is not None and not any(layer.sliding or layer.recurrent for layer in shape.layers)
    if plan.service.task == "chat" and value(plan, *flags) == "0" and not plain:
        found = said(plan, *flags)
        yield Hit(
            "extra_args",
            f"{found} 0: of a model with sliding windows or recurrent layers nothing of a prompt of up to {plan.service.context_length} tokens is used again",
            f"leave {found} out: 32 by default",
            {"extra_args": list(plan.service.extra_args), "context_length": plan.service.context_length},
            without(plan, *flags),
        )


@rule(
    "C36",
    "ubatch-small",
    "info",
    LLAMA,
    when="`ubatch` of a chat service on a GPU is less than 512, and `context_length` more than 4096",
    harm="prompts are computed in small pieces: the first token of a long one comes late",
    effect="long prompts are computed faster, for some MiB of compute buffer",
    source="measured: the compute buffer of Llama 3.1 8B is 132 MiB at 512, which is llama.cpp's own default",
)
def ubatch_small(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    ubatch, context = number(plan, "--ubatch-size"), plan.service.context_length or 0
    if plan.service.task == "chat" and on_gpu(plan) and ubatch is not None and ubatch < 512 and context > 4096:
        yield Hit(
            "ubatch",
            f"ubatch = {ubatch:.0f}: a prompt of {context} tokens takes {-(-context // int(ubatch))} passes over the weights, and "
            f"{-(-context // 512)} with 512",
            "ubatch = 512",
            {"ubatch": ubatch, "context_length": context},
            (Edit(("ubatch",), 512),),
        )


@rule(
    "C109",
    "split-row",
    "error",
    LLAMA,
    when='`split = "row"` on a GPU, with llama-server 0.6 or later',
    harm="CUDA has no split buffers any more: the load ends with “does not support split buffers”",
    effect="the engine starts again",
    source="llama.cpp build 11434: make_gpu_buft_list of src/llama-model.cpp asks for ggml_backend_split_buffer_type, which "
    "ggml/src/ggml-cuda/ggml-cuda.cu does not have",
)
def split_row(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    version = release(plan, box)
    if value(plan, "--split-mode", "-sm") == "row" and on_gpu(plan) and version is not None and version >= (0, 6):
        yield Hit(
            "split",
            f'split = "row": llama-server {version[0]}.{version[1]} ends while it loads, because CUDA has no split buffers',
            'split = "layer", or "tensor" where the architecture allows it',
            {"split": plan.service.split, "version": f"{version[0]}.{version[1]}"},
            (Edit(("split",), "layer"),),
        )


RULES = (split_row, exposed, one_by_one, checkpoints, ubatch_small)

"""How a service starts: timeouts that a load cannot keep, clients that do not wait that long, memory that all files need."""

from __future__ import annotations

from collections.abc import Iterator

from llmsupervisor.base.units import format_duration, format_size
from llmsupervisor.plan.facts import model_files
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.rules.rule import ENGINES, LLAMA, OLLAMA, VLLM, Box, Edit, Hit, count, rule

DISK = 500 * 10**6
"""Bytes a second: a SATA disk, or a network file system on a good day. An NVMe reads six times as many."""
COMPILES = 120.0
"""Seconds that vLLM's first start may take beside reading weights: it took 90 s for the smallest model on two CPU cores."""
MANY = 3
"""Processes on one GPU whose contexts add up to what a KV cache could use."""


def _size(plan: ServicePlan, box: Box) -> int | None:
    """Of the files that a start reads. None: not all of them were looked at."""
    files = [box.facts.files.get(path) for _, path in model_files(plan.service)]
    known = [file.size for file in files if file is not None and file.kind == "file"]
    return sum(known) if known and len(known) == len(files) else None


def _start_timeout(plan: ServicePlan) -> float:
    return plan.service.start_timeout or plan.definition.ready.timeout


@rule(
    "C102",
    "start-timeout-short",
    "warning",
    LLAMA,
    VLLM,
    when="`start_timeout` is shorter than reading the model at 500 MB/s takes; of vLLM, shorter than 2 minutes",
    harm="a cold start (after a reboot, after an upgrade) is ended before it can succeed, and begun again",
    effect="a slow start is waited for; a hung one is seen later",
    source="llama.cpp #15128; vLLM #32116, measured 90 s of torch.compile at the first start of the smallest model (0.32, CPU)",
)
def start_timeout_short(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    wish = _start_timeout(plan)
    size = _size(plan, box) or 0
    need = size / DISK + (COMPILES if plan.definition.adapter == VLLM else 0)
    if wish < need:
        text = f"{-(-int(need * 1.5) // 60)}m"
        yield Hit(
            "start_timeout",
            f"start_timeout = {format_duration(wish)}"
            + (f", and {format_size(size)} of model take {format_duration(size / DISK)} at 500 MB/s" if size else "")
            + (": a first start of vLLM compiles for a minute and more" if plan.definition.adapter == VLLM else ""),
            f'start_timeout = "{text}"',
            {"start_timeout": wish, "model_bytes": size or None},
            (Edit(("start_timeout",), text),),
        )


@rule(
    "C57",
    "clients-give-up",
    "warning",
    *ENGINES,
    when="a service that starts on demand, or ends when idle, may take longer to load (500 MB/s; vLLM 2 minutes more) than `gateway.queue_deadline`",
    harm="the request that starts it gets HTTP 503 before it is READY, and so does each one until then",
    effect="the first request waits for the load and is answered",
    source="the gateway's contract (`queue_timeout`); vLLM 0.32: 90 s to the first READY of the smallest model (CPU)",
)
def clients_give_up(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    asleep = plan.service.start == "demand" or plan.service.keep_alive is not None
    if box.gateway is None or not asleep:
        return
    deadline = box.gateway.queue_deadline
    size = _size(plan, box) or 0
    need = size / DISK + (COMPILES if plan.definition.adapter == VLLM else 0)
    if deadline < need:
        yield Hit(
            "start",
            f"its load may take {format_duration(need)}, and the gateway's queue_deadline is {format_duration(deadline)}: the requests that "
            "start it are given up before it is READY",
            f'in [gateway]: queue_deadline = "{-(-int(need) // 60) + 1}m"; or start = "boot" and keep_alive = "forever"',
            {
                "queue_deadline": deadline,
                "model_bytes": size or None,
                "start": plan.service.start,
                "keep_alive": plan.service.keep_alive,
            },
        )


@rule(
    "C42",
    "files-over-memory",
    "info",
    LLAMA,
    when="the model files of all llama-server services are more than the box's memory",
    harm="none of them stays in the page cache: each start and each restart reads its model from the disk again",
    effect="restarts read from memory",
    source="llama.cpp --load-mode (mmap by default: what is read stays in the page cache, as far as there is room)",
)
def files_over_memory(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    sizes = {
        other.name: size
        for other in box.plan.services.values()
        if other.definition.adapter == LLAMA and (size := _size(other, box))
    }
    memory, whole = box.facts.memory, sum(sizes.values())
    if memory and whole > memory and plan.name == max(sizes, key=lambda name: sizes[name]):
        yield Hit(
            "model",
            f"the models of {count(len(sizes), 'service')} have {format_size(whole)}, and this box has {format_size(memory)} of memory: a restart "
            "reads from the disk",
            "smaller quantisations, or a start_timeout that a cold read keeps",
            {"memory": memory, **sizes},
        )


@rule(
    "C51",
    "many-processes",
    "info",
    LLAMA,
    OLLAMA,
    VLLM,
    when=f"{MANY} or more services on one GPU",
    harm="each process has a CUDA context of its own there",
    effect="107 to 555 MiB of the GPU free for each process less",
    source="llama.cpp PR #23604 (107 MiB on an RTX 4060 Ti, 555 MiB on an RTX PRO 6000)",
)
def many_processes(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    for card in box.cards(plan):
        here = [other.name for other in box.plan.services.values() if card.uuid in other.gpus]
        if len(here) >= MANY and here[0] == plan.name:
            yield Hit(
                "gpus",
                f"{len(here)} processes on GPU {card.index} ({', '.join(here)}): their CUDA contexts take {len(here)} × 107 to 555 MiB",
                "fewer services there: one Ollama, or one llama-server with more parallel, instead of several",
                {"gpu": card.index, "services": list(here)},
            )
            return


RULES = (start_timeout_short, clients_give_up, files_over_memory, many_processes)

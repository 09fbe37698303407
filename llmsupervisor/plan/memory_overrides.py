"""Weights that flags put elsewhere than their layer (`--override-tensor`, `--cpu-moe`, `--n-cpu-moe`, `--n-cpu-ffn`).

Source: `parse_tensor_buffer_overrides` and `llm_add_n_cpu_ffn_overrides` of llama.cpp, `create_tensor` of its loader:
the first pattern that is found in a tensor's name counts, in the order of the command line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmsupervisor.plan.memory_place import HOST, Override, Where

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
DENSE = r"\.ffn_(up|down|gate)\."
MOST_LAYERS = 1024
_FOREIGN = re.compile(r"\(\?|\[\[|\\[1-9ukxcpPQEAZz]")
"""What Python and ECMAScript read differently, or only one of them reads."""
_SLOW = re.compile(r"\)[*+{]|([*+{][^*+{]*){5}")
"""A repeated group, or many repetitions: a name could be tried for ever."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    why: str


def read(words: Sequence[str], gpus: int) -> tuple[Override, ...] | Unreadable:
    """Of a command line for so many GPUs."""
    found: list[Override] = []
    for flag, value in pairwise((*words, "")):
        match flag.replace("_", "-"):
            case "-cmoe" | "--cpu-moe":
                found.append(Override(EXPERTS, HOST))
            case "-ncmoe" | "--n-cpu-moe" | "-ncffn" | "--n-cpu-ffn":
                if not value.isdigit() or int(value) > MOST_LAYERS:
                    return Unreadable(f"no formula for {flag} {value}")
                if layers := "|".join(map(str, range(int(value)))):
                    found.append(Override(rf"blk\.({layers}){EXPERTS if 'moe' in flag else DENSE}", HOST))
            case "-ot" | "--override-tensor":
                for part in value.split(","):
                    one = _one(part, gpus)
                    if isinstance(one, Unreadable):
                        return one
                    found.append(one)
    return tuple(found)


def _one(text: str, gpus: int) -> Override | Unreadable:
    pattern, _, buffer = text.partition("=")
    if buffer == "CPU":
        where: Where = HOST
    elif (card := re.fullmatch(r"CUDA(\d{1,2})", buffer)) and int(card[1]) < gpus:
        where = int(card[1])
    else:
        return Unreadable(f"no formula for --override-tensor {text}: its buffer is not CPU or CUDA0 to CUDA{gpus - 1}")
    if _FOREIGN.search(pattern) or _SLOW.search(pattern):
        return Unreadable(f"no formula for --override-tensor {text}: its pattern is read by llama.cpp alone")
    try:
        re.compile(pattern)
    except re.error as error:
        return Unreadable(f"no formula for --override-tensor {text}: its pattern is broken ({error})")
    return Override(pattern, where)

"""`docs/rules.md`: every rule of the linter, from the rules themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmsupervisor.plan.lint import RULES
from llmsupervisor.plan.observed import SAMPLE, SOME
from llmsupervisor.plan.rules.rule import Rule
from llmsupervisor.plan.size import LEAST

HEAD = """# Rules

Generated from `llmsupervisor/plan/rules`; a test holds it against them.

`llmsupervisor check SPEC` looks at the finished plan, without starting anything, and says of each finding where it stands, the numbers of
this spec, what to write, and the source. **Error**: the start fails, requests fail, or answers are wrong. **Warning**: it works, and will
hurt. **Info**: worth knowing. Exit code 3 after an error, with `--strict` also after a warning. `--json` is for programs. `--fix` makes
the changes that need no judgement; comments and layout stay. A rule that lacks a fact (no such GPU on this box) is silent.

What is to stay as it is gets a reason, in a comment of the spec:

```toml
kv_cache_type = "f16"     # llmsupervisor: ignore C13 a model of 1.5B suffers from a quantised cache
```

It counts for the service in whose table it stands, in `[defaults.RUNTIME]` for the services of this runtime, anywhere else for all. On
lines of its own it belongs to what follows without a blank line. Several rules: `ignore C12, C13 reason`. A comment without a reason,
or with a rule that there is not, is not obeyed and is a warning itself (`ignore`).

The daemon looks too, before every apply (also `reload --dry-run`): errors and warnings are conditions of their service in `status`, and hold up
nothing. `llmsupervisor advise` lists all of them with their evidence, and `llmsupervisor advise --fix C13:chat` shows a change as a diff of the spec with
what it does to services, and makes it through the usual reload."""

OBSERVED = f"""`R` rules look at what the gateway recorded of a service since its spec was last changed, at most 7 days and its newest {SAMPLE} requests,
and say on how many requests they rest. The daemon looks each 10 minutes, and whenever `advise` is called. Under {SOME} requests they are silent, under
{LEAST} where a whole distribution is needed. Their changes need judgement: `check --fix` leaves them alone, `advise --fix` makes them."""

CLOSED = {
    "C01": "`context_length` is required",
    "C04": "the context of llama-server is always `context_length` × `parallel`",
    "C05": "`parallel` is required, and slots never share one KV pool",
    "C06": "`--no-kv-unified` is always set",
    "C07": "`kv_cache_type` is one type for keys and values",
    "C09": "a quantised KV cache with `flash_attention = false` is an error of the spec",
    "C11": "`kv_cache_type` belongs to the Ollama service; models with another one are another service",
    "C19": "`gpu_memory` or `kv_tokens` is required for vLLM",
    "C27": "chunked prefill is always on for chat",
    "C31": "the draft model of llama-server is in the memory sums of the plan; that of vLLM is named there as unknown",
    "C33": "`--fit off` is always set for llama-server",
    "C34": "`context_length` is at least 1",
    "C38": "sliding windows are counted per request in the memory sums of the plan",
    "C40": "the projector is in the memory sums of the plan",
    "C45": "services that stay and do not fit beside each other are a warning of the plan, with the sum",
    "C46": "`OLLAMA_MAX_LOADED_MODELS` is the number of models",
    "C47": "`parallel` is required",
    "C49": "`OLLAMA_GPU_OVERHEAD` is refused: it reserves nothing any more",
    "C50": "GPUs are handed over by UUID, and an index keeps the card that it first meant",
    "C55": "`--metrics` and `--slots` are always set",
    "C56": "`--log-verbosity 4` is always set",
    "C58": "`--no-context-shift` is always set for llama-server",
    "C98": "vLLM's `batch` below `parallel` is an error of the spec",
    "C99": "flags that end an engine's figures are refused",
}
"""Known outages that no spec can ask for."""


ELSEWHERE = {
    "C60": "R103: what requests without `max_tokens` really do; a spec alone does not say whether long answers are wanted",
    "R65": "condition `not-as-asked`: the engine's log says how many layers are on the GPU",
    "R67": "condition `not-as-asked`: the engine's log says that flash attention is off",
    "R74": 'C108: only `client_options = "passed"` lets clients load a model anew; by default their options are pinned',
    "R75": "the memory sums: what a start takes beyond them is learned, and told by `plan`",
    "R76": "condition `foreign` of a GPU: who holds memory there that is not ours",
    "R77": "`busy` is never called load: `gpus` and the TUI show the share of the memory bandwidth beside it",
    "R78": "condition `clocks-limited` of a GPU: heat or the power cap",
}
"""What another part of the daemon tells."""

OPEN = {
    "C22": "vLLM says its suggestion of `--kv-cache-memory` after it has profiled a GPU: without one no log has that line to read; `kv_tokens` sets the "
    "same by hand",
    "C59": "no source: nobody has measured that the losses of weights of 3 bits and of a 4-bit cache add up (C12 warns of the cache alone)",
    "R66": "its thresholds (GPU below 30 %, CPU above 300 %) were read of one report (llama.cpp #24485), and no GPU was there to try them on; what causes it "
    "is C08 and `not-as-asked`",
    "R79": "PCIe traffic is not sampled: what is too much of it no GPU was there to show; weights on the host are C32 and a warning of the plan",
    "R82": "a load test of ours (`replay`) is not in this version: no prompts to compare with traffic",
    "R83": "a load test of ours (`replay`) is not in this version: no levels whose requests could be counted",
    "R84": "a load test of ours (`replay`) is not in this version: no client whose lag could be measured",
}
"""Known, and no rule yet."""


def rules_page(rules: Sequence[Rule] = RULES) -> str:
    planned = [rule for rule in rules if not rule.observed]
    observed = [rule for rule in rules if rule.observed]
    return (
        "\n\n".join(
            [
                HEAD,
                f"## {len(planned)} rules on the plan, in the order of harm",
                _rules(planned),
                f"## {len(observed)} rules on recorded requests, in the order of harm",
                OBSERVED,
                _rules(observed),
                "## What no spec can ask for\n\nThe plan is made so that these cannot happen.",
                _table(["id", "because"], [[id, why] for id, why in CLOSED.items()]),
                "## What is told elsewhere",
                _table(["id", "where"], [[id, where] for id, where in ELSEWHERE.items()]),
                "## No rule yet",
                _table(["id", "why"], [[id, why] for id, why in OPEN.items()]),
            ]
        )
        + "\n"
    )


def _rules(rules: Iterable[Rule]) -> str:
    head = ["id", "name", "severity", "runtime", "fires when", "harm", "the change is worth", "source"]
    rows = ([r.id, r.name, r.severity, _runtimes(r), r.when, r.harm, r.effect, r.source] for r in rules)
    return _table(head, ([cell.replace("|", "\\|") for cell in row] for row in rows))


def _runtimes(rule: Rule) -> str:
    return ", ".join(adapter.replace("_", "-") for adapter in rule.runtimes) or "all"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])

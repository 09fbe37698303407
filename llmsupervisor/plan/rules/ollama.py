"""Variables of Ollama that undo what the plan says, and what Ollama does beside others."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmsupervisor.plan.facts import weights_of
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.rules.rule import OLLAMA, Box, Edit, Hit, rule, variable

BOOLS = (
    "OLLAMA_NOPRUNE",
    "OLLAMA_NO_CLOUD",
    "OLLAMA_DEBUG_LOG_REQUESTS",
    "OLLAMA_VULKAN",
    "OLLAMA_IGPU_ENABLE",
    "OLLAMA_GO_TEMPLATE",
    "OLLAMA_NOHISTORY",
)
TRUE = ("1", "t", "T", "TRUE", "true", "True")
FALSE = ("0", "f", "F", "FALSE", "false", "False", "")
DURATIONS = ("OLLAMA_KEEP_ALIVE", "OLLAMA_LOAD_TIMEOUT")
_DURATION = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+|[+-]?\d+")


@rule(
    "C93",
    "ollama-variable",
    "error",
    OLLAMA,
    when="a switch of Ollama in `env` is neither true nor false, or a duration is none",
    harm="Ollama takes every unreadable switch for true, also “off”, and the default for an unreadable duration, and says neither",
    effect="Ollama obeys what was meant",
    source="Ollama 0.33 envconfig/config.go; runs",
)
def unreadable(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    for name, text in plan.service.env.items():
        plain = text.strip(" \"'")
        if name in BOOLS and plain not in (*TRUE, *FALSE):
            off = plain.lower() in ("off", "no", "n", "disabled")
            meant = "false" if off else "true"
            yield Hit(
                "env",
                f'{name} = "{text}" is neither true nor false, and Ollama takes that for true',
                f'{name} = "{meant}"',
                {name: text},
                (Edit(("env", name), meant),),
            )
        elif name in DURATIONS and plain and not _DURATION.fullmatch(plain):
            yield Hit(
                "env",
                f'{name} = "{text}" is no duration, and Ollama takes 5m instead without a word',
                f'{name} = "10m", or leave it out: the plan sets it',
                {name: text},
            )


@rule(
    "C94",
    "ollama-prune",
    "error",
    OLLAMA,
    when="`OLLAMA_NOPRUNE` is false, and another Ollama service has the same model folder",
    harm="a start deletes blobs that no manifest names yet, also those of a model that the other is making or fetching",
    effect="no model that is being made or fetched loses its blobs",
    source="Ollama 0.33 server/routes.go and images.go (blobs older than an hour); docs/faq",
)
def prune(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    folder = variable(plan, "OLLAMA_MODELS")
    others = [
        other.name
        for other in box.plan.services.values()
        if other is not plan and other.definition.adapter == OLLAMA and variable(other, "OLLAMA_MODELS") == folder
    ]
    if variable(plan, "OLLAMA_NOPRUNE") in FALSE and others:
        yield Hit(
            "env",
            f"OLLAMA_NOPRUNE is false, and {', '.join(others)} has the same folder of models: a start deletes blobs older "
            "than an hour that no manifest names yet, such as those of a model that the other is making",
            "leave OLLAMA_NOPRUNE out: the plan sets it to true",
            {"OLLAMA_MODELS": folder, "others": list(others)},
            (Edit(("env", "OLLAMA_NOPRUNE")),),
        )


@rule(
    "C48",
    "ollama-queue-zero",
    "error",
    OLLAMA,
    when="`OLLAMA_MAX_QUEUE` is 0",
    harm="nearly every request that needs a load is answered with 503",
    effect="requests wait for a load instead of being refused",
    source="Ollama FAQ (OLLAMA_MAX_QUEUE, 503); server/sched.go",
)
def queue_zero(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    if variable(plan, "OLLAMA_MAX_QUEUE") == "0":
        yield Hit(
            "env",
            f"OLLAMA_MAX_QUEUE = 0: a request for one of {len(plan.service.models or ())} models that is not loaded gets 503",
            "leave OLLAMA_MAX_QUEUE out: the plan sets 512",
            {"OLLAMA_MAX_QUEUE": "0"},
            (Edit(("env", "OLLAMA_MAX_QUEUE")),),
        )


@rule(
    "C43",
    "ollama-keep-alive",
    "warning",
    OLLAMA,
    when="`OLLAMA_KEEP_ALIVE` is set in `env`, and not negative",
    harm="Ollama unloads behind the daemon's back, and the next request pays the load",
    effect="models stay loaded as long as the daemon believes",
    source="Ollama FAQ (keep_alive, 5 minutes)",
)
def keep_alive(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    text = plan.service.env.get("OLLAMA_KEEP_ALIVE")
    if text is not None and not text.strip().startswith("-"):
        yield Hit(
            "env",
            f'OLLAMA_KEEP_ALIVE = "{text}" lets Ollama unload models that the daemon counts as loaded: the next request waits '
            "for a load",
            "leave OLLAMA_KEEP_ALIVE out, and write keep_alive for each of models",
            {"OLLAMA_KEEP_ALIVE": text},
            (Edit(("env", "OLLAMA_KEEP_ALIVE")),),
        )


@rule(
    "C95",
    "ollama-shared-gpu",
    "warning",
    OLLAMA,
    when="another service runs on a GPU of an Ollama service",
    harm="memory that others take after Ollama has looked is invisible to it: it fills the GPU, and one of the two runs out",
    effect="no service loses its memory to the other",
    source="Ollama server/sched.go (free memory is the least of its own account and of what it saw at the load); #12922, #17251",
)
def shared_gpu(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    if others := [other.name for other in box.beside(plan)]:
        yield Hit(
            "gpus",
            f"{plan.name} shares a GPU with {', '.join(others)}: Ollama does not see memory that others take after it has looked, "
            f"and puts {len(plan.service.models or ())} models there by its own sums",
            "a GPU of its own, or llama-server services instead of Ollama's models",
            {"gpus": list(plan.gpus), "others": list(others)},
        )


@rule(
    "C108",
    "ollama-options-passed",
    "warning",
    OLLAMA,
    when='`client_options` is "passed"',
    harm="a client with another `num_ctx` has the model loaded anew under everybody, and the next one back; beside busy clients it waits for ever",
    effect="no client's options load a model",
    source="runs of Ollama 0.33: two clients with another num_ctx made 6 loads of 6 requests, and one beside busy ones had no answer "
    "after 30 s; #8029, #12783",
)
def options_passed(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    if plan.service.client_options == "passed":
        told = ", ".join(f"{model.name} ({model.context_length} tokens)" for model in plan.service.models or ())
        yield Hit(
            "client_options",
            f'client_options = "passed": a request with another num_ctx than {told} loads the model anew for everybody',
            'client_options = "pinned", and a service of its own for who needs another context',
            {"client_options": "passed"},
            (Edit(("client_options",)),),
            judgement=True,
        )


@rule(
    "C107",
    "ollama-same-weights",
    "warning",
    OLLAMA,
    when="two of `models` have the same weights and another `context_length`",
    harm="Ollama has one process for the same weights: a request for the one ends the process of the other, and waits for a load",
    effect="both stay loaded",
    source="Ollama 0.33 server/sched.go (a runner is known by the path of its weights); run: two clients with another num_ctx made "
    "6 loads of 6 requests",
)
def same_weights(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    models = plan.service.models or ()
    weights = [weights_of(plan.service, model, box.facts) for model in models]
    for one in dict.fromkeys(filter(None, weights)):
        same = [index for index, each in enumerate(weights) if each == one]
        most = max(models[index].context_length for index in same)
        shorter = [index for index in same if models[index].context_length < most]
        if shorter:
            told = [f"{models[index].name} ({models[index].context_length} tokens)" for index in same]
            yield Hit(
                "models",
                f"{' and '.join(told)} have the same weights, and Ollama has one process for them: each ends the other's",
                f'context_length = {most} for all of them, or a second service with runtime = "ollama" for one',
                {"weights": one, "models": {models[index].name: models[index].context_length for index in same}},
                tuple(Edit(("models", index, "context_length"), most) for index in reversed(shorter)),
                judgement=True,
            )


@rule(
    "C96",
    "ollama-request-log",
    "warning",
    OLLAMA,
    when="`OLLAMA_DEBUG_LOG_REQUESTS` is true",
    harm="what people ask is written to files that nobody deletes, until the disk is full",
    effect="no prompt on the disk",
    source="Ollama 0.33 envconfig/config.go (folder ollama-request-logs-*)",
)
def request_log(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    name = "OLLAMA_DEBUG_LOG_REQUESTS"
    text = variable(plan, name)
    if text is not None and text not in FALSE:
        yield Hit(
            "env",
            f'{name} = "{text}" writes the body of every request to a folder of temporary files, which nobody empties',
            f"leave {name} out",
            {name: text},
            (Edit(("env", name)),),
        )


RULES = (unreadable, prune, queue_zero, keep_alive, shared_gpu, same_weights, options_passed, request_log)

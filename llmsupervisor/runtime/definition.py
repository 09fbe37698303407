"""A runtime described as data (`runtimes/NAME.toml`), one schema, unknown keys refused.

A runtime that speaks OpenAI and Prometheus needs such a file and nothing else; arithmetic that a table cannot say
lives in the adapter of the same name (`runtime/llama_server.py`, `vllm.py`, `ollama.py`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llmsupervisor.spec.model import Duration, Flag, Positive, Table, Text

Scalar = bool | int | float | str


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return value


class Version(Table):
    command: tuple[Text, ...]
    pattern: Text
    """A regular expression with the group `v`."""
    written_for: Text

    @field_validator("pattern")
    @classmethod
    def _has_v(cls, value: str) -> str:
        if "v" not in re.compile(_pattern(value)).groupindex:
            raise ValueError("the group (?P<v>…) is missing")
        return value


class Setting(Table):
    """One key of `[services.X]` and how this runtime is told. Exactly one of `flags`, `env`, `request`, unless
    the runtime is not told at all (`style = "none"`)."""

    flags: tuple[Text, ...] = ()
    """Every one is rendered with the same value (KV type: K and V). A second spelling belongs in `also`."""
    also: tuple[Text, ...] = ()
    """Other spellings of the flag, and further flags that the adapter renders; refused in `extra_args` like
    `flags`, and answered with our key."""
    env: Text | None = None
    request: Text | None = None
    style: Literal["value", "switch", "on_off", "repeat", "comma", "json", "none"] = "value"
    """switch: the flag where true (and `off` where false) · on_off: `on`/`off` · repeat: the flag once for each
    element · comma: elements in one word · none: the adapter renders it, or nobody."""
    off: Text | None = None
    """Flag that says no (`--no-enable-prefix-caching`), for `style = "switch"`."""
    values: tuple[Scalar, ...] = ()
    choices: dict[str, Text] = {}
    """Our word → the runtime's."""
    least: dict[str, Annotated[Text, Field(pattern=r"^\d+\.\d$")]] = {}
    """Value → compute capability that a GPU must have for it (`fp8` → `8.9`). Those that a GPU has are named instead."""
    pair: tuple[Text, ...] = ()
    """Variables that a value of two, `K/V`, goes to instead of `env`, which is then empty."""
    unit: Literal["MiB", "GiB", "bytes", ""] = ""
    """How a size is written on the command line."""
    required: Flag = False
    default: Scalar | None = None
    """Production default, rendered where the spec is silent. A size is text. None: nothing is rendered."""
    example: Scalar | None = None
    """Shown where the key is missing."""
    native: tuple[Text, ...] = ()
    """The runtime's own words for it (`num_ctx`, `LLAMA_ARG_CTX_SIZE`), answered with our key; environment
    variables among them are refused in `env`."""
    change: Literal["restart", "live"] = "restart"
    doc: Text = "–"

    @model_validator(mode="after")
    def _told_once(self) -> Self:
        ways = sum((bool(self.flags), self.env is not None, self.request is not None))
        if ways > 1 or (ways == 0 and self.style != "none"):
            raise ValueError("exactly one of flags, env and request")
        if self.off is not None and self.style != "switch":
            raise ValueError('off goes with style = "switch"')
        return self

    def word(self, value: object) -> str:
        """One value as the runtime writes it."""
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return self.choices.get(text, text)


class Fixed(Table):
    """Always on the command line or in the environment, with the reason."""

    args: tuple[Text, ...] = ()
    env: dict[str, str] = {}
    """The spec's `env` may say otherwise; `args` are refused in `extra_args`."""
    also: tuple[Text, ...] = ()
    """Other spellings and opposites of `args`."""
    reason: Text


class GpuForm(Table):
    env: Text = "CUDA_VISIBLE_DEVICES"
    form: Literal["uuid", "index"] = "uuid"
    none: str = ""
    """Value that hides every GPU."""


class Listen(Table):
    """How the address is given: flags, or an environment variable with a template."""

    host: Text | None = None
    port: Text | None = None
    env: Text | None = None
    template: Text = "{host}:{port}"


class Key(Table):
    """The random key of each start, where the engine can check one."""

    env: Text
    header: Text = "Authorization"
    prefix: str = "Bearer "


class Step(Table):
    """What a start is at: groups of `pattern` stand in `says` as `{name}`."""

    pattern: Text
    says: Text

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _pattern(value)

    @model_validator(mode="after")
    def _groups_are_there(self) -> Self:
        try:
            self.says.format(**dict.fromkeys(re.compile(self.pattern).groupindex, ""))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"says names a group that the pattern does not have: {error}") from error
        return self


class Ready(Table):
    path: Text = "/health"
    timeout: Duration = 300.0
    """From spawn to READY; extended while the start makes progress, to `cap` × at most."""
    cap: Positive = 3
    steps: tuple[Step, ...] = ()
    """Told by the log; the one that is last there counts."""


class Request(Table):
    """The tiny request that proves a task works. `"{model}"` stands for the name of the target."""

    path: Text
    body: dict[str, Any]


class Stop(Table):
    steps: tuple[tuple[Literal["TERM", "INT", "HUP", "QUIT"], Duration], ...] = (("TERM", 10.0),)
    """Signal and how long to wait for the exit; after the last comes KILL of the tree."""


class ExitClass(Table):
    """A cause of an exit, told by the tail of the log, the code or the signal; the first that matches wins."""

    pattern: Text | None = None
    codes: tuple[int, ...] = ()
    signals: tuple[Text, ...] = ()
    phase: Literal["start", "run", "any"] = "any"
    retry: Literal["backoff", "on-change", "when-vram-changes", "when-port-free"] = "backoff"
    advice: Text

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return None if value is None else _pattern(value)

    @model_validator(mode="after")
    def _matches_something(self) -> Self:
        if self.pattern is None and not self.codes and not self.signals:
            raise ValueError("at least one of pattern, codes and signals")
        return self


class Metrics(Table):
    path: Text = "/metrics"
    names: dict[str, Text | tuple[Text, ...]] = {}
    """Our name → the engine's; of several (renamed between releases) the first present one counts."""


class InFlight(Table):
    """Requests inside its HTTP server, also those that an engine behind it has not taken: it may hang."""

    path: Text
    answer: Text
    """Key of a number."""


class Count(Table):
    """How the gateway asks this engine for the number of tokens of a prompt."""

    path: Text
    body: dict[str, Text] | None = None
    """Key of the engine's request → key of the user's; None: the user's own body."""
    set: dict[str, Scalar] = {}
    """Further keys of the engine's request, and their values."""
    answer: Text
    """Dotted path to a number, or to a list that is counted."""
    runner: Flag = False
    """The process that has the model is asked, not the service."""
    template: Text | None = None
    """Path that makes a prompt of the conversation first; its answer's `prompt` is then counted as `content`."""


class Pin(Table):
    """Of requests whose options could load a model anew, or unload it, under everybody."""

    apis: tuple[Text, ...]
    remove: tuple[Text, ...] = ()
    """Keys, or `KEY.KEY`."""
    set: dict[str, Scalar] = {}


class Runner(Table):
    """The process that the service starts for each loaded model: a llama-server of which the service itself tells little."""

    hang: Duration = 20.0
    """One that answers nothing and uses no CPU time is ended within so long, and within `probe.stall_timeout`. One that
    answers and moves no token is suspected after `probe.stall_timeout`, and ended where a tiny request then fails: within
    two thirds of `hang` and 15 s more."""
    metrics: Metrics | None = None


class Answer(Table):
    """What its answers carry because the plan asked for it; the gateway takes it out again."""

    remove: tuple[Text, ...] = ()
    """Top-level keys."""
    usage_forced: Flag = False
    """Streams end with a usage event whether or not the client asked."""
    progress: dict[str, Any] | None = None
    """Added to a request so that its stream tells how far its prompt is, while someone watches."""
    usage: dict[str, Any] | None = None
    """Added to a stream's request so that it ends with a usage event, which is taken out again."""
    usage_apis: tuple[Text, ...] = ()
    """Those in which `usage` is understood."""


class Definition(Table):
    name: Text
    doc: Text
    command: tuple[Text, ...]
    """Default executable and leading words. In the spec, `venv` and a `command` of one word replace the first, a
    longer `command` replaces all. Empty: the spec must say it."""
    version: Version | None = None
    help: tuple[Text, ...] = ()
    """Arguments that print every flag this build knows; empty: not checked."""
    settings: dict[str, Setting] = {}
    fixed: tuple[Fixed, ...] = ()
    abbreviates: Flag = False
    """The runtime takes unambiguous beginnings of its flags (argparse does)."""
    gpu: GpuForm | None = None
    listen: Listen = Listen()
    key: Key | None = None
    ready: Ready = Ready()
    probe: dict[Literal["chat", "embed", "rerank"], Request] = {}
    stop: Stop = Stop()
    exit: dict[str, ExitClass] = {}
    metrics: Metrics | None = None
    in_flight: InFlight | None = None
    timing: dict[str, Text] = {}
    """Figure of a request record → dotted path in an answer."""
    routes: dict[Annotated[str, Field(pattern=r"^/[!-~]*$")], Text] = {}
    """POST routes that it speaks, `model` in the JSON body → `api` of the record."""
    answer: Answer = Answer()
    count: dict[str, Count] = {}
    """By `api`."""
    pin: Pin | None = None
    runner: Runner | None = None
    slots: Text | None = None
    """Path that lists slots with `is_processing`: an aborted request may go on there for a while."""
    capabilities: tuple[Text, ...] = ()
    """What its engine test cases may rely on; a case whose capability is missing is listed as switched off."""
    native: dict[str, Text] = {}
    """The runtime's own words without a setting of the same meaning → what to do instead. Flags among them are
    refused in `extra_args`, environment variables in `env`."""
    adapter: Literal["generic", "llama_server", "vllm", "ollama"] = "generic"
    source: str = Field(default="", exclude=True)
    """Path the definition was read from; set by the loader."""

    @model_validator(mode="after")
    def _one_owner(self) -> Self:
        owners: dict[str, str] = {}
        for key, setting in self.settings.items():
            for word in (*setting.flags, *setting.also, *filter(None, (setting.off, setting.env))):
                if owners.setdefault(word, key) != key:
                    raise ValueError(f"{word} belongs to both {owners[word]} and {key}")
        return self

"""What the file says: the user's TOML as frozen, validated data. Unknown keys are refused.

`None` means "not said": the runtime definition's production default then applies, and `plan` says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from llmsupervisor.base.units import parse_duration, parse_size

_NUMBER = r"[0-9]{1,15}(\.[0-9]{1,9})?"
DURATION = rf"({_NUMBER}\s*(ms|s|m|h|d))+"
SIZE = rf"{_NUMBER}\s*(B|[kKMGT]i?B?)"


def _duration(value: object) -> float:
    if isinstance(value, str):
        return round(parse_duration(value), 6)
    raise ValueError('a duration is text with a unit, such as "30s"')


def _size(value: object) -> int:
    if isinstance(value, str) and not value.strip()[-1:].isdigit():
        return parse_size(value)
    raise ValueError('a size is text with a unit, such as "22GiB"')


def _keep_alive(value: object) -> float | None:
    return None if value == "forever" else _duration(value)


def _as_duration(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(_as_duration, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^{DURATION}$"}),
]
"""Seconds; text in JSON, so that a dumped service can be read again."""
Size = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(lambda v: f"{v}B", when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^{SIZE}$"}),
]
"""Bytes; text in JSON."""
Positive = Annotated[int, Field(strict=True, gt=0)]
Tokens = Positive
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
KeepAlive = Annotated[
    float | None,
    BeforeValidator(_keep_alive),
    PlainSerializer(lambda v: "forever" if v is None else _as_duration(v), when_used="json"),
    WithJsonSchema({"type": "string", "pattern": f"^(forever|{DURATION})$"}),
]
"""Seconds; `forever` is None."""


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Secret(Table):
    """A reference; the value never enters a plan, a status or a log. Exactly one of the two."""

    file: Text | None = None
    env: Text | None = None


class ClientKey(Secret):
    """Of one client; who has it may ask."""

    models: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """Names that it may ask for, as the client writes them; None: all."""
    share: Annotated[float, Field(strict=True, gt=0, le=1000)] = 1.0
    """Weight in the queue."""


class Gateway(Table):
    listen: Text = "127.0.0.1:8088"
    keys: dict[str, ClientKey] = {}
    allow_unauthenticated: Flag = False
    """Everybody who reaches the address may ask."""
    hosts: tuple[Text, ...] | None = None
    """Names, beside those of loopback, that a request may have in its Host header; None: any, or none where `listen` is
    a loopback address (a page of another name that leads here is an attack: DNS rebinding)."""
    origins: tuple[Text, ...] = ()
    """Origins of web pages that may call."""
    trusted_proxies: tuple[Text, ...] = ()
    """Addresses and networks whose X-Forwarded-For is believed."""
    scrape: Literal["loopback", "keys", "all"] = "loopback"
    queue_deadline: Duration = 60.0
    queue_size: Positive = 1000
    max_body: Annotated[Size, Field(gt=0)] = 32 * 1024**2
    prefix_hashes: Flag = True
    history_age: KeepAlive = 90 * 86400.0
    history_size: Annotated[Size, Field(gt=0)] = 1024**3


class Restart(Table):
    policy: Literal["always", "on-failure", "never"] = "always"
    max_delay: Duration = 60.0
    burst: Positive = 5
    window: Annotated[Duration, Field(gt=0)] = 600.0
    healthy_after: Annotated[Duration, Field(gt=0)] = 60.0
    """READY this long without a break: the next restart is immediate, and the count begins anew."""


class Probe(Table):
    """The tiny request of the service's task (`body`), and how long silence is believed to be work."""

    enabled: Flag = True
    timeout: Annotated[Duration, Field(gt=0)] = 60.0
    stall_timeout: Annotated[Duration, Field(gt=0)] = 120.0


class Slo(Table):
    """What requests through the gateway are to keep to, over `window`."""

    ttft_p95: Annotated[Duration, Field(gt=0)] | None = None
    tpot_p95: Annotated[Duration, Field(gt=0)] | None = None
    window: Annotated[Duration, Field(gt=0)] = 300.0


class Leak(Table):
    """Memory that grows from request to request and never comes back."""

    rise: Annotated[Size, Field(gt=0)] = 1024**3
    """By which it must have grown, the engine's own caches aside."""
    recycle: Flag = False
    """Started anew, once no request came for `idle`."""
    idle: Duration = 60.0


class OllamaModel(Table):
    name: Text
    context_length: Tokens
    keep_alive: KeepAlive = None
    preload: Flag = True
    file: Text | None = None
    """GGUF of this box that it is made from."""
    pull: Flag = False
    """It may be fetched over the network where it is missing."""


class Name(Table):
    """One more name of a service: its requests are changed before the engine sees them."""

    set: dict[str, Any] = {}
    strip: tuple[Text, ...] = ()
    listed: Flag = True


class Service(Table):
    """One supervised process tree. Settings that a runtime does not know are refused by its definition."""

    runtime: Text
    enabled: Flag = True
    model: Text | None = None
    models: tuple[OllamaModel, ...] | None = None
    task: Literal["chat", "embed", "rerank"] = "chat"
    aliases: tuple[Text, ...] = ()
    names: dict[str, Name] = {}
    listed: Flag = True
    """In the gateway's list of models."""
    overflow: Text | None = None
    """Service that takes the requests which do not fit `context_length`."""
    client_options: Literal["pinned", "passed"] = "pinned"
    """Of a native request: options that would load its model anew or unload it for everybody."""
    context_length: Tokens | None = None
    parallel: Positive | None = None
    kv_cache_type: Text | None = None
    kv_tokens: Tokens | None = None
    gpu_memory: Annotated[Size, Field(gt=0)] | None = None
    gpus: tuple[Annotated[int, Field(strict=True, ge=0)] | Text, ...] | Literal["auto"] | None = None
    split: Literal["tensor", "layer", "pipeline", "data", "row", "none"] | None = None
    distributed_executor: Text | None = None
    nodes: Positive | None = None
    """Boxes that the model is spread over; `gpus` are those of this one."""
    flash_attention: Flag | None = None
    prefix_caching: Flag | None = None
    gpu_layers: Annotated[int, Field(strict=True, ge=0)] | Literal["all"] | None = None
    batch: Positive | None = None
    ubatch: Positive | None = None
    threads: Positive | None = None
    cpus: Text | None = None
    cache_ram: Size | None = None
    draft: Text | None = None
    mmproj: Text | None = None
    lora: tuple[Text, ...] | None = None
    chat_template: Text | None = None
    tool_parser: Text | None = None
    reasoning_parser: Text | None = None
    quantization: Text | None = None
    attention_backend: Text | None = None

    gate: Literal["known", "strict", "off"] = "known"
    """Of the memory that it will take: what is known not to fit does not start; `strict`: nor does what is unknown."""
    start: Literal["boot", "demand"] = "boot"
    keep_alive: KeepAlive = None
    restart: Restart = Restart()
    probe: Probe = Probe()
    slo: Slo | None = None
    leak: Leak = Leak()
    start_timeout: Annotated[Duration, Field(gt=0)] | None = None
    drain_timeout: Duration = 30.0

    command: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    venv: Text | None = None
    cwd: Text | None = None
    ready: Text | None = None
    port: Annotated[int, Field(strict=True, gt=0, lt=65536)] | None = None
    env: dict[str, str] = {}
    secret_env: dict[str, Secret] = {}
    extra_args: tuple[str, ...] = ()


LIVE = frozenset(
    {"aliases", "names", "listed", "overflow", "enabled", "start", "keep_alive", "restart", "probe", "start_timeout"}
    | {"drain_timeout", "gate", "slo", "leak", "client_options"}
)
"""Keys of a service that the daemon and the gateway obey: changing them restarts nothing."""


class Logs(Table):
    keep: Positive = 5
    """Files of one service's log, the current one included."""
    size: Annotated[Size, Field(gt=0)] = 20 * 1024**2


def cpu_list(cpus: str | None) -> list[int]:
    """`0-3,8` → 0, 1, 2, 3, 8. The form is checked with the spec."""
    found: list[int] = []
    for part in cpus.split(",") if cpus else ():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def port_range(ports: str) -> range:
    """Of `18400-18499`. ValueError where it is no range of ports."""
    low, _, high = ports.partition("-")
    if not (
        low.isascii() and low.isdigit() and high.isascii() and high.isdigit() and 0 < int(low) <= int(high) < 65536
    ):
        raise ValueError(f"{ports!r} is not a range of ports")
    return range(int(low), int(high) + 1)


class Spec(Table):
    gateway: Gateway | None = None
    ports: Text = "18400-18499"
    defaults: dict[str, Any] = {}
    services: dict[str, Service] = {}
    logs: Logs = Logs()

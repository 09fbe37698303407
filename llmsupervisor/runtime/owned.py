"""Which flags and environment variables belong to a setting or to us: `extra_args` and `env` may not touch them."""

from __future__ import annotations

from dataclasses import dataclass

from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.help import flag_of

GPU_ORDER = "CUDA_DEVICE_ORDER"


@dataclass(frozen=True, slots=True)
class Owner:
    """`key` is a key of the service, "" where the user has nothing to say; `why` is one sentence."""

    key: str
    why: str


def flags(definition: Definition) -> dict[str, Owner]:
    owners = {word: Owner("", sentence) for word, sentence in definition.native.items() if flag_of(word)}
    for fixed in definition.fixed:
        owner = Owner("", f"it is always set: {fixed.reason}")
        owners.update((word, owner) for word in (*fixed.args, *fixed.also) if flag_of(word))
    for key, setting in definition.settings.items():
        owner = Owner(key, f"the setting {key} owns it")
        own = (*setting.flags, *setting.also, *setting.native, *filter(None, (setting.off,)))
        owners.update((word, owner) for word in own if flag_of(word))
    for flag, key in ((definition.listen.host, ""), (definition.listen.port, "port")):
        if flag:
            owners[flag] = Owner(key, "the daemon gives the address")
    return owners


def environment(definition: Definition) -> dict[str, Owner]:
    """Without the `env` of `fixed`: the spec may say otherwise there."""
    owners = {word: Owner("", sentence) for word, sentence in definition.native.items() if _is_env(word)}
    for fixed in definition.fixed:
        owner = Owner("", f"it is always set: {fixed.reason}")
        owners.update((word, owner) for word in fixed.also if _is_env(word))
    for key, setting in definition.settings.items():
        owner = Owner(key, f"the setting {key} owns it")
        own = (*setting.native, *filter(None, (setting.env,)))
        owners.update((word, owner) for word in own if _is_env(word))
    if definition.listen.env:
        owners[definition.listen.env] = Owner("port", "the daemon gives the address")
    if definition.key:
        owners[definition.key.env] = Owner("", "the daemon makes a new key for every start")
    if definition.gpu:
        owners[definition.gpu.env] = Owner("gpus", "the setting gpus owns it")
        owners[GPU_ORDER] = Owner("gpus", "it is always PCI_BUS_ID, so that indices mean the same everywhere")
    return owners


def owner_of(word: str, owners: dict[str, Owner], abbreviates: bool) -> tuple[str, Owner] | None:
    """(flag, owner) of one word of `extra_args`, in every spelling that the runtime would take for the flag."""
    flag = flag_of(word)
    if flag is None:
        return None
    if flag in owners:
        return flag, owners[flag]
    if abbreviates and flag.startswith("--"):
        for full in sorted(owners):
            if full.startswith(flag):
                return full, owners[full]
    return None


def _is_env(word: str) -> bool:
    return word.isupper() and flag_of(word) is None

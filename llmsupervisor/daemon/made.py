"""What the models of an Ollama were made from: kept, so that a file that is another one by now is noticed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from llmsupervisor.host.binaries import identity

if TYPE_CHECKING:
    from llmsupervisor.daemon.runner import Runner
    from llmsupervisor.runtime.models import Model


def file_identity(path: str) -> str:
    """Empty: there is none."""
    try:
        return identity(os.stat(path)) if path else ""
    except OSError:
        return ""


class Made:
    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def of(self, model: Model) -> Mapping[str, str] | None:
        """None: not known."""
        made = self._known.get(model.tag)
        return made if made is not None and made["file"] == model.file else None

    def remember(self, model: Model, identity: str, digest: str, tags: Iterable[str]) -> None:
        """`tags`: of the models that there are; what was known of others is forgotten."""
        self._known[model.tag] = {"file": model.file, "identity": identity, "sha256": digest}
        for tag in self._known.keys() - set(tags):
            del self._known[tag]
        self._runner.box.save()

    def replaced(self, model: Model) -> str:
        """In words; empty: it is not. A file that is gone changes nothing."""
        made, now = self.of(model), file_identity(model.file)
        other = made is not None and now and made["identity"] != now
        return f"model file of {model.name} replaced: {model.file}" if other else ""

    @property
    def _known(self) -> dict[str, dict[str, str]]:
        return self._runner.box.desired.wish(self._runner.name).made

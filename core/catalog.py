"""The rows that one process may serve, found by any of their names."""

import difflib
from collections.abc import Iterable, Iterator

from core.errors import RequestError
from core.request import Task
from core.spec import PipelineSpec


class Catalog:
    """The models this process may serve, by name, source and alias, and the one meant when none is named.

    Raises ``ValueError`` when two rows share a name, ``RequestError`` for an unknown default.
    """

    def __init__(self, specs: Iterable[PipelineSpec], default: str) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._names: dict[str, str] = {}
        for spec in self._specs.values():
            for name in spec.names:
                if self._names.setdefault(name.lower(), spec.name) != spec.name:
                    raise ValueError(f"{name!r} names both {self._names[name.lower()]} and {spec.name}")
        self.default = self.get(default)

    def get(self, name: str | None) -> PipelineSpec:
        """The row of a name or alias (case-insensitive). Raises ``RequestError`` ``model_not_found``."""
        if name is None:
            return self.default
        known = self._names.get(name.strip().lower())
        if known is None:
            near = difflib.get_close_matches(name.strip().lower()[:200], self._names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._specs)}"
            raise RequestError("model_not_found", f"no such model here; {hint}", param="model")
        return self._specs[known]

    def able(self, task: Task) -> PipelineSpec:
        """The default where it can do the task, else the first row that can.

        Raises ``RequestError`` ``model_not_found``.
        """
        for spec in [self.default, *self._specs.values()]:
            if task in spec.tasks:
                return spec
        raise RequestError("model_not_found", f"no model here can {task}; add one to ALLOWED_MODELS")

    def __iter__(self) -> Iterator[PipelineSpec]:
        return iter(self._specs.values())

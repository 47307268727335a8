"""What a loaded model is to the rest of the house: three methods, and the key by which rows share them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from core.request import Image, InferenceRequest, Size, Task
from core.result import InferenceResult


@dataclass(frozen=True, slots=True)
class BatchKey:
    """Rows may share a forward only when their keys are equal: a correctness type, not a preference.

    variant: of what is asked of a vision model; see ``core.vision``.
    ``steps`` and ``cfg`` are None unless rows must also start and end together (``join="batch"``).
    """

    model: str
    task: Task
    canvas: Size
    reference_sizes: tuple[Size, ...]
    guided: bool
    adapters: tuple[tuple[str, float], ...]
    variant: str = ""
    steps: int | None = None
    cfg: float | None = None

    @classmethod
    def of(cls, request: InferenceRequest, *, together: bool = False) -> "BatchKey":
        return cls(
            request.model,
            # An edit that begins at its noised picture goes through the same forward as one from noise alone.
            request.task if request.strength is None else Task.GENERATE,
            request.canvas,
            request.reference_sizes,
            request.guided,
            request.adapters,
            "" if request.ask is None else request.ask.variant,
            request.steps_run if together else None,
            request.cfg if together else None,
        )


class RowState(Protocol):
    """One request inside a pipeline, between ``prepare`` and ``decode``."""

    @property
    def finished(self) -> bool: ...

    @property
    def remaining(self) -> int:
        """Calls of ``step`` still needed; 0 when finished."""
        ...


S = TypeVar("S", bound=RowState)


class Pipeline(Protocol[S]):
    """A loaded model. One thread owns it.

    Every method takes rows of one ``BatchKey`` and answers all of them or raises; a raise must
    leave every state as it was, so that the same rows can be run again in smaller groups.
    Memory exhaustion is raised as ``OutOfDeviceMemory``, a device that is gone as ``DeviceLost``.
    """

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[S]: ...

    def step(self, states: Sequence[S]) -> None:
        """Advance each state by exactly one step."""
        ...

    def decode(self, states: Sequence[S]) -> list[InferenceResult]:
        """Results of finished states, in order; a row with non-finite values raises."""
        ...


@runtime_checkable
class Previewing(Protocol):
    """A pipeline that can also show a row under way; cheap beside a step, and it leaves the row as it was."""

    def preview(self, state: Any) -> Image:
        """A rough picture of what an unfinished state will become, at any size of the canvas's aspect."""
        ...

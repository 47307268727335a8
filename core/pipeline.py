"""What a model is to the rest of the house: a row of facts and three methods."""

import difflib
import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from core.errors import RequestError
from core.request import SEED_MAX, Image, InferenceRequest, Size, Task
from core.result import InferenceResult


@dataclass(frozen=True, slots=True)
class BatchKey:
    """Rows may share a forward only when their keys are equal: a correctness type, not a preference.

    ``steps`` and ``cfg`` are None unless rows must also start and end together (``join="batch"``).
    """

    model: str
    task: Task
    canvas: Size
    reference_sizes: tuple[Size, ...]
    guided: bool
    adapters: tuple[tuple[str, float], ...]
    steps: int | None = None
    cfg: float | None = None

    @classmethod
    def of(cls, request: InferenceRequest, *, together: bool = False) -> "BatchKey":
        return cls(
            request.model,
            request.task,
            request.canvas,
            request.reference_sizes,
            request.guided,
            request.adapters,
            request.steps if together else None,
            request.cfg if together else None,
        )


MAX_TIMEOUT = 86_400.0  # seconds
Number = TypeVar("Number", int, float)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineSpec:
    """A registry row: all that is known of a model without loading it.

    factory:   ``"module:callable"``, imported on first use only.
    source:    hub id of the checkpoint, or ``builtin:NAME`` for one this repository builds.
    output_area / reference_area / condition_area: target pixels; sizes keep the input's aspect.
    patch:     pixels per transformer token along one side.
    reference_multiple: references are rounded to this many pixels (upstream: 32).
    references_within_output: references are never larger than the output, for a model trained so.
    """

    name: str
    factory: str
    source: str
    aliases: tuple[str, ...] = ()
    tasks: frozenset[Task] = frozenset({Task.EDIT})
    steps: int = 40
    cfg: float = 4.0
    negative_prompt: str = " "
    output_area: int = 1024 * 1024
    reference_area: int = 1024 * 1024
    condition_area: int = 384 * 384
    patch: int = 16
    reference_multiple: int = 32
    references_within_output: bool = False
    min_side: int = 64
    max_side: int = 2048
    max_steps: int = 100
    max_cfg: float = 20.0
    max_images: int = 3
    max_aspect: float = 8.0
    max_prompt_chars: int = 4000
    needs_gpu: bool = True
    vram_gb: float | None = None
    licence: str = ""

    def request(
        self,
        *,
        id: str,
        task: Task,
        prompt: str,
        images: tuple[Image, ...] = (),
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        cfg: float | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> InferenceRequest:
        """Check a caller's wishes against this model and fill in what was left open.

        None (and, for ``seed``, -1) means the model's default. Raises ``RequestError``
        ``invalid_parameter`` naming field, limit, value and remedy.
        """
        if task not in self.tasks:
            raise _invalid("task", f"{self.name} cannot {task}; it can {', '.join(sorted(self.tasks))}")
        self._check_text("prompt", prompt, empty_allowed=False)
        self._check_text("negative_prompt", negative_prompt or "", empty_allowed=True)
        if task is Task.EDIT and not 1 <= len(images) <= self.max_images:
            raise _invalid(
                "images", f"{self.name} edits 1 to {self.max_images} images; {len(images)} were given"
            )
        for image in images:
            self._check_aspect("images", image.size)
        steps = self.steps if steps is None else _within("steps", steps, 1, self.max_steps)
        cfg = self.cfg if cfg is None else float(_within("cfg", cfg, 0.0, self.max_cfg))
        if seed is None or seed == -1:
            seed = secrets.randbelow(2**32)
        _within("seed", seed, 0, SEED_MAX)
        if timeout is not None:
            _within("timeout", timeout, 0.001, MAX_TIMEOUT)
        size = self._size(width, height, images)
        canvas = (_round_up(size[0], self.patch), _round_up(size[1], self.patch))
        area = self.reference_area
        if self.references_within_output:
            area = min(area, canvas[0] * canvas[1])
        references = tuple(fit_area(i.size, area, self.reference_multiple) for i in images)
        conditions = tuple(fit_area(i.size, self.condition_area, self.reference_multiple) for i in images)
        patch_area = self.patch**2
        tokens = sum(w * h // patch_area for w, h in (canvas, *references))
        return InferenceRequest(
            id=id,
            task=task,
            model=self.name,
            prompt=prompt,
            negative_prompt=self.negative_prompt if negative_prompt is None else negative_prompt,
            images=images,
            size=size,
            canvas=canvas,
            reference_sizes=references,
            condition_sizes=conditions,
            steps=steps,
            cfg=cfg,
            seed=seed,
            tokens=tokens * (2 if cfg > 1.0 else 1),
            timeout=timeout,
        )

    def _check_text(self, field: str, text: str, *, empty_allowed: bool) -> None:
        if not empty_allowed and not text.strip():
            raise _invalid(field, f"{field} is empty; say what to do")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _invalid(field, f"{field} holds half a character pair; send valid Unicode") from None
        if len(text) > self.max_prompt_chars:
            raise _invalid(
                field,
                f"{field} of {len(text)} characters is over the limit of {self.max_prompt_chars}; shorten it",
            )

    def _size(self, width: int | None, height: int | None, images: tuple[Image, ...]) -> Size:
        # The last image gives the default aspect, as in diffusers' QwenImageEditPlusPipeline.
        source = images[-1].size if images else (1, 1)
        if width is None and height is None:
            fitted = fit_area(source, self.output_area, self.reference_multiple)
            if max(fitted) > self.max_side:
                # A long, thin input: less area keeps its aspect under the limit.
                area = round(self.output_area * (self.max_side / max(fitted)) ** 2)
                fitted = fit_area(source, area, self.reference_multiple)
            return (
                min(max(fitted[0], self.min_side), self.max_side),
                min(max(fitted[1], self.min_side), self.max_side),
            )
        if width is None:
            assert height is not None
            width = max(1, round(height * source[0] / source[1]))
        elif height is None:
            height = max(1, round(width * source[1] / source[0]))
        _within("width", width, self.min_side, self.max_side)
        _within("height", height, self.min_side, self.max_side)
        self._check_aspect("width", (width, height))
        return width, height

    def _check_aspect(self, field: str, size: Size) -> None:
        if max(size) > self.max_aspect * min(size):
            raise _invalid(
                field,
                f"{size[0]}x{size[1]} is over the limit of {self.max_aspect:g}:1; bring the sides closer",
            )


class Catalog:
    """The models this process may serve, by name, source and alias, and the one meant when none is named.

    Raises ``ValueError`` when two rows share a name, ``RequestError`` for an unknown default.
    """

    def __init__(self, specs: Iterable[PipelineSpec], default: str) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._names: dict[str, str] = {}
        for spec in self._specs.values():
            for name in (spec.name, spec.source, *spec.aliases):
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

    def __iter__(self) -> Iterator[PipelineSpec]:
        return iter(self._specs.values())


def fit_area(size: Size, area: int, multiple: int) -> Size:
    """The size of ``size``'s aspect with about ``area`` pixels, each side a multiple of ``multiple``.

    Source: ``calculate_dimensions`` of diffusers' ``pipeline_qwenimage_edit_plus.py``, with one
    multiple as the floor so that an extreme aspect cannot round a side to zero.
    """
    ratio = size[0] / size[1]
    width = math.sqrt(area * ratio)
    height = width / ratio
    return (
        max(multiple, round(width / multiple) * multiple),
        max(multiple, round(height / multiple) * multiple),
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _within(field: str, value: Number, low: Number, high: Number) -> Number:
    if not low <= value <= high:  # also refuses NaN
        # A number of a thousand digits is not worth repeating, and cannot be made a float.
        shown = f" {value}" if abs(value) < 1e15 or value != value else ""
        raise _invalid(field, f"{field}{shown} is outside {low} to {high}; choose one inside")
    return value


def _invalid(field: str, message: str) -> RequestError:
    return RequestError("invalid_parameter", message, param=field)

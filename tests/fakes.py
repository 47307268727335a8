"""Pipelines, requests and clocks for tests. Every picture shows whose it is and how it was made."""

import hashlib
import queue
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from batching.mux import BatchMux
from core.errors import ServingError
from core.request import Image, InferenceRequest, Size, Task
from core.result import InferenceResult

WAIT = 10.0  # seconds after which a test that waits for something has failed


def make_request(
    id: str = "a",
    *,
    steps: int = 4,
    size: Size = (16, 16),
    cfg: float = 1.0,
    model: str = "paint",
    seed: int = 0,
    prompt: str = "",
    images: tuple[Image, ...] = (),
    tokens: int | None = None,
    timeout: float | None = None,
    task: Task = Task.EDIT,
) -> InferenceRequest:
    """A correct request; ``tokens`` defaults to one for each 16 x 16 pixels."""
    return InferenceRequest(
        id=id,
        task=task,
        model=model,
        prompt=prompt or f"prompt of {id}",
        images=images,
        size=size,
        canvas=size,
        steps=steps,
        cfg=cfg,
        seed=seed,
        tokens=max(1, size[0] * size[1] // 256) if tokens is None else tokens,
        timeout=timeout,
    )


def paint(request: InferenceRequest, steps_run: int) -> Image:
    """Pixels that hold the request's id and a hash of its parameters and of the steps it was given."""
    parameters = (request.id, request.prompt, request.negative_prompt, request.seed, request.cfg, steps_run)
    stamp = hashlib.sha256(repr(parameters).encode()).digest()
    width, height = request.canvas
    size = width * height * 3
    return Image(pixels=(stamp * (size // 32 + 1))[:size], width=width, height=height, digest=stamp.hex())


def is_picture_of(result: InferenceResult, request: InferenceRequest) -> bool:
    """Whether this is the request's own picture, made in exactly its own number of steps."""
    return result.id == request.id and result.image == paint(request, request.steps)


@dataclass(slots=True)
class PaintedState:
    request: InferenceRequest
    steps_run: int = 0

    @property
    def remaining(self) -> int:
        return self.request.steps - self.steps_run

    @property
    def finished(self) -> bool:
        return self.remaining == 0


Hook = Callable[[str, list[str]], None]  # stage, ids of the rows


class PaintingPipeline:
    """Does its work honestly. ``hooks`` see every call before it has any effect; they may raise or wait.

    ``calls`` lists every call: stage and ids, failed ones included.
    """

    def __init__(self, *hooks: Hook) -> None:
        self.hooks = list(hooks)
        self.calls: list[tuple[str, list[str]]] = []

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[PaintedState]:
        self._enter("prepare", [request.id for request in requests])
        return [PaintedState(request) for request in requests]

    def step(self, states: Sequence[PaintedState]) -> None:
        self._enter("step", [state.request.id for state in states])
        for state in states:
            state.steps_run += 1

    def decode(self, states: Sequence[PaintedState]) -> list[InferenceResult]:
        self._enter("decode", [state.request.id for state in states])
        return [
            InferenceResult(
                id=state.request.id,
                output=paint(state.request, state.steps_run),
                model=state.request.model,
                seed=state.request.seed,
                steps=state.request.steps,
            )
            for state in states
        ]

    def stages(self, stage: str) -> list[list[str]]:
        return [ids for name, ids in self.calls if name == stage]

    def _enter(self, stage: str, ids: list[str]) -> None:
        self.calls.append((stage, ids))
        for hook in self.hooks:
            hook(stage, ids)


class Poison:
    """A hook: any call of a stage that holds one of these rows raises."""

    def __init__(self, *ids: str, stage: str = "step", error: BaseException | None = None) -> None:
        self.ids = set(ids)
        self.stage = stage
        self.error = error or ValueError("this row is poison")

    def __call__(self, stage: str, ids: list[str]) -> None:
        if stage == self.stage and self.ids & set(ids):
            raise self.error


class Hiccup:
    """A hook: the next ``times`` calls of a stage raise, whoever is in them."""

    def __init__(self, times: int = 1, stage: str = "step") -> None:
        self.times = times
        self.stage = stage

    def __call__(self, stage: str, ids: list[str]) -> None:
        if stage == self.stage and self.times:
            self.times -= 1
            raise ConnectionError("a fault that passes")


class SmallMemory:
    """A hook: calls of a stage with more than ``rows`` rows run out of memory."""

    def __init__(self, rows: int, error: Callable[[], ServingError], stage: str = "step") -> None:
        self.rows = rows
        self.stage = stage
        self.error = error

    def __call__(self, stage: str, ids: list[str]) -> None:
        if stage == self.stage and len(ids) > self.rows:
            raise self.error()


class Turnstile:
    """A hook: every call of these stages stops until the test lets it pass."""

    def __init__(self, *stages: str) -> None:
        self._stages: Collection[str] = stages or ("step",)
        self._waiting: queue.Queue[list[str]] = queue.Queue()
        self._passes = threading.Semaphore(0)
        self._open = threading.Event()

    def __call__(self, stage: str, ids: list[str]) -> None:
        if stage not in self._stages or self._open.is_set():
            return
        self._waiting.put(ids)
        assert self._passes.acquire(timeout=WAIT), "nobody let the call pass"

    def waiting(self) -> list[str]:
        """Wait for the next call to come; the ids of its rows."""
        return self._waiting.get(timeout=WAIT)

    def pass_one(self) -> None:
        self._passes.release()

    def open(self) -> None:
        """Let everything pass, now and later."""
        self._open.set()
        self._passes.release(1000)


class Clock:
    """Time that moves only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def assert_accounted(mux: BatchMux) -> None:
    """Nothing lost: every accepted job is in exactly one state, at any moment."""
    stats = mux.stats()
    assert stats.balanced, stats

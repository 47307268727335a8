"""What every row of the registry promises before a pixel is computed, and what a caller sees while it is.

The first half needs no weights, so rows that need a GPU are held to it too. The second half runs the rows
that run here, through the mux.
"""

import gc
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from batching.job import JobState
from batching.mux import BatchMux, BatchPolicy
from core.errors import RequestError
from core.request import InferenceRequest, Task
from core.result import Progress
from core.spec import PipelineSpec
from pipelines.manager import ModelManager
from pipelines.options import LoadedPipeline, ModelOptions
from pipelines.registry import catalog
from tests.pipelines.edits import picture, pixels
from tests.pipelines.rows import PAINTERS, PAINTERS_HERE

WAIT = 60.0  # seconds after which a test that waits for something has failed
EVERY_ROW = pytest.mark.parametrize("spec", PAINTERS, ids=lambda spec: spec.name)
NAN = float("nan")


def ask(spec: PipelineSpec, **wishes: Any) -> InferenceRequest:
    """An edit where the row edits, else a picture of a text; everything open but the wishes."""
    edits = Task.EDIT in spec.tasks
    task = wishes.get("task", Task.EDIT if edits else Task.GENERATE)
    given: dict[str, Any] = {"id": "r", "prompt": "a red boat on a lake", "task": task}
    given["images"] = (picture(1),) if task is Task.EDIT else ()
    return spec.request(**(given | wishes))


@dataclass(frozen=True)
class Case:
    """A request that a row must refuse.

    field: that the refusal names. words: parts of its text, among them the limit and what was asked.
    """

    name: str
    field: str
    words: Sequence[str]
    wishes: dict[str, Any]
    spec: PipelineSpec


def refusals(spec: PipelineSpec) -> Iterator[Case]:
    """All that applies to a row: its limits, and everything that it cannot do."""

    def case(name: str, field: str, *words: object, row: PipelineSpec = spec, **wishes: Any) -> Case:
        return Case(f"{spec.name}: {name}", field, [str(word) for word in words], wishes, row)

    low, high = spec.min_side, spec.max_side
    yield case("too small", "width", low - 1, low, width=low - 1, height=low)
    yield case("too large", "height", high + 1, high, width=high, height=high + 1)
    yield case("a negative side", "height", -64, low, width=low, height=-64)
    if high > spec.max_aspect * low:
        yield case("too long", "width", f"{high}x{low}", f"{spec.max_aspect:g}:1", width=high, height=low)
    yield case("no steps", "steps", "steps 0 ", spec.max_steps, steps=0)
    yield case("too many steps", "steps", spec.max_steps + 1, spec.max_steps, steps=spec.max_steps + 1)
    yield case("cfg NaN", "cfg", "nan", spec.max_cfg, cfg=NAN)
    yield case("cfg negative", "cfg", -1, spec.max_cfg, cfg=-1.0)
    yield case("too much cfg", "cfg", spec.max_cfg + 1, spec.max_cfg, cfg=spec.max_cfg + 1)
    longest = spec.max_prompt_chars
    yield case("a long prompt", "prompt", longest + 1, longest, prompt="x" * (longest + 1))
    yield case("no prompt", "prompt", "empty", prompt="")
    for task in sorted(set(Task) - spec.tasks):
        yield case(f"task {task}", "task", spec.name, task, task=task, images=())
    yield from _about_pictures(spec, case)
    yield from _about_extras(spec, case)


def _about_pictures(spec: PipelineSpec, case: Callable[..., Case]) -> Iterator[Case]:
    if Task.EDIT in spec.tasks:
        most = spec.max_images
        yield case("no picture", "images", f"1 to {most}", "not 0", images=())
        yield case("many pictures", "images", f"1 to {most}", most + 1, images=(picture(1),) * (most + 1))
        thin = picture(1, 8 * (int(spec.max_aspect) + 1), 8)
        yield case("a thin picture", "images", f"{thin.width}x8", f"{spec.max_aspect:g}:1", images=(thin,))
    if Task.GENERATE in spec.tasks:
        yield case("a picture too many", "images", "leave", task=Task.GENERATE, images=(picture(1),))
    if not spec.masks:
        yield case("no masks", "mask", spec.name, "no mask", mask=picture(1))
        return
    yield case("a mask of another size", "mask", "64x96", "96x96", mask=picture(1, 64, 96))
    if Task.GENERATE in spec.tasks:
        yield case("a mask of nothing", "mask", "picture", task=Task.GENERATE, mask=picture(1))


def _about_extras(spec: PipelineSpec, case: Callable[..., Case]) -> Iterator[Case]:
    if spec.strength is None:
        yield case("no strength", "strength", spec.name, "no strength", strength=0.5)
    else:
        yield case("strength over 1", "strength", 1.5, "1.0", strength=1.5)
        yield case("strength NaN", "strength", "nan", "1.0", strength=NAN)
        yield case("strength for no step", "strength", "0.1", "4 steps", strength=0.1, steps=4)
        if Task.GENERATE in spec.tasks:
            yield case("strength of nothing", "strength", "picture", task=Task.GENERATE, strength=0.5)
    few = replace(spec, step_cache=True, lightning_steps=4)
    yield case("a cache of few steps", "step_cache", "4 Lightning steps", row=few, step_cache=0.1)
    if spec.step_cache and spec.lightning_steps is None:
        yield case("too much cache", "step_cache", 1.5, "1.0", step_cache=1.5)
    elif not spec.step_cache:
        yield case("no cache", "step_cache", spec.name, "in full", step_cache=0.1)
    loras = replace(spec, adapters=frozenset({"comic", "pencil"}), max_adapters=2, adapters_refused=None)
    none = replace(loras, adapters=frozenset())
    yield case("no loras", "loras", spec.name, row=none, adapters=[("comic", 1.0)])
    yield case("a misspelt lora", "loras", "mean 'comic'", row=loras, adapters=[("comik", 1.0)])
    yield case("a lora too strong", "loras", 9, "-4 to 4", row=loras, adapters=[("comic", 9.0)])
    three = [("comic", 1.0), ("pencil", 1.0), ("comic", 1.0)]
    yield case("too many loras", "loras", "3 loras", "limit of 2", row=loras, adapters=three)


REFUSALS = [case for spec in PAINTERS for case in refusals(spec)]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
def test_a_bad_request_is_refused_by_name(case: Case) -> None:
    """From the row alone, at no cost: the message names field, limit, value and remedy."""
    with pytest.raises(RequestError) as caught:
        ask(case.spec, **case.wishes)
    error = caught.value
    assert (error.code, error.param) == ("invalid_parameter", case.field)
    assert all(word in error.message for word in case.words), error.message
    assert ";" in error.message, f"no remedy: {error.message}"


@EVERY_ROW
def test_the_same_request_without_the_fault_is_taken(spec: PipelineSpec) -> None:
    """The control of the refusals: each of them differs from this one in a single wish."""
    assert ask(spec, width=spec.min_side, height=spec.min_side, steps=1, cfg=0.0).steps == 1
    assert ask(spec, prompt="x" * spec.max_prompt_chars, steps=spec.max_steps, cfg=spec.max_cfg).guided


@EVERY_ROW
def test_a_rows_defaults_are_within_its_own_limits(spec: PipelineSpec) -> None:
    """A request that names nothing must not be refused, whichever task it is for."""
    assert spec.tasks
    assert spec.min_side <= spec.max_side
    assert spec.lightning_steps is None or spec.steps == spec.lightning_steps
    for task in spec.tasks & {Task.GENERATE, Task.EDIT}:
        request = ask(spec, task=task)
        assert 1 <= request.steps_run <= request.steps <= spec.max_steps
        assert 0.0 <= request.cfg <= spec.max_cfg
        assert all(spec.min_side <= side <= spec.max_side for side in request.size)
        assert all(side % spec.multiple == 0 for side in request.canvas)
        assert request.tokens > 0
        assert (request.mask, request.adapters, request.step_cache) == (None, (), 0.0)
        assert (request.strength is not None) == (task is Task.EDIT and spec.strength is not None)


@EVERY_ROW
def test_what_a_row_says_it_can_do_it_takes(spec: PipelineSpec) -> None:
    """A feature that no request can reach is none."""
    wishes: dict[str, Any] = {"steps": 10}
    if spec.masks:
        wishes["mask"] = picture(1)
    if spec.strength is not None and Task.EDIT in spec.tasks:
        wishes["strength"] = 0.5
    if spec.step_cache and spec.lightning_steps is None:
        wishes["step_cache"] = 0.1
    with_lora = replace(spec, adapters=frozenset({"comic"}), adapters_refused=None)
    request = ask(with_lora, **wishes, adapters=[("comic", 0.5)])
    assert (request.mask is not None, request.step_cache) == (spec.masks, wishes.get("step_cache", 0.0))
    assert request.adapters == (("comic", 0.5),)
    assert request.steps_run == (5 if "strength" in wishes else 10)
    if spec.max_images > 1 and Task.EDIT in spec.tasks:
        assert len(ask(spec, images=(picture(1),) * spec.max_images).images) == spec.max_images


@EVERY_ROW
def test_an_odd_size_is_honoured_on_a_canvas_that_the_model_can_run(spec: PipelineSpec) -> None:
    """Clients send 101x67; the answer has that size, and only whole tokens are computed."""
    width, height = spec.min_side + 37, spec.min_side + 3
    request = ask(spec, width=width, height=height)
    assert request.size == (width, height)
    assert all(0 <= c - s < spec.multiple for c, s in zip(request.canvas, request.size, strict=True))


# Through the mux, with the rows that run here.


def small(spec: PipelineSpec, number: int, **wishes: Any) -> InferenceRequest:
    """The cheapest picture of a row."""
    side = spec.min_side
    seeded: dict[str, Any] = {"id": f"r{number}", "seed": number, "width": side, "height": side, "cfg": 1.0}
    return ask(spec, **(seeded | wishes))


class Watched:
    """The pipeline itself; ``ticks`` keeps which requests each step was for, ``states`` their type."""

    def __init__(self, pipeline: LoadedPipeline) -> None:
        self._pipeline = pipeline
        self._ids: dict[int, str] = {}
        self.ticks: list[list[str]] = []
        self.states: type = type(None)
        self.decode = pipeline.decode

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[Any]:
        states = self._pipeline.prepare(requests)
        for request, state in zip(requests, states, strict=True):
            self._ids[id(state)] = request.id
            self.states = type(state)
        return states

    def step(self, states: Sequence[Any]) -> None:
        self.ticks.append([self._ids[id(state)] for state in states])
        self._pipeline.step(states)

    def alive(self) -> int:
        """States that something still refers to."""
        gc.collect()
        return sum(type(thing) is self.states for thing in gc.get_objects())


@dataclass(frozen=True)
class Served:
    spec: PipelineSpec
    watched: Watched

    def mux(self) -> BatchMux:
        return BatchMux(lambda model: self.watched, BatchPolicy(min_gain=0.0))


@pytest.fixture(scope="module", params=PAINTERS_HERE, ids=lambda spec: spec.name)
def served(request: pytest.FixtureRequest, options: ModelOptions) -> Served:
    rows = catalog(request.param.name)
    return Served(rows.default, Watched(ModelManager(rows, options).acquire(rows.default.name)))


def test_every_step_is_told_once_and_in_order(served: Served) -> None:
    """A progress bar moves forward, reaches its end and never passes it."""
    told: queue.Queue[Progress] = queue.Queue()
    with served.mux() as mux:
        result = mux.submit(small(served.spec, 1, steps=5), told.put).result(WAIT)
    request = small(served.spec, 1, steps=5)
    assert told.qsize() == request.steps_run
    progress = [told.get() for _ in range(request.steps_run)]
    assert [each.step for each in progress] == list(range(1, request.steps_run + 1))
    assert {(each.state, each.steps) for each in progress} == {("running", request.steps_run)}
    assert result.steps == 5, "what was asked for, also where a picture is only partly redrawn"


def test_a_row_cancelled_at_a_step_is_freed(served: Served) -> None:
    """It takes no step more, its neighbour's picture is as if it had never been there, nothing is kept."""
    neighbour = small(served.spec, 2, steps=6)
    with served.mux() as mux:
        alone = mux.submit(neighbour).result(WAIT)
    served.watched.ticks.clear()
    told: list[int] = []

    def leave(progress: Progress) -> None:
        told.append(progress.step)
        if progress.step == 2:
            assert mux.cancel("r1")

    with served.mux() as mux:
        leaving = mux.submit(small(served.spec, 1, steps=40), leave)
        beside = mux.submit(neighbour).result(WAIT)
        error = leaving.exception(WAIT)
        jobs = mux.stats().jobs
    assert isinstance(error, RequestError)
    assert error.code == "cancelled"
    assert told == [1, 2]
    assert sum("r1" in tick for tick in served.watched.ticks) == 2
    assert (jobs[JobState.CANCELLED], jobs[JobState.SUCCEEDED], jobs[JobState.RUNNING]) == (1, 1, 0)
    assert int(np.abs(pixels(beside) - pixels(alone)).max()) <= 1
    assert served.watched.alive() == 0, "the row's tensors would stay on the device"


def test_a_state_that_is_kept_is_noticed(served: Served) -> None:
    """The check above must be able to fail."""
    states = served.watched.prepare([small(served.spec, 3, steps=4)])
    assert served.watched.alive() == len(states) == 1

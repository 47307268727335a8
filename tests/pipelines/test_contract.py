"""What every pipeline promises the mux. A new family adds one line to FAMILIES.

Pipelines are acquired as the mux acquires them: by name, through the manager, from a checkpoint on disk.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from core.errors import ExecutionError
from core.pipeline import BatchKey, Pipeline
from core.request import Image, InferenceRequest, Task
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions
from pipelines.registry import catalog
from tests.pipelines import edits, looks, paintings
from tests.pipelines.looks import difference
from tests.pipelines.rows import BUILT_IN

PIXEL_TOLERANCE = 1  # a value in the middle between two may round either way
FLOAT_TOLERANCE = 2e-5  # of values of unit size
BOX_TOLERANCE = 2e-3  # of boxes in pixels of pictures of a hundred: 2e-5 of their size


@dataclass(frozen=True)
class Family:
    """mixed: four requests of one batch key that differ in everything it leaves open.

    poison: spoils a prepared state. tolerance: between alone and in a batch, in the units of the answer.
    """

    mixed: Callable[[str], list[InferenceRequest]]
    poison: Callable[[Any], None]
    tolerance: float = PIXEL_TOLERANCE


def edits_of(name: str, cfg: tuple[float, ...] = (1.0,) * 4) -> list[InferenceRequest]:
    spec = catalog(name).default
    return [
        edits.ask(spec, i, steps=steps, cfg=cfg[i], width=96, height=64)
        for i, steps in enumerate((4, 4, 8, 2))
    ]


def guided_edits_of(name: str) -> list[InferenceRequest]:
    return edits_of(name, (4.0, 1.5, 7.0, 2.5))


STRENGTHS = (None, 1.0, 0.5, 0.7)  # None: of a text alone


def paintings_of(
    name: str, cfg: tuple[float, ...] = (1.0,) * 4, strengths: tuple[float | None, ...] = (None,) * 4
) -> list[InferenceRequest]:
    """Some begin at a picture, and one of those has a mask: all share a forward."""
    spec = catalog(name).default
    wishes: list[dict[str, Any]] = [{"steps": steps, "cfg": cfg[i]} for i, steps in enumerate((4, 4, 8, 2))]
    for i, strength in enumerate(strengths):
        if strength is not None:
            wishes[i] |= {"images": (edits.picture(i),), "strength": strength}
    if strengths[2] is not None:
        wishes[2]["mask"] = paintings.disc()
    return [paintings.paint(spec, i, width=96, **wish) for i, wish in enumerate(wishes)]


def guided_paintings_of(name: str) -> list[InferenceRequest]:
    return paintings_of(name, (4.0, 1.5, 7.0, 2.5))


def paintings_of_pictures(name: str) -> list[InferenceRequest]:
    return paintings_of(name, strengths=STRENGTHS)


def guided_paintings_of_pictures(name: str) -> list[InferenceRequest]:
    return paintings_of(name, (4.0, 1.5, 7.0, 2.5), STRENGTHS)


def masked_edits_of(name: str) -> list[InferenceRequest]:
    """Two with a mask, each another half, beside two without."""
    left, right = (b"\xff" * 144 + b"\x00" * 144) * 96, (b"\x00" * 144 + b"\xff" * 144) * 96
    halves = [Image(pixels=pixels, width=96, height=96) for pixels in (left, right)]
    return [
        replace(request, mask=mask)
        for request, mask in zip(edits_of(name), [halves[0], halves[1], None, None], strict=True)
    ]


def generations_of(name: str, cfg: tuple[float, ...] = (1.0,) * 4) -> list[InferenceRequest]:
    spec = catalog(name).default
    return [
        edits.ask(spec, i, task=Task.GENERATE, images=(), steps=steps, cfg=cfg[i], width=96, height=64)
        for i, steps in enumerate((4, 4, 8, 2))
    ]


def guided_generations_of(name: str) -> list[InferenceRequest]:
    return generations_of(name, (4.0, 1.5, 7.0, 2.5))


def spoil_latents(state: Any) -> None:
    state.latents = state.latents * float("nan")


FAMILIES = {
    "pocket-edit": Family(edits_of, spoil_latents),
    "pocket-edit, guided": Family(guided_edits_of, spoil_latents),
    "pocket-sdxl": Family(paintings_of, spoil_latents),
    "pocket-sdxl, guided": Family(guided_paintings_of, spoil_latents),
    "pocket-sdxl, some of pictures": Family(paintings_of_pictures, spoil_latents),
    "pocket-sdxl, some of pictures, guided": Family(guided_paintings_of_pictures, spoil_latents),
    "pocket-edit, masked": Family(masked_edits_of, spoil_latents),
    "pocket-image": Family(generations_of, spoil_latents),
    "pocket-image, guided": Family(guided_generations_of, spoil_latents),
    "pocket-dinov3": Family(looks.looks_of, looks.spoil_pictures, FLOAT_TOLERANCE),
    "pocket-depth": Family(looks.looks_of, looks.spoil_pictures, FLOAT_TOLERANCE),
    "pocket-sam3": Family(looks.looks_of, looks.spoil_pictures),
    "pocket-sam3, boxed": Family(looks.boxed_looks_of, looks.spoil_pictures),
    "pocket-grounding-dino": Family(looks.looks_of, looks.spoil_pictures, BOX_TOLERANCE),
}


@dataclass(frozen=True)
class Candidate:
    pipeline: Pipeline[Any]
    requests: list[InferenceRequest]
    poison: Callable[[Any], None]
    tolerance: float


@pytest.fixture(scope="module", params=FAMILIES)
def candidate(request: pytest.FixtureRequest, options: ModelOptions) -> Candidate:
    name, family = request.param.partition(",")[0], FAMILIES[request.param]
    pipeline = ModelManager(catalog(name), options).acquire(name)
    return Candidate(pipeline, family.mixed(name), family.poison, family.tolerance)


def test_every_pipeline_that_runs_here_is_tested() -> None:
    """A row without a line above would be served untested."""
    assert {name.partition(",")[0] for name in FAMILIES} == {spec.name for spec in BUILT_IN}


@pytest.mark.parametrize("ticks", [(0, 0, 0, 0), (0, 1, 1, 3), (2, 0, 0, 1)], ids=str)
def test_a_batch_gives_what_its_rows_give_alone(candidate: Candidate, ticks: tuple[int, ...]) -> None:
    """Whoever else is there, and whenever each one joined."""
    assert len({BatchKey.of(request) for request in candidate.requests}) == 1
    states = edits.run_joining(candidate.pipeline, candidate.requests, ticks)
    results = candidate.pipeline.decode(states)
    for request, result in zip(candidate.requests, results, strict=True):
        assert result.id == request.id
        assert difference(result, edits.edit(candidate.pipeline, request)) <= candidate.tolerance
    assert difference(results[0], results[1]) > 20 * candidate.tolerance


def test_a_seed_means_a_picture(candidate: Candidate) -> None:
    """The same request gives the same bytes; the seed used is reported."""
    request = candidate.requests[0]
    first, second = (edits.edit(candidate.pipeline, request) for _ in range(2))
    assert first == second
    assert (first.seed, first.steps, first.model) == (request.seed, request.steps, request.model)


def test_a_row_that_leaves_takes_nothing_with_it(candidate: Candidate) -> None:
    """Cancelled between two steps, it must not move the others."""
    requests = candidate.requests
    leaves = min(2, requests[0].steps_run - 1)

    def drop_first(tick: int, running: list[Any]) -> None:
        if tick == leaves:
            running.pop(0)

    states = edits.run_joining(candidate.pipeline, requests, (0, 0, 0, 0), drop_first)
    assert not states[0].finished
    for request, result in zip(requests[1:], candidate.pipeline.decode(states[1:]), strict=True):
        assert difference(result, edits.edit(candidate.pipeline, request)) <= candidate.tolerance


def test_a_poisoned_row_fails_alone(candidate: Candidate) -> None:
    """It raises wherever it is decoded; its neighbours are as if it had never been there."""
    states = candidate.pipeline.prepare(candidate.requests)
    candidate.poison(states[1])
    edits.run_to_end(candidate.pipeline, states)
    for group in (states, states[1:2]):
        with pytest.raises(ExecutionError):
            candidate.pipeline.decode(group)
    healthy = [0, 2, 3]
    results = candidate.pipeline.decode([states[i] for i in healthy])
    for i, result in zip(healthy, results, strict=True):
        alone = edits.edit(candidate.pipeline, candidate.requests[i])
        assert difference(result, alone) <= candidate.tolerance


def test_a_step_is_a_step(candidate: Candidate) -> None:
    """The scheduler orders work by what remains, and callers see it as progress."""
    states = candidate.pipeline.prepare(candidate.requests)
    assert [state.remaining for state in states] == [request.steps_run for request in candidate.requests]
    while running := [state for state in states if not state.finished]:
        before = [state.remaining for state in running]
        candidate.pipeline.step(running)
        assert [state.remaining for state in running] == [left - 1 for left in before]
    assert all(state.remaining == 0 for state in states)


def test_a_result_has_the_size_of_its_canvas(candidate: Candidate) -> None:
    """The edge resizes from there to what was asked; findings are told in the pixels of the picture."""
    request = candidate.requests[0]
    expected = request.canvas if request.ask is None else request.size
    assert getattr(edits.edit(candidate.pipeline, request).output, "size", expected) == expected

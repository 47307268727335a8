"""The three calls on a pipeline, each checked, so that no row is ever given another row's answer.

Knows nothing of threads, futures or the scheduler.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from core.errors import ExecutionError, ServingError
from core.pipeline import Pipeline, RowState
from core.request import Image, InferenceRequest
from core.result import InferenceResult
from core.vision import FINDINGS_OF


class BrokenContract(Exception):
    """A pipeline answered with something other than what it was asked; for the log only."""


def prepare(pipeline: Pipeline[Any], requests: Sequence[InferenceRequest]) -> list[RowState]:
    """One unfinished state for each request. Raises ``BrokenContract``."""
    states: list[RowState] = list(pipeline.prepare(requests))
    _check_count("prepare", states, requests)
    for state in states:
        if state.finished or state.remaining < 1:
            raise BrokenContract("prepare answered with a finished state")
    return states


def step(
    pipeline: Pipeline[Any], states: Sequence[RowState], expected: Sequence[int]
) -> list[BrokenContract | None]:
    """Advance every state by one; a row that is not at its ``expected`` remaining steps is at fault itself.

    The others have moved by then, so a fault found here is never a reason to run them again.
    """
    pipeline.step(states)
    return [
        None
        if state.remaining == remaining and state.finished == (remaining == 0)
        else BrokenContract(f"{state.remaining} steps remain where {remaining} should")
        for state, remaining in zip(states, expected, strict=True)
    ]


def decode(
    pipeline: Pipeline[Any], states: Sequence[RowState], requests: Sequence[InferenceRequest]
) -> list[InferenceResult]:
    """The result of each request, in order. Raises ``BrokenContract``."""
    results = list(pipeline.decode(states))
    _check_count("decode", results, requests)
    for result, request in zip(results, requests, strict=True):
        if result.id != request.id or result.model != request.model:
            raise BrokenContract("decode answered for another request")
        _check_output(result, request)
    return results


def with_timing(
    result: InferenceResult,
    *,
    arrival: float,
    prepared: float,
    decoded: float,
    batch_size: int,
    mates: tuple[str, ...] = (),
) -> InferenceResult:
    return replace(
        result,
        queue_seconds=prepared - arrival,
        inference_seconds=decoded - prepared,
        batch_size=batch_size,
        mates=mates,
    )


def as_answer(error: Exception) -> ServingError:
    """What the caller is told: our own errors as they are, anything else without its details."""
    if isinstance(error, ServingError):
        return error
    return ExecutionError("pipeline_error", "the model failed on this request; the fault is in the log")


def _check_count(stage: str, answers: Sequence[object], asked: Sequence[object]) -> None:
    if len(answers) != len(asked):
        raise BrokenContract(f"{stage} answered {len(answers)} of {len(asked)} rows")


def _check_output(result: InferenceResult, request: InferenceRequest) -> None:
    expected = FINDINGS_OF.get(request.task, Image)
    if not isinstance(result.output, expected):
        raise BrokenContract(f"decode answered with {type(result.output).__name__} to {request.task}")
    if isinstance(result.output, Image) and result.output.size != request.canvas:
        raise BrokenContract(f"decode made {result.output.size} where {request.canvas} was asked for")

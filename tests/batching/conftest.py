"""A mux around a fake pipeline, checked for lost jobs when the test is over."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from batching.mux import BatchMux, BatchPolicy
from core.pipeline import Pipeline
from tests.fakes import assert_accounted

StartMux = Callable[..., BatchMux]


@pytest.fixture
def start_mux() -> Iterator[StartMux]:
    """``start_mux(pipeline, policy=…, on_fatal=…)``: started now; closed and accounted for at the end."""
    with ExitStack() as stack:

        def start(
            pipeline: Pipeline[Any] | Callable[[str], Pipeline[Any]],
            policy: BatchPolicy | None = None,
            **rest: Any,
        ) -> BatchMux:
            acquire = pipeline if callable(pipeline) else lambda model: pipeline
            mux = BatchMux(acquire, policy or BatchPolicy(), **rest)
            stack.callback(assert_accounted, mux)
            return stack.enter_context(mux)

        yield start

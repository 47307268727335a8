"""The server side of ``benchmarks.http_load``: our application and mux around a pipeline of known speed."""

import argparse
import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pybase64

from api.app import ApiOptions, create_app
from api.codec import Codec
from api.files import FileOptions, FileStore
from api.intake import ImageIntake, IntakeOptions
from api.metrics import Metrics
from api.server import ServerOptions, serve
from batching.mux import BatchMux, BatchPolicy
from core.catalog import Catalog
from core.request import InferenceRequest
from core.result import InferenceResult
from core.service import Health, port
from core.spec import PipelineSpec
from core.stats import Stats

T = TypeVar("T")

SIDE = 576
BATCH = 8
STEP_SECONDS = 0.020
ROW_SECONDS = 0.002

SPEC = PipelineSpec(
    name="timed",
    factory="none:none",
    source="builtin:timed",
    steps=1,
    cfg=1.0,
    output_area=SIDE * SIDE,
    reference_area=SIDE * SIDE,
)


@dataclass
class Row:
    request: InferenceRequest
    remaining: int = 1

    @property
    def finished(self) -> bool:
        return self.remaining == 0


class TimedPipeline:
    """One step that takes 20 + 2·n ms and leaves each row its own input picture as the answer."""

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[Row]:
        return [Row(request) for request in requests]

    def step(self, states: Sequence[Row]) -> None:
        time.sleep(STEP_SECONDS + ROW_SECONDS * len(states))
        for state in states:
            state.remaining -= 1

    def decode(self, states: Sequence[Row]) -> list[InferenceResult]:
        return [
            InferenceResult(
                id=state.request.id,
                output=state.request.images[0],
                model=SPEC.name,
                seed=state.request.seed,
                steps=1,
            )
            for state in states
        ]


class MeasuredCodec(Codec):
    """Adds up the CPU time of its threads' calls."""

    seconds = 0.0

    async def finish(self, call: Callable[[], T]) -> T:
        def measured() -> tuple[T, float]:
            start = time.thread_time()
            return call(), time.thread_time() - start

        outcome, seconds = await super().finish(measured)
        self.seconds += seconds
        return outcome


def base64_seconds(rounds: int = 200) -> float:
    """CPU of the base64 in a request's codec calls; measured here, in the server's own memory."""
    data = bytes(SIDE * SIDE * 3)
    text = base64.b64encode(data)
    start = time.thread_time()
    for _ in range(rounds):
        pybase64.b64decode(text, validate=True)
        b"".join((b'{"image":"', pybase64.b64encode(data), b'"}'))
    return (time.thread_time() - start) / rounds


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--codec-threads", type=int, default=4)
    options = arguments.parse_args()

    pipeline = TimedPipeline()
    with (
        BatchMux(lambda model: pipeline, BatchPolicy(max_batch_size=BATCH)) as mux,
        ImageIntake(IntakeOptions(codec_threads=options.codec_threads)) as intake,
    ):
        codec = intake.codec = MeasuredCodec(options.codec_threads, 256)

        def counts() -> dict[str, int]:
            return {"codec_us": round(codec.seconds * 1e6), "base64_us": round(measured[0] * 1e6)}

        def on_listening() -> None:
            measured.append(base64_seconds())
            print("listening", flush=True)

        measured: list[float] = []

        def health() -> Health:
            return Health(state="ready", model=SPEC.name, counts=counts())

        metrics = Metrics(health, Stats)
        app = create_app(
            metrics.counted(port(mux.submit)),
            Catalog([SPEC], default=SPEC.name),
            health,
            ApiOptions(),
            intake=intake,
            admit=mux.admit,
            files=FileStore(FileOptions()),
            metrics=metrics,
        )
        serve(
            app,
            ServerOptions(port=options.port),
            drain=mux.drain,
            on_listening=on_listening,
        )


if __name__ == "__main__":
    main()

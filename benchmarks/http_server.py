"""The server side of ``benchmarks.http_load``: our application and mux around a pipeline of known speed."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

from api.app import ApiOptions, create_app
from api.intake import ImageIntake, IntakeOptions
from api.server import ServerOptions, serve
from batching.mux import BatchMux, BatchPolicy
from core.pipeline import Catalog, PipelineSpec
from core.request import InferenceRequest
from core.result import InferenceResult
from core.service import Health, port

BATCH = 8
STEP_SECONDS = 0.020
ROW_SECONDS = 0.002

SPEC = PipelineSpec(
    name="timed",
    factory="none:none",
    source="builtin:timed",
    steps=1,
    cfg=1.0,
    output_area=576 * 576,
    reference_area=576 * 576,
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
                image=state.request.images[0],
                model=SPEC.name,
                seed=state.request.seed,
                steps=1,
            )
            for state in states
        ]


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
        app = create_app(
            port(mux.submit),
            Catalog([SPEC], default=SPEC.name),
            lambda: Health(state="ready", model=SPEC.name),
            ApiOptions(),
            intake=intake,
            admit=mux.admit,
        )
        serve(
            app,
            ServerOptions(port=options.port),
            drain=mux.drain,
            on_listening=lambda: print("listening", flush=True),
        )


if __name__ == "__main__":
    main()

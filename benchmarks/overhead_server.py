"""The server side of ``benchmarks.http_overhead``: our application around an answer that costs nothing.

``--echo`` is what it is compared with: FastAPI alone, under the same server, sending back what it got.
"""

import argparse
from pathlib import Path

from fastapi import FastAPI, Request, Response

from api.app import ApiOptions, create_app
from api.files import FileOptions, FileStore
from api.intake import ImageIntake, IntakeOptions
from api.metrics import Metrics
from api.server import ServerOptions, serve
from benchmarks.http_server import MeasuredCodec
from core.catalog import Catalog
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult, OnProgress
from core.service import Health
from core.spec import PipelineSpec
from core.stats import Stats

SIDE = 64  # of a picture made of a text

SPEC = PipelineSpec(
    name="instant",
    factory="none:none",
    source="builtin:instant",
    tasks=frozenset({Task.GENERATE, Task.EDIT}),
    steps=1,
    cfg=1.0,
    output_area=SIDE * SIDE,
)


async def submit(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
    """The picture that came, or a black one of the size that was asked for."""
    width, height = request.canvas
    blank = not request.images or request.images[0].size != request.canvas
    image = (
        Image(pixels=bytes(width * height * 3), width=width, height=height) if blank else request.images[0]
    )
    return InferenceResult(id=request.id, output=image, model=SPEC.name, seed=request.seed, steps=1)


def echoing() -> FastAPI:
    app = FastAPI()

    @app.post("/{path:path}")
    async def echo(request: Request) -> Response:
        return Response(await request.body(), media_type="application/octet-stream")

    return app


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--echo", action="store_true")
    options = arguments.parse_args()
    with ImageIntake(IntakeOptions()) as intake:
        codec = intake.codec = MeasuredCodec(4, 256)

        def health() -> Health:
            counts = {"codec_us": round(codec.seconds * 1e6)}
            return Health(state="ready", model=SPEC.name, counts=counts)

        metrics = Metrics(health, Stats)
        app = create_app(
            metrics.counted(submit),
            Catalog([SPEC], default=SPEC.name),
            health,
            ApiOptions(),
            intake=intake,
            admit=lambda: None,
            files=FileStore(FileOptions(folder=Path("out/files"))),
            metrics=metrics,
        )
        serve(
            echoing() if options.echo else app,
            ServerOptions(port=options.port),
            drain=lambda seconds: None,
            on_listening=lambda: print("listening", flush=True),
        )


if __name__ == "__main__":
    main()

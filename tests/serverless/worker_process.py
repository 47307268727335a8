"""The worker of ``handler.py`` around a model that paints: the real mux, manager, edges and SDK.

Arguments: seconds of a step, and optionally what goes wrong: ``cannot-load``, ``never-loads``,
``lost-at-once`` (the device, in the warm-up), ``local`` (the
device, in a job of ``--test_input``), ``from-text`` (nothing, in such a job without a picture) or
``other-sdk``. It ends with a report for the test.
"""

import json
import logging
import sys
import threading
from pathlib import Path

import handler
import settings
from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines.checkpoint import Found
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions, Report
from tests.serverless.edits import job
from tests.serverless.painting import CATALOG, LOST, PaintingPipeline

fault = sys.argv[2] if len(sys.argv) > 2 else ""
lost = "warm-up" if fault == "lost-at-once" else LOST
pipeline = PaintingPipeline(float(sys.argv[1]), lost)


def load(spec: PipelineSpec, options: ModelOptions, report: Report) -> PaintingPipeline:
    if fault == "cannot-load":
        raise CapacityError("not_ready", "painting needs a brush; set DEFAULT_MODEL=pocket-edit")
    if fault == "never-loads":
        threading.Event().wait()
    return pipeline


if __name__ == "__main__":
    sys.argv = sys.argv[:1]  # the SDK reads what is left
    if fault == "other-sdk":
        from runpod.serverless.modules import rp_scale

        rp_scale.JobScaler.is_alive = lambda self, now=None: not self._shutdown_event.is_set()
    logging.basicConfig(level="INFO", format="%(levelname)-7s| %(name)s | %(message)s")
    manager = ModelManager(
        CATALOG,
        ModelOptions(),
        has_gpu=lambda: False,
        device_bytes=lambda: 2**40,
        find=lambda spec, options, report: Found(Path("nowhere"), {}),
    )
    local = {
        "local": job("local", LOST),
        "from-text": {"input": {"prompt": "a house", "model": "imagining", "width": 80, "height": 48}},
    }
    status = handler.run(settings.load(), CATALOG, manager, local.get(fault))
    print("REPORT " + json.dumps({"forwards": pipeline.forwards}), flush=True)
    sys.exit(status)

"""The worker of ``handler.py`` around a model that paints: the real mux, manager, edges and SDK.

Arguments: seconds of a step, and optionally what goes wrong: ``cannot-load`` or ``stock-loop``.
The last line it prints is a report for the test.
"""

import json
import logging
import sys

import handler
import settings
from core.errors import CapacityError
from core.pipeline import PipelineSpec
from pipelines.manager import ModelManager, ModelOptions, Report
from tests.serverless.painting import CATALOG, PaintingPipeline

pipeline = PaintingPipeline(float(sys.argv[1]))
fault = sys.argv[2] if len(sys.argv) > 2 else ""


def load(spec: PipelineSpec, options: ModelOptions, report: Report) -> PaintingPipeline:
    if fault == "cannot-load":
        raise CapacityError("not_ready", "painting needs a brush; set DEFAULT_MODEL=pocket-edit")
    return pipeline


if __name__ == "__main__":
    sys.argv = sys.argv[:1]  # the SDK reads what is left
    if fault == "stock-loop":
        from runpod.serverless.modules import rp_scale

        rp_scale.JobScaler.is_alive = lambda self, now=None: not self._shutdown_event.is_set()
    logging.basicConfig(level="INFO", format="%(levelname)-7s| %(name)s | %(message)s")
    manager = ModelManager(CATALOG, ModelOptions(), has_gpu=lambda: False)
    status = handler.run(settings.load(), CATALOG, manager, None)
    print("REPORT " + json.dumps({"forwards": pipeline.forwards}), flush=True)
    sys.exit(status)

"""How any diffusion checkpoint becomes models on the device. Knows no family.

Only classes that a family names are ever made; nothing of a checkpoint is executed.
"""

from pathlib import Path
from typing import Any, Literal

import diffusers.utils.logging
import torch
import transformers.utils.logging

from core.spec import PipelineSpec
from pipelines.checkpoint import check_class, find_checkpoint
from pipelines.device import pick_device
from pipelines.options import ModelOptions, Report
from pipelines.reading import read_ahead

Role = Literal["denoiser", "text", "vae"]


class Loader:
    """One load: finds the checkpoint at once, then reads its models in the order asked for.

    pipeline_class: the diffusers class that the checkpoint must name as its own.
    stages: how many will be announced, finding the checkpoint included.
    Raises ``CapacityError`` ``not_ready`` with a sentence for the operator.
    """

    def __init__(
        self, spec: PipelineSpec, options: ModelOptions, report: Report, *, pipeline_class: str, stages: int
    ) -> None:
        transformers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.disable_progress_bar()
        self._spec, self._options, self._report = spec, options, report
        self._stage, self._stages = 0, stages
        self.device = pick_device()
        self.dtype = _dtype(self.device, options)
        self.stage("checkpoint")
        self.folder: Path = find_checkpoint(spec, options)
        check_class(self.folder, spec, pipeline_class)

    def stage(self, name: str) -> None:
        self._stage += 1
        self._report.stage(name, self._stage, self._stages)

    def model(self, kind: Any, subfolder: str, *, role: Role) -> Any:
        """A model of class ``kind`` from ``subfolder``, ready to run."""
        self.stage(subfolder)
        read_ahead(self.folder / subfolder, self._report)
        model = kind.from_pretrained(
            self.folder, subfolder=subfolder, dtype=self.dtype, use_safetensors=True, local_files_only=True
        )
        return self._finish(model, role)

    def _finish(self, model: Any, role: Role) -> Any:
        """The last stages of a model that was read onto the host.

        Their order is fixed: an adapter is fused while the weights are whole, quantization comes after it,
        and only what is finished moves to the device.
        """
        return model.eval().requires_grad_(False).to(self.device)


def _dtype(device: torch.device, options: ModelOptions) -> torch.dtype:
    # Many CPUs emulate bf16, slowly; and a CPU is where results are compared.
    if device.type != "cuda" or options.precision.mode == "fp32":
        return torch.float32
    return torch.bfloat16

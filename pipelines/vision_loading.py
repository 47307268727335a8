"""How a vision checkpoint becomes a model on the device: one folder, one configuration, its weights."""

import json
import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers.utils.logging
from safetensors.torch import load_file

from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines.checkpoint import find, index_of
from pipelines.device import pick_device
from pipelines.loading import describe
from pipelines.options import ModelOptions, Report
from pipelines.precision import choose_whole
from pipelines.reading import read_ahead

log = logging.getLogger(__name__)


class VisionLoader:
    """One load. Weights stay in fp32 and products are taken in ``compute``: these models are small, and what
    they answer is compared with thresholds.

    model_type: what the checkpoint's configuration must name, one of these; it is ``model_name`` in those
        that transformers did not write.
    folder: where its other files are. precision: what the operator's choice came to, as a sentence.
    ranks: see ``choose_whole``.
    Raises ``CapacityError`` ``not_ready`` with a sentence for the operator.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        options: ModelOptions,
        report: Report,
        *,
        model_type: tuple[str, ...],
        ranks: bool = False,
    ) -> None:
        transformers.utils.logging.disable_progress_bar()
        self._report = report
        self.device = pick_device()
        plan = choose_whole(describe(self.device), options.precision, options.tuning, ranks=ranks)
        self.compute: torch.dtype = getattr(torch, plan.compute)
        self.precision = plan.sentence
        report.stage("checkpoint", 1, 2)
        self.folder: Path = find(spec, options, report).folder
        self.config = _configuration(self.folder, spec, model_type)
        log.info("%s: %s", spec.name, self.precision)

    def model(self, kind: Any, **given: Any) -> Any:
        """A model of transformers' class ``kind``, ready to run; every weight of it must be in the files.

        given: further arguments of ``from_pretrained``.
        """
        self._report.stage("model", 2, 2)
        read_ahead(self.folder, self._report)
        model, told = kind.from_pretrained(
            self.folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **given,
        )
        if told["missing_keys"]:
            lacking = len(told["missing_keys"])
            raise CapacityError(
                "not_ready",
                f"the checkpoint lacks {lacking} of the weights of {kind.__name__}, which would be random; "
                "use one of that model",
                retryable=False,
            )
        return self.place(model)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Of a checkpoint in another layout than transformers', by their names there; in one file."""
        self._report.stage("model", 2, 2)
        read_ahead(self.folder, self._report)
        file = self.folder / "model.safetensors"
        if not file.is_file():
            raise CapacityError(
                "not_ready",
                "there is no model.safetensors in the checkpoint's folder; name that of a whole checkpoint",
                retryable=False,
            )
        tensors: dict[str, torch.Tensor] = load_file(file)
        return tensors

    def place(self, model: Any) -> Any:
        """Of a model that was made in another way."""
        return model.eval().requires_grad_(False).to(self.device)

    def products(self) -> AbstractContextManager[Any]:
        """Around a forward."""
        return torch.autocast(
            self.device.type, self.compute, enabled=self.compute is not torch.float32, cache_enabled=False
        )


def _configuration(folder: Path, spec: PipelineSpec, model_type: tuple[str, ...]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(index_of(folder, spec).read_text())
    named = config.get("model_type", config.get("model_name"))
    if named not in model_type:
        raise CapacityError(
            "not_ready",
            f"the checkpoint is a {str(named)[:60]} and {spec.name} needs "
            f"{' or '.join(model_type)}; make DEFAULT_MODEL and MODEL_DIR agree",
            retryable=False,
        )
    return config

"""How any diffusion checkpoint becomes models on the device. Knows no family.

Only classes that a family names are ever made; nothing of a checkpoint is executed.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging
from safetensors.torch import load_file

from core.spec import PipelineSpec
from pipelines.attention import set_attention, try_attention
from pipelines.beside import find_lightning, remedy_for
from pipelines.checkpoint import check_class, find
from pipelines.device import pick_device
from pipelines.lightning import fuse
from pipelines.options import ModelOptions, Report
from pipelines.placement import OneAtATime, parts_on_host, stream
from pipelines.precision import Device, Role, choose, role_of
from pipelines.quantization import quantize
from pipelines.reading import read_ahead
from pipelines.shards import Part

log = logging.getLogger(__name__)


class Loader:
    """One load: finds the checkpoint at once, then reads its models in the order asked for.

    pipeline_class: the diffusers class that the checkpoint must name as its own.
    stages: how many will be announced, finding the checkpoint included.
    half_overflows: the family's activations exceed fp16.
    precision: what the operator's choice came to, as a sentence. options: with what was found.
    Raises ``CapacityError`` ``not_ready`` with a sentence for the operator.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        options: ModelOptions,
        report: Report,
        *,
        pipeline_class: str,
        stages: int,
        half_overflows: bool = False,
    ) -> None:
        transformers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.disable_progress_bar()
        self._spec, self.options, self._report = spec, options, report
        self._stage, self._stages = 0, stages
        self.device = pick_device()
        self._plan = choose(
            describe(self.device),
            options.precision,
            options.tuning,
            loras=bool(options.adapters),
            half_overflows=half_overflows,
        )
        self.dtype: torch.dtype = getattr(torch, self._plan.compute)
        if options.tuning.attention is not None:
            try_attention(options.tuning.attention, self.device, self.dtype)
        self.stage("checkpoint")
        self.fused: tuple[str, ...] = ()  # LoRAs that ``_finish`` has made part of the denoiser
        found = find(spec, options, report)
        self.options = replace(options, found=found)
        self.folder: Path = found.folder
        check_class(self.folder, spec, pipeline_class)
        self._one_at_a_time = OneAtATime(self.device)
        self._host = self._parts_on_host(found.parts)
        self.precision = "; ".join(
            [self._plan.sentence, *(f"{role} does not fit and stays on the host" for role in self._host)]
        )
        log.info("%s: %s", spec.name, self.precision)
        self._lightning = find_lightning(spec, self.options)

    def stage(self, name: str) -> None:
        self._stage += 1
        self._report.stage(name, self._stage, self._stages)

    def model(self, kind: Any, subfolder: str, *, role: Role, weights: Path | None = None) -> Any:
        """A model of class ``kind`` from ``subfolder``, ready to run.

        weights: a file that takes the place of the subfolder's own; it must have every tensor and no other.
        """
        self.stage(subfolder)
        dtype = self._dtype(subfolder, role)
        if weights is None:
            read_ahead(self.folder / subfolder, self._report)
            model = kind.from_pretrained(
                self.folder,
                subfolder=subfolder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
            )
        else:
            read_ahead(weights, self._report)
            config = kind.load_config(self.folder, subfolder=subfolder, local_files_only=True)
            model = _from_file(kind, config, weights).to(dtype)
        return self._finish(model, role)

    def _finish(self, model: Any, role: Role) -> Any:
        """The last stages of a model that was read onto the host.

        Their order is fixed: an adapter is fused while the weights are whole, quantization comes after it,
        only what is finished moves to the device, and what is compiled stays where it is.
        """
        if role == "denoiser" and self._lightning is not None:
            fuse(model, self._lightning, remedy=remedy_for(self._spec))
            self.fused = (self._lightning.source,)
        model.eval().requires_grad_(False)
        if role in self._plan.schemes and role not in self._host:
            quantize(model, role, self._plan.schemes[role], compute=self.dtype, device=self.device)
        self._place(model, role)
        self._tune(model, role)
        return model

    def _place(self, model: Any, role: Role) -> None:
        offload = self.options.tuning.offload
        if role == "vae" or (offload == "none" and role not in self._host):
            model.to(self.device)  # an autoencoder is small, whatever the others do
        elif offload == "model":
            self._one_at_a_time.add(model)
        else:
            stream(model, self.device)

    def _tune(self, model: Any, role: Role) -> None:
        tuning = self.options.tuning
        if role == "vae":
            if tuning.vae_tiling:
                model.enable_tiling()
            if tuning.vae_slicing:
                model.enable_slicing()
        elif role == "denoiser":
            if tuning.attention is not None:
                set_attention(model, tuning.attention)
            if tuning.compile:
                # Dynamic: batches differ in rows, canvas and text at every step.
                model.compile_repeated_blocks(dynamic=True)

    def _dtype(self, subfolder: str, role: Role) -> torch.dtype:
        config = json.loads((self.folder / subfolder / "config.json").read_text())
        upcast = bool(config.get("force_upcast", False))
        dtype: torch.dtype = getattr(torch, self._plan.format_of(role, force_upcast=upcast))
        return dtype

    def _parts_on_host(self, parts: Mapping[str, Part]) -> frozenset[Role]:
        if not self.options.precision.cpu_offload or self.device.type != "cuda":
            return frozenset()
        free, _ = torch.cuda.mem_get_info(self.device)
        sizes = sizes_on_card(parts, frozenset(self._plan.schemes))
        return parts_on_host(sizes, min(free, self.options.memory_bytes or free))


def _from_file(kind: Any, config: Any, weights: Path) -> Any:
    with torch.device("meta"):  # nothing is drawn that the file replaces
        model = kind.from_config(config)
    model.load_state_dict(load_file(weights), strict=True, assign=True)
    return model


def sizes_on_card(parts: Mapping[str, Part], halved: frozenset[Role]) -> dict[Role, int]:
    """Bytes of a checkpoint's parts in 16 bits, when 8-bit schemes hold those of ``halved``."""
    sizes: dict[Role, int] = {}
    for name, part in parts.items():
        role = role_of(name)
        sizes[role] = sizes.get(role, 0) + part.weights * (1 if role in halved else 2)
    return sizes


def describe(device: torch.device) -> Device:
    libraries = frozenset(name for name in ("torchao", "bitsandbytes") if find_spec(name) is not None)
    if device.type != "cuda":
        return Device(device.type, None, libraries)
    return Device(device.type, torch.cuda.get_device_capability(device), libraries)

"""The pocket checkpoint, built once a session, and the pipelines made of it."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.spec import PipelineSpec
from pipelines.options import ModelOptions, Silent
from pipelines.pocket import sdxl as pocket_sdxl
from pipelines.pocket.builder import build
from pipelines.qwen_image import QwenImageEdit
from pipelines.qwen_loading import Components, load_components, read_processor
from pipelines.qwen_text import NUMBERED_PICTURES
from pipelines.registry import catalog
from pipelines.sdxl import StableDiffusionXL
from pipelines.sdxl_loading import Components as SdxlComponents
from pipelines.sdxl_loading import load_components as load_sdxl_components


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def spec() -> PipelineSpec:
    """The pocket row at the smallest areas, so that hundreds of edits stay cheap."""
    return catalog("pocket-edit", reference_area=64 * 64, condition_area=64 * 64).default


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> ModelOptions:
    return ModelOptions(cache_dir=tmp_path_factory.mktemp("cache"), condition_cache_bytes=0)


@pytest.fixture(scope="session")
def checkpoint(options: ModelOptions) -> Path:
    return build(options.cache_dir)


@pytest.fixture(scope="session")
def parts(spec: PipelineSpec, options: ModelOptions) -> Components:
    return load_components(spec, options, Silent(), pipeline_class="QwenImageEditPlusPipeline")


@pytest.fixture(scope="session")
def pipeline(parts: Components) -> QwenImageEdit:
    """The pocket pipeline without a cache: nothing is remembered from one test to the next."""
    return QwenImageEdit(parts, NUMBERED_PICTURES, cache_bytes=0)


@pytest.fixture(scope="session")
def bf16_pipeline(parts: Components) -> QwenImageEdit:
    """The same weights in the format that a GPU computes in."""
    models = {
        name: copy.deepcopy(getattr(parts, name)).to(torch.bfloat16)
        for name in ("transformer", "vae", "text_encoder")
    }
    return QwenImageEdit(replace(parts, dtype=torch.bfloat16, **models), NUMBERED_PICTURES, cache_bytes=0)


@pytest.fixture(scope="session")
def processor(checkpoint: Path) -> Any:
    return read_processor(checkpoint)


@pytest.fixture
def stock_plus(checkpoint: Path, processor: Any, spec: PipelineSpec) -> Iterator[Any]:
    """``QwenImageEditPlusPipeline`` of the same checkpoint, at the areas of ``spec``."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    before = module.CONDITION_IMAGE_SIZE, module.VAE_IMAGE_SIZE
    module.CONDITION_IMAGE_SIZE, module.VAE_IMAGE_SIZE = spec.condition_area, spec.reference_area
    yield _quiet(module.QwenImageEditPlusPipeline, checkpoint, processor)
    module.CONDITION_IMAGE_SIZE, module.VAE_IMAGE_SIZE = before


@pytest.fixture
def stock_edit(checkpoint: Path, processor: Any, spec: PipelineSpec) -> Iterator[Any]:
    """``QwenImageEditPipeline``, the first release's, at the reference area of ``spec`` for both uses."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as module

    before = module.calculate_dimensions
    module.calculate_dimensions = lambda area, ratio: before(spec.reference_area, ratio)
    yield _quiet(module.QwenImageEditPipeline, checkpoint, processor)
    module.calculate_dimensions = before


@pytest.fixture(scope="session")
def sdxl_spec() -> PipelineSpec:
    return catalog("pocket-sdxl").default


@pytest.fixture(scope="session")
def sdxl_checkpoint(options: ModelOptions) -> Path:
    return pocket_sdxl.build(options.cache_dir)


@pytest.fixture(scope="session")
def sdxl_parts(sdxl_spec: PipelineSpec, options: ModelOptions) -> SdxlComponents:
    return load_sdxl_components(sdxl_spec, options, Silent())


@pytest.fixture(scope="session")
def sdxl(sdxl_parts: SdxlComponents) -> StableDiffusionXL:
    """The pocket pipeline without a cache, with the solver of SDXL base."""
    return StableDiffusionXL(sdxl_parts, cache_bytes=0)


def _quiet(kind: Any, checkpoint: Path, processor: Any) -> Any:
    pipeline = kind.from_pretrained(checkpoint, processor=processor, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

"""The models this worker knows, as rows of facts. Importing it loads no model library."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from core.catalog import Catalog
from core.request import Task
from core.spec import PipelineSpec
from pipelines.lightning_files import lightning_steps
from pipelines.options import Lightning, Precision, Tuning
from pipelines.vision_rows import VISION

_EDIT = "pipelines.qwen_image:load_edit"
_EDIT_PLUS = "pipelines.qwen_image:load_edit_plus"
_SDXL = "pipelines.sdxl:load"
_GENERATE = "pipelines.qwen_image:load_generate"

# Steps, guidance and the negative prompt " " are those of the model cards. The weights are the same in
# size for every variant: 20.4 B parameters of transformer and 8.3 B of text encoder, in bf16.
_QWEN = PipelineSpec(
    name="",
    factory=_EDIT_PLUS,
    source="",
    masks=True,
    step_cache=True,
    vram_gb=60.0,
    licence="Apache-2.0",
)
# A text alone; the square of the sizes that the model card recommends is no multiple of 32.
_QWEN_GENERATE = replace(
    _QWEN,
    factory=_GENERATE,
    tasks=frozenset({Task.GENERATE}),
    steps=50,
    output_area=1328 * 1328,
    reference_multiple=16,
    masks=False,
)

# Steps and guidance are those of diffusers' pipeline_stable_diffusion_xl.py, the strength of its
# image-to-image sibling; without a negative prompt guidance is away from zeros. Weights in bf16: 2.57 B
# parameters of denoiser, 0.82 B of text encoders, 0.08 B of autoencoder.
_XL = PipelineSpec(
    name="stable-diffusion-xl-base-1.0",
    factory=_SDXL,
    source="stabilityai/stable-diffusion-xl-base-1.0",
    tasks=frozenset({Task.GENERATE, Task.EDIT}),
    steps=50,
    cfg=5.0,
    negative_prompt=None,
    patch=16,
    multiple=8,
    reference_multiple=8,
    max_images=1,
    strength=0.3,
    masks=True,
    vram_gb=8.0,
    licence="CreativeML Open RAIL++-M",
)


def _lightning(steps: int, name: str, *, lora: bool = False, aliases: tuple[str, ...] = ()) -> PipelineSpec:
    """SDXL base distilled for ``steps`` unguided steps. Source: model card of ByteDance/SDXL-Lightning."""
    file = f"ByteDance/SDXL-Lightning/sdxl_lightning_{steps}step_{'lora' if lora else 'unet'}.safetensors"
    return replace(
        _XL,
        name=name,
        aliases=aliases,
        denoiser=None if lora else file,
        lightning_lora=file if lora else None,
        lightning_steps=steps,
        steps=steps,
        cfg=0.0,
        strength=0.5,  # of two steps less leaves none
    )


SPECS: tuple[PipelineSpec, ...] = (
    # The first release sees one image, shown to the text encoder at the size it has as a reference.
    replace(
        _QWEN,
        name="qwen-image-edit",
        factory=_EDIT,
        source="Qwen/Qwen-Image-Edit",
        steps=50,
        condition_area=1024 * 1024,
        max_images=1,
    ),
    replace(
        _QWEN,
        name="qwen-image-edit-2509",
        source="Qwen/Qwen-Image-Edit-2509",
    ),
    replace(
        _QWEN,
        name="qwen-image-edit-2511",
        source="Qwen/Qwen-Image-Edit-2511",
    ),
    replace(
        _QWEN,
        name="firered-image-edit-1.0",
        source="FireRedTeam/FireRed-Image-Edit-1.0",
    ),
    replace(
        _QWEN,
        name="firered-image-edit-1.1",
        source="FireRedTeam/FireRed-Image-Edit-1.1",
    ),
    replace(_QWEN_GENERATE, name="qwen-image", source="Qwen/Qwen-Image"),
    replace(_QWEN_GENERATE, name="qwen-image-2512", source="Qwen/Qwen-Image-2512"),
    _XL,
    # Distilled for one to four unguided steps at 512x512; the card's image-to-image example has strength 0.5.
    replace(
        _XL,
        name="sdxl-turbo",
        source="stabilityai/sdxl-turbo",
        steps=1,
        cfg=0.0,
        output_area=512 * 512,
        strength=0.5,
        licence="Stability AI Non-Commercial Research Community",
    ),
    # Clients ask for a repository of this name that the hub does not have.
    _lightning(4, "sdxl-lightning", aliases=("stabilityai/sdxl-lightning", "ByteDance/SDXL-Lightning")),
    _lightning(2, "sdxl-lightning-2step"),
    _lightning(8, "sdxl-lightning-8step"),
    _lightning(4, "sdxl-lightning-lora", lora=True),
    _lightning(2, "sdxl-lightning-2step-lora", lora=True),
    _lightning(8, "sdxl-lightning-8step-lora", lora=True),
    # SDXL's architecture, small enough for a CPU and untrained: it shows patterns, and that all of it works.
    replace(
        _XL,
        name="pocket-sdxl",
        source="builtin:pocket-sdxl",
        steps=4,
        cfg=1.0,
        output_area=128 * 128,
        max_side=256,
        max_prompt_chars=2000,
        strength=0.5,
        needs_gpu=False,
        vram_gb=None,
        licence="MIT",
    ),
    # Qwen's architecture, small enough for a CPU and trained in this repository on a few instructions.
    # It has learned to look at a reference as large as the output, and pictures beside a text at 64x64.
    PipelineSpec(
        name="pocket-edit",
        factory=_EDIT_PLUS,
        source="builtin:pocket-edit",
        steps=4,
        cfg=1.0,
        output_area=256 * 256,
        reference_area=256 * 256,
        references_within_output=True,
        condition_area=64 * 64,
        max_side=512,
        max_prompt_chars=1000,
        masks=True,
        step_cache=True,
        needs_gpu=False,
        licence="MIT",
    ),
    # The weights of the row above without a picture to edit, which they were never trained for: what it makes
    # of a text is no picture of it. It runs the path of qwen-image on a CPU, for tests and benchmarks.
    PipelineSpec(
        name="pocket-image",
        factory=_GENERATE,
        source="builtin:pocket-image",
        tasks=frozenset({Task.GENERATE}),
        steps=4,
        cfg=1.0,
        output_area=256 * 256,
        max_side=512,
        max_prompt_chars=1000,
        step_cache=True,
        needs_gpu=False,
        licence="MIT",
    ),
    *VISION,
)


def catalog(
    default: str,
    *,
    allowed: frozenset[str] = frozenset(),
    reference_area: int | None = None,
    condition_area: int | None = None,
    steps: int | None = None,
    cfg: float | None = None,
    lightning: Mapping[str, Any] | None = None,
    adapters: Collection[str] = (),
    max_adapters: int = 4,
    precision: Mapping[str, Any] | None = None,
    tuning: Mapping[str, Any] | None = None,
) -> Catalog:
    """The default's row and those ``allowed`` by name, with the operator's wishes in place of their figures.

    Areas are for every row, steps and cfg for the default's alone.

    A row that nobody allowed is unknown: one request for it would throw out the model in use and start
    a download of tens of gigabytes. None keeps a row's own figure.

    reference_area, condition_area: pixels. steps: 1 to the row's ``max_steps``. cfg: >= 0.
    lightning, precision, tuning: as ``model_options`` takes them; where a Lightning LoRA is in effect the
    row's steps and guidance are its own. adapters: ids of LoRAs, of which a request may name so many at once.
    Raises ``RequestError`` ``model_not_found`` when no row is called ``default``, or as one of ``allowed``.
    """
    areas = {"reference_area": reference_area, "condition_area": condition_area}
    figures = {"steps": steps, "cfg": cfg}
    known = Catalog(SPECS, default)
    served = {known.get(name).name for name in (default, *allowed)}
    rows = [_with(spec, areas) for spec in SPECS if spec.name in served]
    rows = [_few_steps(spec, Lightning(**(lightning or {}))) for spec in rows]
    refusal = _adapters_refused(Precision(**(precision or {})), Tuning(**(tuning or {})))
    rows = [
        replace(
            spec,
            adapters=frozenset(adapters),
            max_adapters=min(spec.max_adapters, max_adapters),
            adapters_refused=refusal if adapters else None,
        )
        for spec in rows
    ]
    # Steps and guidance that suit the default would spoil a few-step model beside it.
    rows = [_with(spec, figures) if spec.name == known.default.name else spec for spec in rows]
    return Catalog(rows, default)


def _with(spec: PipelineSpec, wishes: Mapping[str, float | None]) -> PipelineSpec:
    given = {name: value for name, value in wishes.items() if value is not None}
    return replace(spec, **given)  # type: ignore[arg-type]


def _few_steps(spec: PipelineSpec, wishes: Lightning) -> PipelineSpec:
    steps = lightning_steps(spec.name, wishes.steps) if wishes.enabled else None
    if steps is None:
        return spec
    return replace(spec, steps=steps, cfg=1.0, lightning_steps=steps)


def _adapters_refused(precision: Precision, tuning: Tuning) -> str | None:
    """What can be said before loading; a layer that can take none is found when a LoRA is put on it."""
    quantized = precision.components != "text"
    if quantized and precision.mode == "4bit":
        return "loras cannot be put on 4-bit weights here; leave loras out, or set PRECISION_MODE=8bit"
    if quantized and precision.mode == "8bit" and precision.eight_bit == "fp8-layerwise":
        return (
            "loras cannot be put on weights that are cast layer by layer; "
            "leave loras out, or set EIGHT_BIT_BACKEND=bitsandbytes"
        )
    if tuning.compile:
        return "loras cannot be put on a compiled model; leave loras out, or set TORCH_COMPILE=0"
    if tuning.offload == "sequential":
        return "loras need the model's weights in one place; leave loras out, or set OFFLOAD=model"
    return None

"""What AUTOMATIC1111's web UI may be asked here: the fields that count, those that do not, those refused.

Source: its ``/docs``, made of ``modules/api/models.py`` and ``modules/processing.py``.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, Field, StrictStr

from api.body import LongText
from api.json_fields import STRICT, Number, Picture, Text, WholeNumber, checked, unknown
from api.settings_text import SAMPLER
from core.errors import RequestError

MAX_PICTURES: Final = 16

_SOLVER: Final = f"each model has the one solver it was made for, called {SAMPLER} here"
_DISK: Final = "pictures are answered, never kept"
_OFF: Final = "counts only beside a field that is refused here"
_MASK: Final = "a mask is taken as it is, at the size of its picture"
_OTHER: Final = "of the client, or of a part of the web UI that is not here"

# Of the web UI's standard: taken, and without effect, for these reasons.
IGNORED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("sampler_name", "sampler_index", "scheduler"), _SOLVER),
    **dict.fromkeys(("eta", "s_churn", "s_tmax", "s_tmin", "s_noise", "s_min_uncond"), _SOLVER),
    **dict.fromkeys(("do_not_save_samples", "do_not_save_grid", "save_images", "include_init_images"), _DISK),
    **dict.fromkeys(("subseed", "seed_resize_from_h", "seed_resize_from_w"), _OFF),
    **dict.fromkeys(("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y"), _OFF),
    **dict.fromkeys(("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt"), _OFF),
    **dict.fromkeys(("hr_negative_prompt", "hr_additional_modules", "hr_cfg", "hr_distilled_cfg"), _OFF),
    **dict.fromkeys(("firstphase_width", "firstphase_height", "refiner_switch_at", "script_args"), _OFF),
    **dict.fromkeys(("mask_blur", "mask_blur_x", "mask_blur_y", "mask_round", "inpainting_fill"), _MASK),
    **dict.fromkeys(("inpaint_full_res", "inpaint_full_res_padding", "resize_mode"), _MASK),
    **dict.fromkeys(("initial_noise_multiplier", "image_cfg_scale", "distilled_cfg_scale"), _OTHER),
    **dict.fromkeys(("override_settings_restore_afterwards", "force_task_id", "comments"), _OTHER),
    **dict.fromkeys(("disable_extra_networks", "clip_skip", "url", "auth"), _OTHER),
}

# Taken only with the value that changes nothing: an empty one, or false.
REFUSED: Final = frozenset(
    {
        *("enable_hr", "restore_faces", "tiling", "subseed_strength", "styles", "refiner_checkpoint"),
        *("script_name", "alwayson_scripts", "firstpass_image", "latent_mask", "inpainting_mask_invert"),
        "infotext",
    }
)

# Of the web UI's hundreds of settings, those that clients are known to send.
IGNORED_SETTINGS: Final = frozenset(
    {
        *("CLIP_stop_at_last_layers", "sd_vae", "forge_additional_modules", "forge_preset"),
        *("samples_format", "samples_save", "grid_save", "eta_noise_seed_delta", "sd_checkpoint_hash"),
        *("return_grid", "save_images_add_number", "send_images", "img2img_fix_steps"),
    }
)

T = TypeVar("T", bound="TextToImage")


class TextToImage(BaseModel):
    """What of ``txt2img`` counts. Absent, null and, for ``seed``, -1 leave the choice to the server."""

    model_config = STRICT

    prompt: Text
    negative_prompt: Text | None = None
    steps: WholeNumber | None = None
    cfg_scale: Number | None = Field(None, description="1 means unguided")
    width: WholeNumber | None = None
    height: WholeNumber | None = None
    seed: WholeNumber | None = None
    batch_size: int = Field(1, ge=1, le=MAX_PICTURES, strict=True)
    n_iter: int = Field(1, ge=1, le=MAX_PICTURES, strict=True)
    send_images: bool = Field(
        True, strict=True, description="false is refused: there is nothing else to send"
    )
    denoising_strength: Number | None = Field(None, description="counts only where a picture is redrawn")
    override_settings: dict[StrictStr, Any] | None = Field(
        None, description="sd_model_checkpoint names a model for this call"
    )

    @property
    def pictures(self) -> int:
        """Raises ``RequestError`` when they are too many."""
        if self.batch_size * self.n_iter > MAX_PICTURES:
            raise RequestError(
                "invalid_parameter",
                f"batch_size times n_iter is over the limit of {MAX_PICTURES}; ask for fewer at once",
                param="batch_size",
            )
        return self.batch_size * self.n_iter

    @property
    def checkpoint(self) -> str | None:
        """Raises ``RequestError`` for a setting that is unknown or of the wrong kind."""
        return checkpoint_of(self.override_settings or {}, "override_settings")


class ImageToImage(TextToImage):
    """What of ``img2img`` counts."""

    init_images: list[Picture] = Field(description="base64, data URI or public http(s) URL")
    mask: Picture | None = Field(None, description="white is painted anew, black kept")


def wishes_of(model: type[T], content: object) -> tuple[T, dict[str, str]]:
    """The fields that count, and why which of the others do not. Raises ``RequestError`` naming the field."""
    if not isinstance(content, dict):
        raise RequestError("invalid_parameter", "the body must be an object", param="body")
    sent = {name: value for name, value in content.items() if value is not None}
    for name in sent.keys() & REFUSED:
        if isinstance(sent[name], LongText) or sent[name]:
            raise RequestError(
                "invalid_parameter", f"{name} is not done here; leave it out or empty", param=name
            )
    without_effect = {name: IGNORED[name] for name in sent if name in IGNORED}
    for name in ("sampler_name", "sampler_index"):
        if sent.get(name) == SAMPLER:
            del without_effect[name]
    counted = {name: value for name, value in sent.items() if name not in IGNORED and name not in REFUSED}
    wishes = checked(model, counted, "body")
    if not wishes.send_images:
        raise RequestError(
            "invalid_parameter", "send_images must be true: pictures are not kept here", param="send_images"
        )
    return wishes, without_effect


def checkpoint_of(settings: Mapping[str, Any], place: str) -> str | None:
    """The model that settings name. Raises ``RequestError``."""
    for name in settings:
        if name != "sd_model_checkpoint" and name not in IGNORED_SETTINGS:
            raise unknown(str(name), ["sd_model_checkpoint", *sorted(IGNORED_SETTINGS)], place)
    wanted = settings.get("sd_model_checkpoint")
    if wanted is None or wanted == "":
        return None
    if not isinstance(wanted, str):
        raise RequestError(
            "invalid_parameter", "sd_model_checkpoint should be a model's name", param="sd_model_checkpoint"
        )
    return wanted


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """For the documentation, with the tables above."""
    ignored = ", ".join(sorted(IGNORED))
    refused = ", ".join(sorted(REFUSED))
    return {
        "required": True,
        "description": f"Taken without effect: {ignored}. Refused unless empty or false: {refused}.",
        "content": {"application/json": {"schema": model.model_json_schema()}},
    }

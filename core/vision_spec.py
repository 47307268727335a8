"""``VisionSpec``: the part of a row that only a vision model has, and how its requests are checked."""

from dataclasses import dataclass
from typing import Literal

from core.limits import invalid, round_up, within
from core.request import Image, InferenceRequest, Size
from core.vision import TASK_OF, Ask, Depth, Detect, Segment


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionSpec:
    """At what size pictures enter the model, and how much may be asked of one.

    fit: how a picture is brought to that size. ``square``: to ``side`` x ``side``, whatever its aspect.
        ``shortest``: its shorter side becomes ``side``, unless the longer would pass ``longest``.
        ``longest``: its longer side becomes ``side``. ``either``: one of its sides becomes ``side``, that
        which needs the smaller change, unless the longer would pass ``longest``. All but ``square`` keep
        the aspect, rounded to ``multiple``.
    patch: pixels per token along one side.
    max_prompts: of one picture; each is a pass of the decoder. max_prompt_chars: of all of them together.
    max_boxes: of one prompt. max_found: instances or boxes of one picture that are answered, the best first.
    max_mask_pixels: of the masks of one picture together, the best first. Each is drawn at the picture's
        size, and nobody else can use the device meanwhile: on one core of a CPU 2**31 take about 20 s.
    """

    fit: Literal["square", "shortest", "longest", "either"]
    side: int
    longest: int = 0
    multiple: int = 1
    patch: int = 16
    max_prompts: int = 64
    max_prompt_chars: int = 2000
    max_boxes: int = 32
    max_found: int = 300
    max_mask_pixels: int = 2**31

    def entry(self, size: Size) -> Size:
        """The size at which a picture of ``size`` enters the model."""
        width, height = size
        if self.fit == "square":
            return self.side, self.side
        if self.fit == "longest":
            # Source: "upper_bound_resize" of depth_anything_3's utils/io/input_processor.py: whole pixels
            # first, then the nearest multiple, the larger of two equally near.
            scale = self.side / max(size)
            return _nearest(round(width * scale), self.multiple), _nearest(
                round(height * scale), self.multiple
            )
        if self.fit == "either":
            # Source: get_resize_output_image_size of transformers' image_processing_pil_dpt.py, which knows
            # no bound.
            scale = min(self.side / height, self.side / width, key=lambda change: abs(1 - change))
            scale = min(scale, self.longest / max(size))
            return _rounded(scale * width, self.multiple), _rounded(scale * height, self.multiple)
        # Source: get_size_with_aspect_ratio of transformers' image_transforms.py, its rounding included.
        short, long, side = min(size), max(size), float(self.side)
        if long / short * self.side > self.longest:
            side = self.longest * short / long
            target = round(side)
        else:
            target = self.side
        if short == target:
            return width, height
        other = int(side * long / short)
        target = max(1, target)  # upstream fails at a picture a thousand times as long as wide
        fitted = (target, other) if width < height else (other, target)
        return round_up(fitted[0], self.multiple), round_up(fitted[1], self.multiple)

    def request(
        self, model: str, *, id: str, image: Image, ask: Ask, timeout: float | None
    ) -> InferenceRequest:
        """Check what is asked of one picture. Raises ``RequestError`` ``invalid_parameter``."""
        if isinstance(ask, Segment):
            self._check_segment(ask, image.size)
        elif isinstance(ask, Detect):
            self._check_texts("labels", ask.labels)
            within("box_threshold", ask.box_threshold, 0.0, 1.0)
            within("text_threshold", ask.text_threshold, 0.0, 1.0)
        elif isinstance(ask, Depth) and ask.focal is not None:
            within("focal", ask.focal, 1.0, 1e6)
        entry = self.entry(image.size)
        passes = len(ask.prompts) if isinstance(ask, Segment) else 1
        return InferenceRequest(
            id=id,
            task=TASK_OF[type(ask)],
            model=model,
            prompt="",
            negative_prompt=None,
            images=(image,),
            size=image.size,
            canvas=entry,
            steps=1,
            cfg=1.0,
            seed=0,
            tokens=max(1, entry[0] * entry[1] // self.patch**2) * passes,
            ask=ask,
            timeout=timeout,
        )

    def _check_segment(self, ask: Segment, size: Size) -> None:
        self._check_texts("prompts", tuple(p.text for p in ask.prompts if p.text or not p.boxes), least=0)
        if not ask.prompts:
            raise invalid("prompts", "there is no prompt; say what to find")
        if len(ask.prompts) > self.max_prompts:
            raise invalid("prompts", _too_many("prompts", len(ask.prompts), self.max_prompts))
        for prompt in ask.prompts:
            if len(prompt.boxes) > self.max_boxes:
                raise invalid("boxes", _too_many("boxes", len(prompt.boxes), self.max_boxes))
            for (left, top, right, bottom), _ in prompt.boxes:
                if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):  # also refuses NaN
                    raise invalid(
                        "boxes",
                        f"a box is not inside the picture of {size[0]}x{size[1]} with right > left and "
                        "bottom > top; correct it",
                    )
        within("threshold", ask.threshold, 0.0, 1.0)
        within("mask_threshold", ask.mask_threshold, 0.0, 1.0)
        if ask.priors is not None:
            if len(ask.priors) != len(ask.prompts):
                raise invalid(
                    "priors", f"{len(ask.priors)} weights for {len(ask.prompts)} prompts; send one for each"
                )
            for weight in ask.priors:
                within("priors", weight, 0.0, 1e6)

    def _check_texts(self, field: str, texts: tuple[str, ...], least: int = 1) -> None:
        if len(texts) < least:
            raise invalid(field, f"{field} is empty; say what to find")
        if len(texts) > self.max_prompts:
            raise invalid(field, _too_many(field, len(texts), self.max_prompts))
        if sum(map(len, texts)) > self.max_prompt_chars:
            raise invalid(
                field,
                f"{field} of {sum(map(len, texts))} characters together are over the limit of "
                f"{self.max_prompt_chars}; shorten them",
            )
        for text in texts:
            if not text.strip():
                raise invalid(field, f"one of {field} is empty; say what to find or leave it out")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise invalid(field, f"{field} holds half a character pair; send valid Unicode") from None


def _nearest(value: int, multiple: int) -> int:
    return max(multiple, (value + multiple // 2) // multiple * multiple)


def _rounded(value: float, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)


def _too_many(field: str, count: int, limit: int) -> str:
    return f"{count} {field} are over the limit of {limit}; send fewer"

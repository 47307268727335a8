"""``PipelineSpec``: all that is known of a model without loading it, and how its requests are made."""

import difflib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from core.limits import fit_area, invalid, round_up, within
from core.request import SEED_MAX, Image, InferenceRequest, Size, Task
from core.vision import TASK_OF, Ask
from core.vision_spec import VisionSpec

MAX_TIMEOUT = 86_400.0  # seconds
MAX_ADAPTER_SCALE = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineSpec:
    """A registry row: all that is known of a model without loading it.

    factory:   ``"module:callable"``, imported on first use only.
    source:    hub id of the checkpoint, also ``owner/name@revision``, or ``builtin:NAME`` for one of our own.
    denoiser:  ``owner/name/file.safetensors`` of a denoiser that takes the place of the source's own.
    lightning_lora: ``owner/name/file.safetensors`` of the LoRA that is fused into the source's denoiser.
    output_area / reference_area / condition_area: target pixels; sizes keep the input's aspect.
    patch:     pixels per transformer token along one side. multiple: the canvas is rounded up to this many.
    negative_prompt: of guided requests that name none; None steers away from no text at all.
    reference_multiple: references are rounded to this many pixels (upstream: 32).
    references_within_output: references are never larger than the output, for a model trained so.
    strength:  None where pictures enter as references; a number where an edit begins at the picture itself,
               noised: the part of the schedule that is run when a request does not say.
    masks:     an edit can be kept to a part of the picture.
    step_cache: steps can reuse the blocks after the first.
    lightning_steps: steps of the few-step form in effect; None for the full model.
    vision:    of a model that looks at pictures; most of what is above then means nothing to it.
    adapters:  ids of the LoRAs that a request may ask for. adapters_refused: why none can be taken, as a
               sentence with its remedy.
    """

    name: str
    factory: str
    source: str
    aliases: tuple[str, ...] = ()
    denoiser: str | None = None
    lightning_lora: str | None = None
    tasks: frozenset[Task] = frozenset({Task.EDIT})
    steps: int = 40
    cfg: float = 4.0
    negative_prompt: str | None = " "
    output_area: int = 1024 * 1024
    reference_area: int = 1024 * 1024
    condition_area: int = 384 * 384
    patch: int = 16
    multiple: int = 16
    reference_multiple: int = 32
    references_within_output: bool = False
    min_side: int = 64
    max_side: int = 2048
    max_steps: int = 100
    max_cfg: float = 20.0
    max_images: int = 3
    max_aspect: float = 8.0
    max_prompt_chars: int = 4000
    strength: float | None = None
    masks: bool = False
    step_cache: bool = False
    lightning_steps: int | None = None
    adapters: frozenset[str] = frozenset()
    adapters_refused: str | None = None
    max_adapters: int = 4
    vision: VisionSpec | None = None
    needs_gpu: bool = True
    vram_gb: float | None = None
    licence: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What callers may call it. The source's id names the row that leaves the source as it is."""
        changed = self.denoiser is not None or self.lightning_lora is not None
        return (self.name, *(() if changed else (self.source,)), *self.aliases)

    @property
    def model_id(self) -> str:
        """How an answer names it: by the hub's id where that is one of its names, else by its own."""
        return self.source if "/" in self.source and self.source in self.names else self.name

    @property
    def index(self) -> str:
        """The file of its checkpoint's folder that says what it is: diffusers' or transformers'."""
        return "model_index.json" if self.vision is None else "config.json"

    def source_at(self, revision: str | None = None) -> tuple[str, str | None]:
        """Repository of the hub, and its commit, tag or branch; ``revision`` comes before the row's own."""
        repository, _, pinned = self.source.partition("@")
        return repository, revision or pinned or None

    def request(
        self,
        *,
        id: str,
        task: Task,
        prompt: str,
        images: tuple[Image, ...] = (),
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        cfg: float | None = None,
        seed: int | None = None,
        strength: float | None = None,
        mask: Image | None = None,
        adapters: Sequence[tuple[str, float]] = (),
        step_cache: float | None = None,
        timeout: float | None = None,
    ) -> InferenceRequest:
        """Check a caller's wishes against this model and fill in what was left open.

        None (and, for ``seed``, -1) means the model's default. Raises ``RequestError``
        ``invalid_parameter`` naming field, limit, value and remedy.
        """
        self._check_task(task)
        self._check_text("prompt", prompt, empty_allowed=False)
        self._check_text("negative_prompt", negative_prompt or "", empty_allowed=True)
        self._check_images(task, images, mask)
        steps = self.steps if steps is None else within("steps", steps, 1, self.max_steps)
        cfg = self.cfg if cfg is None else float(within("cfg", cfg, 0.0, self.max_cfg))
        if seed is None or seed == -1:
            seed = secrets.randbelow(2**32)
        within("seed", seed, 0, SEED_MAX)
        _check_timeout(timeout)
        strength = self._strength(task, strength, steps)
        size = self._size(width, height, images if mask is None else images[:1])
        canvas = (round_up(size[0], self.multiple), round_up(size[1], self.multiple))
        area = self.reference_area
        if self.references_within_output:
            area = min(area, canvas[0] * canvas[1])
        seen = images if self.strength is None else ()
        references = tuple(fit_area(i.size, area, self.reference_multiple) for i in seen)
        conditions = tuple(fit_area(i.size, self.condition_area, self.reference_multiple) for i in seen)
        tokens = sum(w * h // self.patch**2 for w, h in (canvas, *references))
        return InferenceRequest(
            id=id,
            task=task,
            model=self.name,
            prompt=prompt,
            negative_prompt=self.negative_prompt if negative_prompt is None else negative_prompt,
            images=images,
            size=size,
            canvas=canvas,
            reference_sizes=references,
            condition_sizes=conditions,
            steps=steps,
            cfg=cfg,
            seed=seed,
            tokens=tokens * (2 if cfg > 1.0 else 1),
            adapters=self._adapters(adapters),
            strength=strength,
            mask=mask,
            step_cache=self._step_cache(step_cache),
            timeout=timeout,
        )

    def look(self, *, id: str, image: Image, ask: Ask, timeout: float | None = None) -> InferenceRequest:
        """What a caller asks of one picture, checked against this model.

        Raises ``RequestError`` ``invalid_parameter`` naming field, limit, value and remedy.
        """
        self._check_task(TASK_OF[type(ask)])
        assert self.vision is not None  # of every row with a task of vision
        _check_timeout(timeout)
        return self.vision.request(self.name, id=id, image=image, ask=ask, timeout=timeout)

    def _check_task(self, task: Task) -> None:
        if task not in self.tasks:
            known = " and ".join(sorted(self.tasks))
            raise invalid("task", f"{self.name} can {known} and cannot {task}; choose another model")

    def _check_images(self, task: Task, images: tuple[Image, ...], mask: Image | None) -> None:
        if task is Task.EDIT and not 1 <= len(images) <= self.max_images:
            remedy = "leave some out" if images else "send one"
            raise invalid(
                "images", f"{self.name} edits 1 to {self.max_images} images, not {len(images)}; {remedy}"
            )
        if task is Task.GENERATE and images:
            raise invalid("images", f"{self.name} makes a picture of a text alone; leave images out")
        for image in images:
            self._check_aspect("images", image.size)
        if mask is None:
            return
        if not self.masks:
            raise invalid("mask", f"{self.name} takes no mask; leave it out or choose a model that does")
        if task is not Task.EDIT:
            raise invalid("mask", "a mask needs a picture to apply to; send one")
        if mask.size != images[0].size:
            shown, other = ("{}x{}".format(*size) for size in (mask.size, images[0].size))
            raise invalid("mask", f"mask of {shown} does not fit the first picture of {other}; resize it")

    def _strength(self, task: Task, strength: float | None, steps: int) -> float | None:
        if self.strength is None:
            if strength is not None:
                raise invalid("strength", f"{self.name} takes no strength; say how much in the prompt")
            return None
        if task is not Task.EDIT:
            if strength is not None:
                raise invalid("strength", "strength needs a picture to begin with; send one or leave it out")
            return None
        if strength is None:
            # One step is all of a one-step schedule or nothing of it.
            return self.strength if int(steps * self.strength) >= 1 else 1.0
        within("strength", strength, 0.0, 1.0)
        if int(steps * strength) < 1:
            raise invalid(
                "strength",
                f"strength {strength:g} of {steps} steps leaves none to run; raise one of the two",
            )
        return float(strength)

    def _adapters(self, wanted: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
        if not wanted:
            return ()
        if self.adapters_refused is not None:
            raise invalid("loras", self.adapters_refused)
        if not self.adapters:
            raise invalid("loras", f"{self.name} has no loras here; leave them out")
        if len(wanted) > self.max_adapters:
            raise invalid(
                "loras", f"{len(wanted)} loras are over the limit of {self.max_adapters}; send fewer"
            )
        for name, scale in wanted:
            if name not in self.adapters:
                near = difflib.get_close_matches(name[:200], self.adapters, n=1)
                known = ", ".join(sorted(self.adapters)[:20])
                hint = f"did you mean {near[0]!r}?" if near else f"known: {known}"
                raise invalid("loras", f"no such lora for {self.name}; {hint}")
            if not abs(scale) <= MAX_ADAPTER_SCALE:  # also refuses NaN
                limits = f"-{MAX_ADAPTER_SCALE:g} to {MAX_ADAPTER_SCALE:g}"
                raise invalid("loras", f"scale {scale:g} is outside {limits}; choose one inside")
        if len({name for name, _ in wanted}) < len(wanted):
            raise invalid("loras", "a lora is named twice; add up its scales")
        return tuple(sorted((name, float(scale)) for name, scale in wanted))

    def _step_cache(self, threshold: float | None) -> float:
        if not threshold:
            return 0.0
        if not self.step_cache:
            raise invalid("step_cache", f"{self.name} computes every step in full; leave step_cache out")
        if self.lightning_steps is not None:
            raise invalid(
                "step_cache",
                f"{self.name} runs {self.lightning_steps} Lightning steps, too unlike each other to reuse; "
                "leave step_cache out",
            )
        return float(within("step_cache", threshold, 0.0, 1.0))

    def _check_text(self, field: str, text: str, *, empty_allowed: bool) -> None:
        if not empty_allowed and not text.strip():
            raise invalid(field, f"{field} is empty; say what to do")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise invalid(field, f"{field} holds half a character pair; send valid Unicode") from None
        if len(text) > self.max_prompt_chars:
            raise invalid(
                field,
                f"{field} of {len(text)} characters is over the limit of {self.max_prompt_chars}; shorten it",
            )

    def _size(self, width: int | None, height: int | None, images: tuple[Image, ...]) -> Size:
        # The last image gives the default aspect, as in diffusers' QwenImageEditPlusPipeline.
        source = images[-1].size if images else (1, 1)
        if width is None and height is None:
            fitted = fit_area(source, self.output_area, self.reference_multiple)
            if max(fitted) > self.max_side:
                # A long, thin input: less area keeps its aspect under the limit.
                area = round(self.output_area * (self.max_side / max(fitted)) ** 2)
                fitted = fit_area(source, area, self.reference_multiple)
            return (
                min(max(fitted[0], self.min_side), self.max_side),
                min(max(fitted[1], self.min_side), self.max_side),
            )
        if width is None:
            assert height is not None
            width = max(1, round(height * source[0] / source[1]))
        elif height is None:
            height = max(1, round(width * source[1] / source[0]))
        within("width", width, self.min_side, self.max_side)
        within("height", height, self.min_side, self.max_side)
        self._check_aspect("width", (width, height))
        return width, height

    def _check_aspect(self, field: str, size: Size) -> None:
        if max(size) > self.max_aspect * min(size):
            raise invalid(
                field,
                f"{size[0]}x{size[1]} is over the limit of {self.max_aspect:g}:1; bring the sides closer",
            )


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None:
        within("timeout", timeout, 0.001, MAX_TIMEOUT)

"""SAM 3: every instance of each prompt of a picture, as masks; a prompt is a noun phrase, boxes or both.

A picture goes through the vision transformer once, for all of its prompts and for all requests that show it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from core.errors import CapacityError
from core.request import InferenceRequest
from core.spec import PipelineSpec
from core.vision import Segment, Segmentation
from core.vision_spec import VisionSpec
from pipelines.condition_cache import ConditionCache
from pipelines.looking import OneForward, finite
from pipelines.options import ModelOptions, Report
from pipelines.sam3_boxes import Detector
from pipelines.sam3_encoding import CACHED, Encoding, Words
from pipelines.sam3_masks import Candidates, joined, over_threshold, segmentation
from pipelines.sam3_reading import Prompt, preprocess, read_prompt
from pipelines.vision_loading import VisionLoader

# Prompts in one pass of the decoder, whoever asks them: each takes 0.3 GB there in fp32, at the full size.
_TOGETHER = 8
_PADDING = -10  # what the model takes for the label of no box


def load(spec: PipelineSpec, options: ModelOptions, report: Report) -> "Sam3":
    """The published checkpoint is ``sam3_video``'s: this detector beside a tracker, which is left out."""
    assert spec.vision is not None  # every row of this family has one
    loader = VisionLoader(spec, options, report, model_type=("sam3", "sam3_video"))
    model = loader.model(Detector)
    if model.config.image_size != spec.vision.side:
        raise CapacityError(
            "not_ready",
            f"the checkpoint reads pictures at {model.config.image_size} pixels and {spec.name} at "
            f"{spec.vision.side}; make DEFAULT_MODEL and MODEL_DIR agree",
            retryable=False,
        )
    tokenizer = CLIPTokenizer.from_pretrained(loader.folder, local_files_only=True)
    return Sam3(loader, model, tokenizer, spec.vision, options.condition_cache_bytes)


@dataclass(slots=True)
class Inputs:
    """pixels: float32 [3, height, width]."""

    pixels: Tensor = field(repr=False)
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """logits: of every query of every prompt, whether it is among the candidates or not."""

    candidates: Candidates
    logits: Tensor = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Pass:
    """One prompt of one row. number: the prompt's in its row. picture: its row's, as ``Encoding`` counts."""

    row: int
    number: int
    picture: int
    prompt: Prompt


class Sam3(OneForward[Inputs, Found]):
    def __init__(
        self,
        loader: VisionLoader,
        model: Detector,
        tokenizer: CLIPTokenizer,
        limits: VisionSpec,
        cache_bytes: int,
    ) -> None:
        super().__init__(loader, model)
        self._model = model
        self._tokenizer = tokenizer
        self._max_found = limits.max_found
        self._max_mask_pixels = limits.max_mask_pixels
        cache = ConditionCache(cache_bytes, CACHED)
        self._encoding = Encoding(model, cache, tokenizer.pad_token_id)
        self.caches = cache.counts

    def read(self, request: InferenceRequest) -> Inputs:
        limit = self._encoding.max_words
        prompts = [read_prompt(one, request.size, self._tokenizer, limit) for one in _asked(request).prompts]
        return Inputs(preprocess(request.images[0], request.canvas).to(self.device), tuple(prompts))

    def forward(self, requests: Sequence[InferenceRequest], inputs: Sequence[Inputs]) -> list[Found]:
        keys = [(request.images[0].digest, request.canvas) for request in requests]
        pictures, where = self._encoding.pictures(keys, [row.pixels for row in inputs])
        texts = self._encoding.texts([prompt.words for row in inputs for prompt in row.prompts])
        found: dict[int, Found] = {}
        pyramids: dict[int, list[Tensor]] = {}
        for together in _groups(inputs, where):
            # Those of pictures that are done are dropped: they are large.
            pyramids = {
                number: pyramids.get(number) or self._encoding.pyramid(pictures[number])
                for number in dict.fromkeys(one.picture for one in together)
            }
            out = self._detect(together, pyramids, texts)
            for i, one in enumerate(together):
                logits, presence = out.pred_logits[i].float(), out.presence_logits[i].float()
                candidates = over_threshold(
                    one.number,
                    logits.sigmoid() * presence.sigmoid(),
                    out.pred_boxes[i].float(),
                    out.pred_masks[i],
                    threshold=_asked(requests[one.row]).threshold,
                    limit=self._max_found,
                )
                # Only the best so far are held on to: the masks of many prompts would fill the device.
                told = [logits + presence]
                if one.row in found:
                    told.append(found[one.row].logits)
                    candidates = joined(found[one.row].candidates, candidates, self._max_found)
                found[one.row] = Found(candidates, torch.cat(told))
        return [found[row] for row in range(len(inputs))]

    def tell(self, request: InferenceRequest, raw: Found) -> Segmentation:
        for values in (raw.logits, raw.candidates.boxes, raw.candidates.masks):
            finite(values, request)
        width, height = request.size
        drawn = max(1, self._max_mask_pixels // (width * height))
        return segmentation(raw.candidates.best(drawn), _asked(request), request.size)

    def _detect(
        self, together: Sequence[_Pass], pyramids: Mapping[int, list[Tensor]], texts: Mapping[Words, Tensor]
    ) -> Any:
        """``Sam3ImageSegmentationOutput`` of the passes, which have boxes all or none."""
        words = [one.prompt.words for one in together]
        levels = [
            _side_by_side(level) for level in zip(*(pyramids[one.picture] for one in together), strict=True)
        ]
        place = self._encoding.place(levels[-1]).expand_as(levels[-1])
        boxes, shows = _padded([one.prompt for one in together], self.device)
        return self._model(
            vision_embeds=Sam3VisionEncoderOutput(
                fpn_hidden_states=(*levels, None), fpn_position_encoding=(place, None)
            ),
            text_embeds=BaseModelOutputWithPooling(pooler_output=torch.stack([texts[w] for w in words])),
            attention_mask=self._encoding.mask(words),
            input_boxes=boxes,
            input_boxes_labels=shows,
        )


def _asked(request: InferenceRequest) -> Segment:
    assert isinstance(request.ask, Segment)  # the only task of this family's rows
    return request.ask


def _groups(inputs: Sequence[Inputs], where: Sequence[int]) -> Iterator[list[_Pass]]:
    """At most ``_TOGETHER`` passes each, those of one picture one after another.

    A prompt without boxes is computed without any, whatever stands beside it in its request: beside boxes it
    would be read with an empty list of them, which the model takes for something else.
    """
    passes = [
        _Pass(row, number, where[row], prompt)
        for row, given in enumerate(inputs)
        for number, prompt in enumerate(given.prompts)
    ]
    for boxed in (False, True):
        alike = [one for one in passes if (len(one.prompt.boxes) > 0) is boxed]
        alike.sort(key=lambda one: one.picture)
        for start in range(0, len(alike), _TOGETHER):
            yield alike[start : start + _TOGETHER]


def _side_by_side(levels: Sequence[Tensor]) -> Tensor:
    """[n, channels, height, width]; not copied where all are the same."""
    if all(level is levels[0] for level in levels):
        return levels[0].expand(len(levels), -1, -1, -1)
    return torch.stack(list(levels))


def _padded(prompts: Sequence[Prompt], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Boxes [n, most, 4] and their labels [n, most]; None where there are none."""
    most = max(len(prompt.boxes) for prompt in prompts)
    if not most:
        return None, None
    boxes = torch.full((len(prompts), most, 4), float(_PADDING))
    shows = torch.full((len(prompts), most), _PADDING)
    for i, prompt in enumerate(prompts):
        boxes[i, : len(prompt.boxes)] = prompt.boxes
        shows[i, : len(prompt.shows)] = prompt.shows
    return boxes.to(device), shows.to(device)

"""Grounding DINO and MM Grounding DINO: boxes around what a caller names in words."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers.models.bert.tokenization_bert import BertTokenizer
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import MMGroundingDinoForObjectDetection

from core.request import Image, InferenceRequest, Size
from core.spec import PipelineSpec
from core.vision import Box, Detect, Detection, Detections
from pipelines.grounding_text import Caption, read_tokenizer, write_caption
from pipelines.looking import OneForward, array, finite, normalised
from pipelines.options import ModelOptions, Report
from pipelines.vision_loading import VisionLoader

_MODELS = {
    "grounding-dino": GroundingDinoForObjectDetection,
    "mm-grounding-dino": MMGroundingDinoForObjectDetection,
}


def load(spec: PipelineSpec, options: ModelOptions, report: Report) -> "GroundingDINO":
    loader = VisionLoader(spec, options, report, model_type=tuple(_MODELS), ranks=True)
    tokenizer = read_tokenizer(loader.folder)
    model = loader.model(_MODELS[loader.config["model_type"]])
    assert spec.vision is not None
    return GroundingDINO(loader, model, tokenizer, spec.vision.max_found)


@dataclass(slots=True)
class Look:
    """pixels: float32 [3, height, width], on the device."""

    pixels: Tensor = field(repr=False)
    caption: Caption


@dataclass(slots=True)
class Found:
    """logits: float32 [queries, tokens of the caption]. boxes: [queries, 4], centre and size, 0 to 1."""

    caption: Caption
    logits: Tensor = field(repr=False)
    boxes: Tensor = field(repr=False)


class GroundingDINO(OneForward[Look, Found]):
    def __init__(
        self,
        loader: VisionLoader,
        model: GroundingDinoForObjectDetection | MMGroundingDinoForObjectDetection,
        tokenizer: BertTokenizer,
        max_found: int,
    ) -> None:
        super().__init__(loader, model)
        self._model = model
        self._tokenizer = tokenizer
        self._max_found = max_found

    def read(self, request: InferenceRequest) -> Look:
        assert isinstance(request.ask, Detect)
        caption = write_caption(self._tokenizer, request.ask.labels, self._model.config.max_text_len)
        return Look(preprocess(request.images[0], request.canvas).to(self.device), caption)

    def forward(self, requests: Sequence[InferenceRequest], inputs: Sequence[Look]) -> list[Found]:
        """A row that is not finite takes the others with it: where pictures meet words, upstream subtracts
        the largest product of the whole batch. They are then run again one by one."""
        found = self._together(inputs)
        if len(found) == 1 or all(_is_finite(one) for one in found):
            return found
        return [self._together([look])[0] for look in inputs]

    def _together(self, looks: Sequence[Look]) -> list[Found]:
        """Captions are padded to the longest; its mask keeps the padding from all that is told."""
        longest = max(len(look.caption.ids) for look in looks)
        ids = torch.zeros((len(looks), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, look in enumerate(looks):
            ids[row, : len(look.caption.ids)] = torch.tensor(look.caption.ids)
            mask[row, : len(look.caption.ids)] = 1
        told = self._model(
            pixel_values=torch.stack([look.pixels for look in looks]),
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
        )
        return [
            Found(look.caption, logits[:, : len(look.caption.ids)].float(), boxes.float())
            for look, logits, boxes in zip(looks, told.logits, told.pred_boxes, strict=True)
        ]

    def tell(self, request: InferenceRequest, raw: Found) -> Detections:
        """Source: post_process_grounded_object_detection of transformers' processing_grounding_dino.py.

        What upstream does not say is which of the labels it is: the one with the best score of a token.
        """
        assert isinstance(request.ask, Detect)
        finite(raw.boxes, request)
        chances = finite(raw.logits, request).sigmoid().cpu()
        scores = chances.amax(-1)
        kept = torch.nonzero(scores > request.ask.box_threshold)[:, 0]
        best = kept[scores[kept].argsort(descending=True, stable=True)][: self._max_found]
        chances, scores = chances[best], scores[best]
        labels = torch.stack([chances[:, places].amax(-1) for places in raw.caption.places]).argmax(0)
        return Detections(
            size=request.size,
            items=tuple(
                Detection(
                    box=_corners(box, request.size),
                    score=float(score),
                    label=int(label),
                    phrase=self._phrase(raw.caption, chance > request.ask.text_threshold),
                )
                for box, score, label, chance in zip(
                    raw.boxes.cpu()[best], scores, labels, chances, strict=True
                )
            ),
        )

    def _phrase(self, caption: Caption, recognised: Tensor) -> str:
        """The first token, and upstream's last of all, are never part of it."""
        last = self._model.config.max_text_len - 1
        chosen = [caption.ids[i] for i in torch.nonzero(recognised)[:, 0].tolist() if 0 < i < last]
        return str(self._tokenizer.decode(chosen))


def preprocess(image: Image, size: Size) -> Tensor:
    """float32 [3, height, width], normalised. Source: GroundingDinoImageProcessorPil of transformers."""
    picture = PIL.Image.fromarray(array(image))
    if picture.size != size:
        picture = picture.resize(size, PIL.Image.Resampling.BILINEAR)
    return normalised(torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1))


def _corners(box: Tensor, size: Size) -> Box:
    """Pixels, inside the picture."""
    x, y, w, h = box.tolist()
    width, height = size
    left, right = (min(max(edge, 0.0), 1.0) * width for edge in (x - w / 2, x + w / 2))
    top, bottom = (min(max(edge, 0.0), 1.0) * height for edge in (y - h / 2, y + h / 2))
    return left, top, right, bottom


def _is_finite(found: Found) -> bool:
    return bool(found.logits.isfinite().all() and found.boxes.isfinite().all())

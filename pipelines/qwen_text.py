"""From prompts and pictures to embeddings, for the Qwen-Image family.

Many requests share one call of the language model, and a picture that several prompts speak of is seen
once. Parity is with ``_get_qwen_prompt_embeds`` of diffusers' ``pipeline_qwenimage_edit_plus.py``, with
the multimodal positions that the text encoder was trained with and that the pipeline forgets to ask for
(huggingface/diffusers#14194); and, for a text alone, of ``pipeline_qwenimage.py``.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image as Picture
from tokenizers import Tokenizer
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from core.errors import RequestError

# Source: ``max_sequence_length`` in ``check_inputs`` of both files. Upstream cuts longer texts, and from
# 512 tokens on unless told otherwise; here they are refused.
MAX_PROMPT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Template:
    """What stands around a caller's words.

    dropped: tokens of ``head``, whose embeddings the transformer never sees.
    picture: how each picture is introduced; None for a model that is shown none.
    """

    head: str
    dropped: int
    picture: str | None


_EDIT = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate "
    "a new image that meets the user's requirements while maintaining consistency with the original input "
    "where appropriate.<|im_end|>\n<|im_start|>user\n"
)
_GENERATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
_TAIL = "<|im_end|>\n<|im_start|>assistant\n"

# Source: ``prompt_template_encode`` and ``prompt_template_encode_start_idx`` of diffusers'
# ``pipeline_qwenimage_edit.py``, ``…_edit_plus.py`` and ``pipeline_qwenimage.py``, in this order.
ONE_PICTURE = Template(_EDIT, 64, "<|vision_start|>{pads}<|vision_end|>")
NUMBERED_PICTURES = Template(_EDIT, 64, "Picture {number}: <|vision_start|>{pads}<|vision_end|>")
TEXT_ALONE = Template(_GENERATE, 34, None)


@dataclass(frozen=True, slots=True)
class Ask:
    """One text to encode; equal asks have equal embeddings.

    pictures: keys into the pictures given beside it, in order.
    source: the request's field that the text came from, for error messages.
    """

    text: str
    pictures: tuple[Hashable, ...]
    source: str = field(compare=False)


class PromptEncoder:
    """processor: holds ``tokenizer`` and, where the template shows pictures, ``image_processor``."""

    def __init__(self, text_encoder: Any, processor: Any, template: Template, device: torch.device) -> None:
        self._model = text_encoder.model  # without the head that predicts words: it is never asked
        self._image_token = text_encoder.config.image_token_id
        self._pictures = processor.image_processor
        self._tokenizer = processor.tokenizer
        self._words = _without_control_tokens(processor.tokenizer)
        self._template = template
        self._device = device

    def encode(self, asks: Sequence[Ask], pictures: Mapping[Any, Picture]) -> list[Tensor]:
        """Embeddings [length, width] of each ask, in the model's dtype; each owns its memory.

        pictures: at the size to be shown, RGB; none at all for a template that shows none.
        Raises ``RequestError`` ``invalid_parameter`` for a text of over ``MAX_PROMPT_TOKENS`` tokens.
        """
        words = [self._tokenize(ask) for ask in asks]
        if self._template.picture is None:
            rows = [self._sequence(body, []) for body in words]
            hidden = self._run(rows)
        else:
            keys = list(pictures)
            features, grids = self._look([pictures[key] for key in keys])
            index = {key: number for number, key in enumerate(keys)}
            rows = [
                self._sequence(body, [len(features[index[key]]) for key in ask.pictures])
                for ask, body in zip(asks, words, strict=True)
            ]
            order = [index[key] for ask in asks for key in ask.pictures]
            shown = BaseModelOutputWithPooling(pooler_output=tuple(features[number] for number in order))
            hidden = self._run(rows, image_grid_thw=grids[order], mm_encoder_outputs={"image": shown})
        return [hidden[i, self._template.dropped : len(row)].clone() for i, row in enumerate(rows)]

    def _look(self, pictures: Sequence[Picture]) -> tuple[Sequence[Tensor], Tensor]:
        """What the vision tower makes of each picture, and their grids of patches."""
        seen = self._pictures(pictures, return_tensors="pt")
        grids = seen["image_grid_thw"].to(self._device)
        patches = seen["pixel_values"].to(self._device)
        return self._model.get_image_features(patches, grids).pooler_output, grids

    def _tokenize(self, ask: Ask) -> list[int]:
        ids: list[int] = self._words.encode(ask.text, add_special_tokens=False).ids
        if len(ids) > MAX_PROMPT_TOKENS:
            raise RequestError(
                "invalid_parameter",
                f"{ask.source} of {len(ids)} tokens is over the limit of {MAX_PROMPT_TOKENS}; shorten it",
                param=ask.source,
            )
        return ids

    def _sequence(self, body: list[int], picture_tokens: list[int]) -> list[int]:
        """Control tokens part the caller's words from the template, so both can be tokenized alone."""
        introductions = (
            (self._template.picture or "").format(number=number, pads="<|image_pad|>" * count)
            for number, count in enumerate(picture_tokens, start=1)
        )
        head = self._tokenizer(self._template.head + "".join(introductions))["input_ids"]
        return [*head, *body, *self._tokenizer(_TAIL)["input_ids"]]

    def _run(self, rows: list[list[int]], **pictures: Any) -> Tensor:
        """Padded on the right: attention is causal, so no real token ever sees the padding."""
        longest = max(map(len, rows))
        padding = self._tokenizer.pad_token_id
        ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        ids, mask = ids.to(self._device), mask.to(self._device)
        if pictures:
            pictures["mm_token_type_ids"] = (ids == self._image_token).int()
        outputs = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **pictures)
        hidden: Tensor = outputs.last_hidden_state
        return hidden


def _without_control_tokens(tokenizer: Any) -> Tokenizer:
    """The same vocabulary with nothing but words: a caller's ``<|im_end|>`` is six pieces of text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps(state | {"added_tokens": [], "post_processor": None}))

"""From prompts and pictures to embeddings, for the Qwen-Image-Edit family.

Many requests share one call of the language model, and a picture that several prompts speak of is seen
once. Parity is with ``_get_qwen_prompt_embeds`` of diffusers' ``pipeline_qwenimage_edit_plus.py``, with
the multimodal positions that the text encoder was trained with and that the pipeline forgets to ask for
(huggingface/diffusers#14194).
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

# Source: ``max_sequence_length`` in ``check_inputs`` of the same file.
MAX_PROMPT_TOKENS = 1024

_HEAD = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate "
    "a new image that meets the user's requirements while maintaining consistency with the original input "
    "where appropriate.<|im_end|>\n<|im_start|>user\n"
)
_TAIL = "<|im_end|>\n<|im_start|>assistant\n"
_DROPPED = 64  # tokens of _HEAD, whose embeddings the transformer never sees

# How a picture is introduced, by pipeline. Source: ``pipeline_qwenimage_edit.py`` and ``…_edit_plus.py``.
ONE_PICTURE = "<|vision_start|>{pads}<|vision_end|>"
NUMBERED_PICTURES = "Picture {number}: <|vision_start|>{pads}<|vision_end|>"


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
    """introduction: one of the two templates above."""

    def __init__(self, text_encoder: Any, processor: Any, introduction: str, device: torch.device) -> None:
        self._model = text_encoder.model  # without the head that predicts words: it is never asked
        self._image_token = text_encoder.config.image_token_id
        self._pictures = processor.image_processor
        self._tokenizer = processor.tokenizer
        self._words = _without_control_tokens(processor.tokenizer)
        self._introduction = introduction
        self._device = device

    def encode(self, asks: Sequence[Ask], pictures: Mapping[Any, Picture]) -> list[Tensor]:
        """Embeddings [length, width] of each ask, in the model's dtype; each owns its memory.

        pictures: at the size to be shown, RGB.
        Raises ``RequestError`` ``invalid_parameter`` for a text of over ``MAX_PROMPT_TOKENS`` tokens.
        """
        words = [self._tokenize(ask) for ask in asks]
        keys = list(pictures)
        seen = self._pictures([pictures[key] for key in keys], return_tensors="pt")
        patches = seen["pixel_values"].to(self._device)
        grids = seen["image_grid_thw"]
        features = self._model.get_image_features(patches, grids.to(self._device)).pooler_output
        index = {key: number for number, key in enumerate(keys)}
        rows = [
            self._sequence(body, [len(features[index[key]]) for key in ask.pictures])
            for ask, body in zip(asks, words, strict=True)
        ]
        order = [index[key] for ask in asks for key in ask.pictures]
        hidden = self._run(rows, grids[order], [features[number] for number in order])
        return [hidden[i, _DROPPED : len(row)].clone() for i, row in enumerate(rows)]

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
            self._introduction.format(number=number, pads="<|image_pad|>" * count)
            for number, count in enumerate(picture_tokens, start=1)
        )
        head = self._tokenizer(_HEAD + "".join(introductions))["input_ids"]
        return [*head, *body, *self._tokenizer(_TAIL)["input_ids"]]

    def _run(self, rows: list[list[int]], grids: Tensor, features: list[Tensor]) -> Tensor:
        """Padded on the right: attention is causal, so no real token ever sees the padding."""
        longest = max(map(len, rows))
        padding = self._tokenizer.pad_token_id
        ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        ids, mask = ids.to(self._device), mask.to(self._device)
        outputs = self._model(
            input_ids=ids,
            attention_mask=mask,
            image_grid_thw=grids.to(self._device),
            mm_token_type_ids=(ids == self._image_token).int(),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=tuple(features))},
            use_cache=False,
        )
        hidden: Tensor = outputs.last_hidden_state
        return hidden


def _without_control_tokens(tokenizer: Any) -> Tokenizer:
    """The same vocabulary with nothing but words: a caller's ``<|im_end|>`` is six pieces of text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps(state | {"added_tokens": [], "post_processor": None}))

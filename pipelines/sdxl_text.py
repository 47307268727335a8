"""From prompts to embeddings, for the SDXL family: two CLIP encoders, read side by side.

Parity is with ``encode_prompt`` of diffusers' ``pipeline_stable_diffusion_xl.py`` up to the 75 tokens that
CLIP can read. Stock cuts off what is longer; here it is read in pieces of 75, which the denoiser sees one
after another, as AUTOMATIC1111's web UI does (``modules/sd_hijack_clip.py``); the pooled embedding is that
of the first piece, as there and in ComfyUI (``comfy/sd1_clip.py``).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from core.errors import RequestError
from core.request import InferenceRequest
from pipelines.condition_cache import ConditionCache

MAX_PIECES = 4
TOKENS, POOLED = CACHED = ("prompt_embeddings", "pooled_embeddings")

_Adapters = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Text:
    """What a text became. tokens: [77 * pieces, both encoders' widths]. pooled: [the second one's width]."""

    tokens: Tensor
    pooled: Tensor


class PromptEncoder:
    """Encodes what the cache does not hold, for all requests of a call together.

    encoders: (tokenizer, text model) of the first encoder and the second, whose output is pooled.
    zero_negative: no negative prompt means zeros instead of an empty text.
    """

    def __init__(
        self,
        encoders: Sequence[tuple[Any, Any]],
        cache: ConditionCache,
        device: torch.device,
        dtype: torch.dtype,
        *,
        zero_negative: bool,
    ) -> None:
        self._encoders = [(tokenizer, _words_of(tokenizer), model) for tokenizer, model in encoders]
        self._cache = cache
        self._zero_negative = zero_negative
        self._device = device
        self._dtype = dtype

    def encode(self, requests: Sequence[InferenceRequest]) -> list[tuple[Text, Text | None]]:
        """(prompt, negative) of each request; a negative only for the guided.

        All of one set of adapters. Raises ``RequestError`` ``invalid_parameter`` for a text of over
        ``MAX_PIECES`` pieces.
        """
        adapters = requests[0].adapters
        known: dict[str, Text] = {}
        missing: dict[str, list[list[list[int]]]] = {}
        for text, field in [ask for request in requests for ask in self._asks(request)]:
            if text in known or text in missing:
                continue
            found = self._remembered(text, adapters)
            if found is None:
                missing[text] = self._pieces(text, field)
            else:
                known[text] = found
        if missing:
            for text, made in zip(missing, self._run(list(missing.values())), strict=True):
                self._cache.put(TOKENS, (text, adapters), made.tokens)
                self._cache.put(POOLED, (text, adapters), made.pooled)
                known[text] = made
        return [(known[request.prompt], self._negative(request, known)) for request in requests]

    def _asks(self, request: InferenceRequest) -> list[tuple[str, str]]:
        """Texts to encode, each with the request's field it came from."""
        asks = [(request.prompt, "prompt")]
        if request.guided and not self._is_zero(request):
            asks.append((request.negative_prompt or "", "negative_prompt"))
        return asks

    def _is_zero(self, request: InferenceRequest) -> bool:
        return request.negative_prompt is None and self._zero_negative

    def _negative(self, request: InferenceRequest, known: dict[str, Text]) -> Text | None:
        if not request.guided:
            return None
        if self._is_zero(request):
            prompt = known[request.prompt]
            return Text(torch.zeros_like(prompt.tokens), torch.zeros_like(prompt.pooled))
        return known[request.negative_prompt or ""]

    def _remembered(self, text: str, adapters: _Adapters) -> Text | None:
        tokens = self._cache.get(TOKENS, (text, adapters))
        pooled = self._cache.get(POOLED, (text, adapters))
        return None if tokens is None or pooled is None else Text(tokens, pooled)

    def _pieces(self, text: str, field: str) -> list[list[list[int]]]:
        """For each encoder the text's pieces, equally many."""
        answer = []
        for tokenizer, words, _ in self._encoders:
            room = tokenizer.model_max_length - 2
            ids = words.encode(text, add_special_tokens=False).ids
            if len(ids) > MAX_PIECES * room:
                raise RequestError(
                    "invalid_parameter",
                    f"{field} of {len(ids)} tokens is over the limit of {MAX_PIECES * room}; shorten it",
                    param=field,
                )
            answer.append([ids[i : i + room] for i in range(0, max(len(ids), 1), room)])
        most = max(map(len, answer))
        return [[*pieces, *([] for _ in range(most - len(pieces)))] for pieces in answer]

    def _run(self, texts: list[list[list[list[int]]]]) -> list[Text]:
        hidden = []
        for number, (tokenizer, _, model) in enumerate(self._encoders):
            rows = [_row(tokenizer, piece) for text in texts for piece in text[number]]
            output = model(torch.tensor(rows).to(self._device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2].to(self._dtype))
        pooled = output[0].to(self._dtype)
        tokens = torch.cat(hidden, dim=-1)
        answer, start = [], 0
        for text in texts:
            end = start + len(text[0])
            answer.append(Text(tokens[start:end].flatten(0, 1).clone(), pooled[start].clone()))
            start = end
        return answer


def _row(tokenizer: Any, piece: list[int]) -> list[int]:
    ids = [tokenizer.bos_token_id, *piece, tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))


def _words_of(tokenizer: Any) -> Tokenizer:
    """The same vocabulary, in which a caller's ``<|endoftext|>`` is a few signs and ends nothing."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    control = {tokenizer.bos_token, tokenizer.eos_token}
    added = [token for token in state["added_tokens"] if token["content"] not in control]
    return Tokenizer.from_str(
        json.dumps(
            state | {"added_tokens": added, "post_processor": None, "padding": None, "truncation": None}
        )
    )

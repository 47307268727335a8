"""What SAM 3 makes of pictures and of texts before it looks for one in the other: each once, whoever asks.

Knows nothing of what is found.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.condition_cache import ConditionCache
from pipelines.sam3_boxes import Detector

PICTURES, PROMPTS = CACHED = ("pictures", "prompts")
_TEXTS_TOGETHER = 64

Words = tuple[int, ...]  # token ids without padding
Shown = tuple[str, tuple[int, int]]  # a picture's digest, and the size at which it enters the model


class Encoding:
    """Encodes what the cache does not hold, for all rows of a forward together."""

    def __init__(self, model: Detector, cache: ConditionCache, padding: int) -> None:
        self._model = model
        self._cache = cache
        self._padding = padding
        self.max_words = int(model.config.text_config.max_position_embeddings)

    def pictures(self, keys: Sequence[Shown], pixels: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
        """Each picture, [patches, width], and for each row which of them is its own.

        Rows of one key share a picture. Only one whose values are all finite is shared and remembered: a
        row that comes with others is alone with them.
        """
        seen: list[Tensor] = []
        where: dict[int, int] = {}
        for key in dict.fromkeys(keys):
            known = self._cache.get(PICTURES, key)
            if known is not None:
                where.update({row: len(seen) for row, other in enumerate(keys) if other == key})
                seen.append(known)
        while waiting := [row for row in range(len(keys)) if row not in where]:
            first = {keys[row]: row for row in reversed(waiting)}
            batch = torch.stack([pixels[row] for row in first.values()])
            # The largest of what is made for a picture that does not depend on its size: the pyramid above it
            # takes a thirtieth of the time, and five times the memory.
            made = self._model.vision_encoder.backbone(batch).last_hidden_state
            for (key, row), picture in zip(first.items(), made, strict=True):
                sound = bool(picture.isfinite().all())
                sharing = [other for other in waiting if keys[other] == key] if sound else [row]
                where.update(dict.fromkeys(sharing, len(seen)))
                seen.append(picture.clone())
                if sound:
                    self._cache.put(PICTURES, key, seen[-1])
        return seen, [where[row] for row in range(len(keys))]

    def pyramid(self, picture: Tensor) -> list[Tensor]:
        """The picture at the decoder's sizes, each [channels, height, width], the largest first."""
        side = int(len(picture) ** 0.5)
        spatial = picture.view(1, side, side, -1).permute(0, 3, 1, 2)
        # Source: Sam3VisionNeck; the model leaves its last level unread.
        return [level(spatial)[0] for level in self._model.vision_encoder.neck.fpn_layers[:-1]]

    def place(self, level: Tensor) -> Tensor:
        """Of each pixel of a level, [1, channels, height, width]."""
        encode = self._model.vision_encoder.neck.position_encoding
        places: Tensor = encode((1, *level.shape[-3:]), level.device, level.dtype)
        return places

    def texts(self, prompts: Sequence[Words]) -> dict[Words, Tensor]:
        """Each text, [max_words, width]."""
        known = {words: self._cache.get(PROMPTS, words) for words in dict.fromkeys(prompts)}
        missing = [words for words, text in known.items() if text is None]
        for start in range(0, len(missing), _TEXTS_TOGETHER):
            some = missing[start : start + _TEXTS_TOGETHER]
            rows = [[*words, *[self._padding] * (self.max_words - len(words))] for words in some]
            ids = torch.tensor(rows, device=self._model.device)
            made = self._model.get_text_features(ids, attention_mask=self.mask(some)).pooler_output
            for words, text in zip(some, made, strict=True):
                known[words] = text.clone()
                self._cache.put(PROMPTS, words, text.clone())
        return {words: text for words, text in known.items() if text is not None}

    def mask(self, prompts: Sequence[Words]) -> Tensor:
        """int64 [prompts, max_words], 1 where a text is and 0 where it is padding."""
        lengths = torch.tensor([len(words) for words in prompts])
        return (torch.arange(self.max_words) < lengths[:, None]).long().to(self._model.device)

"""First-block cache, row by row: steps that reuse what the blocks after the first added before.

When what the first block adds to a row has hardly changed since the row's last full step, what the others
would add has hardly changed either, and their stored sum stands in for them. Rule and measure are those of
ParaAttention's first-block cache and of ``FirstBlockCacheConfig`` in diffusers' ``first_block_cache.py``.
There one store and one decision serve a whole batch; here each row, and each side of its guidance, has its
own, and the rows that are not reused go through the blocks as a smaller batch.

A store is large: at 1024x1024 with one reference, in bf16 at the full model's width, 75 MB for each side.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """What a row's last full step added. first: [picture tokens, width]; rest: [canvas tokens, width]."""

    first: Tensor
    rest: Tensor


@dataclass(frozen=True, slots=True)
class Reuse:
    """What one row of a forward allows. threshold: of the relative change of the first block's part."""

    threshold: float
    stored: Stored | None

    @classmethod
    def of(cls, threshold: float, stored: Stored | None) -> "Reuse | None":
        """None for a row that computes every step in full."""
        return cls(threshold, stored) if threshold > 0 else None


def predict(
    transformer: Any, inputs: dict[str, Any], rows: Sequence[Reuse | None], canvas_tokens: int
) -> tuple[Tensor, list[Stored | None]]:
    """The transformer's output [rows, picture tokens, channels], and what each row can reuse next time.

    Of a row that was reused only the first ``canvas_tokens`` are meaningful. What a row can reuse is for the
    caller to keep, once its step has succeeded; it is the same object as before when the row was reused.
    """
    if not any(rows):  # the usual case: nothing is touched
        return transformer(**inputs, return_dict=False)[0], [None] * len(rows)
    with _blocks_as_one(
        transformer, CachedBlocks(transformer.transformer_blocks, rows, canvas_tokens)
    ) as one:
        return transformer(**inputs, return_dict=False)[0], one.stored


@contextmanager
def _blocks_as_one(transformer: Any, one: "CachedBlocks") -> Iterator["CachedBlocks"]:
    """For one forward. Outside it adapters, quantization and offloading find every block under its name."""
    blocks = transformer.transformer_blocks
    transformer.transformer_blocks = torch.nn.ModuleList([one])
    try:
        yield one
    finally:
        transformer.transformer_blocks = blocks


class CachedBlocks(torch.nn.Module):
    """All blocks of a ``QwenImageTransformer2DModel``, called as if they were one.

    stored: of each row, after the forward.
    """

    def __init__(self, blocks: Sequence[Any], rows: Sequence[Reuse | None], canvas_tokens: int) -> None:
        super().__init__()
        self._blocks = torch.nn.ModuleList(blocks)
        self._rows = rows
        self._canvas_tokens = canvas_tokens
        self.stored: list[Stored | None] = [row.stored if row else None for row in rows]

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None,
        temb: Tensor,
        modulate_index: Tensor | None,
        **shared: Any,
    ) -> tuple[Tensor, Tensor]:
        """As of ``QwenImageTransformerBlock``. Nobody reads the texts that the last block gives."""
        first, *others = self._blocks
        own = {
            "encoder_hidden_states_mask": encoder_hidden_states_mask,
            "temb": temb,
            "modulate_index": modulate_index,
        }
        texts, pictures = first(
            hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **own, **shared
        )
        added = pictures - hidden_states
        due, rows = self._due(added), len(pictures)
        computed = pictures
        if len(due) < rows:
            own = {name: _of_rows(value, due, rows) for name, value in own.items()}
            texts, computed = texts[due], pictures[due]
        if due:
            for block in others:
                texts, computed = block(hidden_states=computed, encoder_hidden_states=texts, **own, **shared)
        return texts, self._finish(pictures, added, due, computed)

    def _due(self, added: Tensor) -> list[int]:
        """The rows that must go through the other blocks. Waits for the device, once."""
        known = {i: row for i, row in enumerate(self._rows) if row is not None and row.stored is not None}
        changes = {}
        if known:
            measured = [_change(added[i], row.stored.first) for i, row in known.items() if row.stored]
            changes = dict(zip(known, torch.stack(measured).tolist(), strict=True))
        # Written so that a change that is no number computes.
        reused = {i for i, change in changes.items() if change <= known[i].threshold}
        return [i for i in range(len(self._rows)) if i not in reused]

    def _finish(self, pictures: Tensor, added: Tensor, due: list[int], computed: Tensor) -> Tensor:
        """What the last block would give; notes what each row that was computed can reuse."""
        finished = computed if len(due) == len(pictures) else pictures.clone()
        for i, row in zip(due, computed, strict=True):
            if finished is not computed:
                finished[i] = row
            if self._rows[i] is not None:
                canvas = slice(self._canvas_tokens)
                self.stored[i] = Stored(added[i].clone(), row[canvas] - pictures[i, canvas])
        for i in set(range(len(pictures))) - set(due):
            stored = self.stored[i]
            assert stored is not None
            finished[i, : self._canvas_tokens] += stored.rest
        return finished


def _change(now: Tensor, before: Tensor) -> Tensor:
    """Mean distance in relation to the mean size before."""
    distance = (now - before).abs().mean(dtype=torch.float32)
    return distance / before.abs().mean(dtype=torch.float32)


def _of_rows(value: Tensor | None, chosen: list[int], rows: int) -> Tensor | None:
    """The chosen rows of a value that may hold several sets of them.

    Under ``zero_cond_t`` the embedding of time has a second set, of references at t = 0.
    """
    if value is None:
        return None
    return value.view(-1, rows, *value.shape[1:])[:, chosen].flatten(0, 1)

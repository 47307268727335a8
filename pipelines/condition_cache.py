"""A bounded memory of what prompts and reference images became, by content.

Knows nothing of how conditions are made. One thread changes it; its counters may be read from any.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch


class ConditionCache:
    """Least recently used leaves first, bounded by bytes over all kinds together.

    max_bytes: 0 keeps nothing and counts only misses.
    counts: for each kind hits, misses, entries and bytes; the dicts live as long as the cache.
    """

    def __init__(self, max_bytes: int, kinds: Sequence[str]) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, Hashable], torch.Tensor] = OrderedDict()
        self._bytes = 0
        self.counts = {kind: {"hits": 0, "misses": 0, "entries": 0, "bytes": 0} for kind in kinds}

    def get(self, kind: str, key: Hashable) -> torch.Tensor | None:
        value = self._entries.get((kind, key))
        self.counts[kind]["misses" if value is None else "hits"] += 1
        if value is not None:
            self._entries.move_to_end((kind, key))
        return value

    def put(self, kind: str, key: Hashable, value: torch.Tensor) -> None:
        """Keep ``value``, which must own its memory: a slice would hold on to the whole it came from."""
        if value.nbytes > self._max_bytes or (kind, key) in self._entries:
            return
        self._entries[kind, key] = value
        self._count(kind, value, 1)
        while self._bytes > self._max_bytes:
            (oldest, _), dropped = self._entries.popitem(last=False)
            self._count(oldest, dropped, -1)

    def _count(self, kind: str, value: torch.Tensor, sign: int) -> None:
        self._bytes += sign * value.nbytes
        self.counts[kind]["entries"] += sign
        self.counts[kind]["bytes"] += sign * value.nbytes

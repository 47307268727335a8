"""Users' LoRAs: loaded when first asked for, switched between rows, never part of the weights.

They stand unfused beside the model's own layers, so taking them off restores the model exactly, and they
work over 8-bit weights. Knows no family.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from core.errors import CapacityError, RequestError
from pipelines.lora_files import LoraFile, LoraNotFound, find
from pipelines.lora_keys import BadLora, Layer, Part
from pipelines.lora_layers import Targets, adapted, attach, detach, read
from pipelines.options import ModelOptions

log = logging.getLogger(__name__)

Wanted = Sequence[tuple[str, float]]  # (id, scale), as requests have them


class Lease:
    """Kept by a prepared row: as long as it lives, none of its adapters is thrown out."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    name: str  # as peft knows it
    bytes: int
    leases: "weakref.WeakSet[Lease]"


class AdapterSet:
    """The LoRAs that one loaded model can take.

    models: by part, before anything was put on them. dtype, device: where the adapters compute.
    counts: hits, misses, entries and bytes; one thread changes it, any may read it.

    Every file is found, fetched and checked now, so that a request never waits for a download. A pipeline
    calls ``hold`` in ``prepare``, and ``use`` before every call of a model that may be changed.
    """

    def __init__(
        self, models: Mapping[Part, Any], options: ModelOptions, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._targets = Targets(models)
        self._options = options
        self._dtype, self._device = dtype, device
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._active: tuple[tuple[str, float], ...] | None = ()
        self._layers: list[Any] = []
        self._numbered = 0
        self.counts = {"hits": 0, "misses": 0, "entries": 0, "bytes": 0}
        for name, source in options.adapters.items():
            try:
                self._find(source, options)
            except (BadLora, LoraNotFound) as error:
                log.warning("lora %s cannot be used with this model: %s", name, error)

    def hold(self, wanted: Wanted) -> Lease:
        """Load what is missing, and keep all of it until the lease is dropped.

        More than ``max_adapters`` stay loaded while rows in progress need them.
        Raises ``RequestError`` ``invalid_parameter`` for a file that this model cannot take, and
        ``CapacityError`` ``not_ready`` for one that is not here; the model is then as it was.
        """
        lease = Lease()
        try:
            for name, _ in wanted:
                self.counts["hits" if name in self._loaded else "misses"] += 1
                if name not in self._loaded:
                    self._loaded[name] = self._load(name)
                self._loaded.move_to_end(name)
                self._loaded[name].leases.add(lease)
        finally:
            self._evict()
        return lease

    def use(self, wanted: Wanted) -> None:
        """From now on the models compute with exactly these, which are held. Nothing to do if they do."""
        wanted = tuple(wanted)
        if wanted == self._active:
            return
        self._active = None  # of no use to anyone until all layers are switched
        scales = {self._loaded[name].name: scale for name, scale in wanted}
        names = list(scales)
        for layer in self._layers:
            # As peft's ``set_adapter`` and ``set_scale``, which take forty times as long for the gradients.
            layer._active_adapter = names
            layer.scaling.update((name, scale) for name, scale in scales.items() if name in layer.scaling)
        self._active = wanted

    def _find(self, source: str, options: ModelOptions) -> tuple[LoraFile, dict[Part, dict[str, Layer]]]:
        file = find(source, options)
        return file, self._targets.match(file)

    def _load(self, name: str) -> _Loaded:
        try:
            # A file that appeared since the start is taken, but nobody waits for a hub here.
            file, matched = self._find(self._options.adapters[name], replace(self._options, local_only=True))
            return self._put_on(file, matched)
        except BadLora as error:
            raise RequestError(
                "invalid_parameter",
                f"lora {name!r} cannot be used with this model: {error}; leave it out",
                param="loras",
            ) from None
        except LoraNotFound as error:
            raise CapacityError("not_ready", f"lora {name!r} is not here: {error}") from None

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _put_on(self, file: LoraFile, matched: Mapping[Part, Mapping[str, Layer]]) -> _Loaded:
        factors = read(file, matched, dtype=self._dtype, device=self._device)
        self._numbered += 1
        peft_name = f"user{self._numbered}"  # an id may have characters that no module name may
        self._active = None
        try:
            for part, changes in factors.items():
                attach(self._targets.models[part], peft_name, changes)
        except BaseException:
            self._take_off(peft_name)
            raise
        self._list_layers()
        size = sum(f.down.nbytes + f.up.nbytes for part in factors.values() for f in part.values())
        self._count(1, size)
        return _Loaded(peft_name, size, weakref.WeakSet())

    def _evict(self) -> None:
        idle = [name for name, entry in self._loaded.items() if not entry.leases]
        for name in idle[: max(0, len(self._loaded) - self._options.max_adapters)]:
            entry = self._loaded.pop(name)
            self._count(-1, -entry.bytes)
            self._take_off(entry.name)

    def _take_off(self, peft_name: str) -> None:
        self._active = None
        for model in self._targets.models.values():
            detach(model, peft_name)
        self._list_layers()

    def _list_layers(self) -> None:
        self._layers = [layer for model in self._targets.models.values() for _, layer in adapted(model)]

    def _count(self, entries: int, size: int) -> None:
        self.counts["entries"] += entries
        self.counts["bytes"] += size

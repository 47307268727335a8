"""LoRAs over every picture of one dialect, changed by ``/lora/…`` while nothing is being made.

Which files they are is the operator's affair (USER_LORAS): a caller can only choose among their ids.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from pydantic import Field

from api.control import Control, Work
from api.dialect import Endpoint, Services
from api.fields import FAULTS, Wire, body_of, checked, worded
from api.json_fields import Number, Text
from core.errors import RequestError
from core.request import Task

DIALECT: Final = "generate_service"  # whose pictures they are over
STRENGTH: Final = 0.8  # of a LoRA that is loaded without one


class LoadBody(Wire):
    path: Text = Field(max_length=1000, description="an id of USER_LORAS, or a file whose name is one")
    strength: Number = Field(STRENGTH, ge=0, le=2)
    adapter_name: Text | None = Field(None, min_length=1, max_length=200, description="absent means the id")


class UnloadBody(Wire):
    adapter_name: Text | None = Field(None, max_length=200, description="absent means all")


class StrengthBody(Wire):
    strength: Number = Field(ge=0, le=2)
    adapter_name: Text | None = Field(None, max_length=200, description="absent means all")


@dataclass(frozen=True, slots=True)
class Lora:
    id: str
    strength: float


class DefaultLoras:
    """Use from the event loop alone."""

    def __init__(self) -> None:
        self._loras: dict[str, Lora] = {}
        self._users = 0

    @property
    def active(self) -> tuple[tuple[str, float], ...]:
        """As ``PipelineSpec.request`` takes them; a LoRA of no strength changes nothing."""
        return tuple((lora.id, lora.strength) for lora in self._loras.values() if lora.strength)

    @property
    def loaded(self) -> list[dict[str, Any]]:
        return [
            {"adapter_name": name, "path": lora.id, "strength": lora.strength}
            for name, lora in self._loras.items()
        ]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a picture is made: it must not change under a caller who is waiting for it."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    def put(self, loras: dict[str, Lora]) -> None:
        """Raises ``RequestError`` ``conflict`` while pictures are made."""
        self.check_unused()
        self._loras = loras

    def check_unused(self) -> None:
        if self._users:
            raise RequestError(
                "conflict", "Cannot change LoRAs while an image is being generated; try again when it is done"
            )

    def chosen(self, name: str | None) -> dict[str, Lora]:
        """One, or all when none is named. Raises ``RequestError`` ``not_found``."""
        if name is None:
            return dict(self._loras)
        if name not in self._loras:
            known = ", ".join(self._loras) or "none"
            raise RequestError("not_found", f"no such LoRA is loaded; loaded: {known}", param="adapter_name")
        return {name: self._loras[name]}

    def all(self) -> dict[str, Lora]:
        return dict(self._loras)


def lora_endpoints(services: Services, loras: DefaultLoras) -> list[Endpoint]:
    changes = LoraChanges(services, loras)
    table: list[tuple[str, Work, str, type[Wire]]] = [
        ("load", changes.load, "Put a LoRA over every picture of /generate", LoadBody),
        ("unload", changes.unload, "Take it, or all of them, off again", UnloadBody),
        ("set-strength", changes.set_strength, "Say how much one, or all of them, changes", StrengthBody),
    ]
    listing = Endpoint(
        path="/lora/list",
        handle=Control(services, changes.listed, worded),
        methods=("GET",),
        summary="LoRAs that can be loaded, and those that are",
        speaks=DIALECT,
        responses=FAULTS,
    )
    return [
        listing,
        *(
            Endpoint(
                path=f"/lora/{word}",
                handle=Control(services, work, worded),
                summary=summary,
                control=True,
                speaks=DIALECT,
                openapi={"requestBody": body_of(body)},
                responses={**FAULTS, 409: {"description": "A picture is being made"}},
            )
            for word, work, summary, body in table
        ),
    ]


class LoraChanges:
    """The ``work`` of each path."""

    def __init__(self, services: Services, loras: DefaultLoras) -> None:
        self._catalog = services.catalog
        self._loras = loras

    async def listed(self, content: object) -> dict[str, Any]:
        return {"available": sorted(self._catalog.able(Task.GENERATE).adapters), "loaded": self._loras.loaded}

    async def load(self, content: object) -> dict[str, Any]:
        wishes = checked(LoadBody, content)
        self._loras.check_unused()
        lora = Lora(self._id(wishes.path), wishes.strength)
        name = wishes.adapter_name or lora.id
        loras = self._loras.all() | {name: lora}
        # A request with these is refused now rather than every picture later.
        self._catalog.able(Task.GENERATE).request(
            id="trial",
            task=Task.GENERATE,
            prompt="trial",
            adapters=[(other.id, other.strength) for other in loras.values()],
        )
        return self._put(loras, f"LoRA {lora.id} is loaded")

    async def unload(self, content: object) -> dict[str, Any]:
        chosen = self._loras.chosen(checked(UnloadBody, content).adapter_name)
        left = {name: lora for name, lora in self._loras.all().items() if name not in chosen}
        return self._put(left, f"{len(chosen)} unloaded")

    async def set_strength(self, content: object) -> dict[str, Any]:
        wishes = checked(StrengthBody, content)
        chosen = self._loras.chosen(wishes.adapter_name)
        changed = {name: Lora(lora.id, wishes.strength) for name, lora in chosen.items()}
        return self._put(self._loras.all() | changed, f"strength of {len(changed)} set")

    def _put(self, loras: dict[str, Lora], message: str) -> dict[str, Any]:
        self._loras.put(loras)
        return {"message": message, "loaded": self._loras.loaded}

    def _id(self, path: str) -> str:
        known = self._catalog.able(Task.GENERATE).adapters
        for name in (path, PurePosixPath(path.replace("\\", "/")).stem):
            if name in known:
                return name
        shown = ", ".join(sorted(known)[:20]) or "none; the operator names them in USER_LORAS"
        raise RequestError("not_found", f"no such LoRA here; known: {shown}", param="path")

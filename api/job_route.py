"""One HTTP request about kept jobs: as any other's life, but for work that outlives it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from starlette.requests import Request
from starlette.responses import Response

from api.body import read_body
from api.budget import Lease
from api.dialect import Answer, Arrival, Dialect, Services
from api.exchange import unless_gone
from api.job_runner import JobRunner
from api.route import Route
from core.errors import CapacityError, RequestError, ServingError

_SMALL: Final = 64 * 1024  # bodies that say nothing
_LONGEST_KEY: Final = 255


class Act(Protocol):
    """``lease`` holds the body; who keeps it no longer gives it back."""

    def __call__(self, arrival: Arrival, body: bytes, lease: Lease) -> Awaitable[Answer]: ...


class JobRoute(Route[Any]):
    """A callable for the routing table.

    A caller who leaves ends its waiting, and nothing else. Neither a full queue of the device nor a model
    that cannot be loaded refuses anything here: the job store has limits of its own.
    """

    def __init__(
        self,
        services: Services,
        act: Act,
        refuse: Callable[[ServingError, Arrival], Answer],
        *,
        max_body_bytes: int = _SMALL,
    ) -> None:
        limit = min(max_body_bytes, services.options.max_body_bytes)
        # The one part of a dialect that is wanted of it here.
        super().__init__(services, cast(Dialect[Any], _Refusing(refuse)), max_body_bytes=limit)
        self._act = act

    def _refuse_early(self) -> None: ...

    async def _work(self, request: Request, arrival: Arrival, *noted: object) -> Response:
        with self._services.intake.budget.lease() as lease:
            # Nested, so that no variable here keeps the body while the caller waits.
            answer = await unless_gone(
                request.receive, self._acted(arrival, await self._whole(request, lease), lease)
            )
        return Response(answer.body, answer.status, dict(answer.headers), answer.media_type)

    async def _whole(self, request: Request, lease: Lease) -> list[bytes]:
        options = self._services.options
        body = await read_body(
            request.receive,
            request.headers,
            lease,
            limit=self._max_body_bytes,
            seconds=options.body_seconds,
            stall_seconds=options.body_stall_seconds,
        )
        return [body]

    async def _acted(self, arrival: Arrival, body: list[bytes], lease: Lease) -> Answer:
        return await self._act(arrival, body.pop(), lease)


@dataclass(frozen=True, slots=True)
class _Refusing:
    refuse: Callable[[ServingError, Arrival], Answer]


def runner_of(services: Services) -> JobRunner:
    """Raises ``CapacityError`` ``storage_full`` where the store could not be opened."""
    if services.jobs is None:
        raise CapacityError(
            "storage_full",
            "this server cannot keep jobs, its log says why; send the request to a synchronous route",
            retryable=False,
        )
    return services.jobs


def idempotency_key(arrival: Arrival) -> str | None:
    """Raises ``RequestError``. Equal keys of one owner name one job."""
    key = arrival.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= _LONGEST_KEY and key.isprintable()):
        raise RequestError(
            "invalid_parameter",
            f"the Idempotency-Key must have 1 to {_LONGEST_KEY} printable characters",
            param="Idempotency-Key",
        )
    return key

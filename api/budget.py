"""How many bytes of input may be held in memory before anything has been decoded or queued."""

from types import TracebackType

from core.errors import CapacityError


class ByteBudget:
    """Use from one event loop.

    One lease always fits while no other is held, so a small budget slows work down but never stops it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def lease(self) -> "Lease":
        return Lease(self)


class Lease:
    """What one request holds; ``give_back``, or leaving the context, ends that."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._held = 0

    def check(self, size: int) -> None:
        """Raises ``CapacityError`` ``queue_full`` when others hold too much for ``size`` bytes more."""
        others = self._budget.used - self._held
        if others and self._budget.used + size > self._budget.limit:
            raise CapacityError(
                "queue_full",
                f"requests of {self._budget.limit} bytes in all are being read already; try again shortly",
                retry_after=1,
            )

    def take(self, size: int) -> None:
        """Hold ``size`` bytes more. Raises as ``check`` does."""
        self.check(size)
        self._held += size
        self._budget.used += size

    def give_back(self) -> None:
        self._budget.used -= self._held
        self._held = 0

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give_back()

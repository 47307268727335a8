"""Find the rows that make a device call fail, and let every other row succeed. Knows no pipeline.

A set of rows that failed as a whole is halved: the first half runs; if it succeeds the culprit is in
the other half, if it fails the culprit is in it and the other half waits. A suspect left alone is
convicted by elimination once two failures agree on it; after a single failure it is run once more, so
that a fault that passes convicts nobody. One culprit among n costs at most ``ceil(log2(n)) + 1``
extra runs.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from core.errors import DeviceLost, OutOfDeviceMemory

Row = TypeVar("Row")
Value = TypeVar("Value")


def isolate(
    rows: Sequence[Row],
    run: Callable[[Sequence[Row]], Sequence[Value | Exception]],
    on_out_of_memory: Callable[[int], None],
) -> list[Value | Exception]:
    """The outcome of every row, in order: its value, or the exception that is its own.

    ``run`` answers one outcome for each row it is given, or raises when it cannot tell whose fault it
    was; after a raise the same rows may run again in smaller groups. ``OutOfDeviceMemory`` is no row's
    fault: ``on_out_of_memory(size)`` is told and both halves run; only a row alone is given the error.
    ``DeviceLost`` ends everything and is raised. No other ``Exception`` is.
    """
    try:
        outcomes = list(run(rows))
        if len(outcomes) == len(rows):
            return outcomes
        error: Exception = ValueError(f"{len(outcomes)} outcomes for {len(rows)} rows")
    except DeviceLost:
        raise
    except Exception as failure:
        # The traceback's frames would keep the failed call's tensors alive during the retries.
        error = failure.with_traceback(None)
    return _divided(rows, run, on_out_of_memory, error)


def _divided(
    rows: Sequence[Row],
    run: Callable[[Sequence[Row]], Sequence[Value | Exception]],
    on_out_of_memory: Callable[[int], None],
    error: Exception,
) -> list[Value | Exception]:
    """``isolate`` for rows that have just failed with ``error`` as a whole."""
    found: dict[int, Value | Exception] = {}

    def attempt(group: list[int]) -> Exception | None:
        try:
            found.update(zip(group, run([rows[i] for i in group]), strict=True))
        except DeviceLost:
            raise
        except Exception as error:
            return error.with_traceback(None)
        return None

    def solve(group: list[int]) -> None:
        if group and (error := attempt(group)):
            divide(group, error)

    def divide(group: list[int], error: Exception) -> None:
        suspects, deferred = group, list[int]()
        while len(suspects) > 1 and not isinstance(error, OutOfDeviceMemory):
            half, rest = _halves(suspects)
            if failure := attempt(half):
                suspects, error = half, failure
                deferred += rest
            else:
                suspects = rest
        if isinstance(error, OutOfDeviceMemory) and len(suspects) > 1:
            on_out_of_memory(len(suspects))
            for half in _halves(suspects):
                solve(half)
        elif deferred or isinstance(error, OutOfDeviceMemory):
            found[suspects[0]] = error
        elif failure := attempt(suspects):
            found[suspects[0]] = failure
        solve(deferred)

    divide(list(range(len(rows))), error)
    return [found[i] for i in range(len(rows))]


def _halves(group: list[int]) -> tuple[list[int], list[int]]:
    middle = len(group) // 2
    return group[:middle], group[middle:]

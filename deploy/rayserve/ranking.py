"""Which replicas to try for a model, in which order. Knows no Ray: replicas are any hashable values."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

R = TypeVar("R")

CHOICES = 2  # the shorter queue of two taken at random is nearly as good as the shortest of all


def rank(
    held: Mapping[R, Collection[str]],
    model: str,
    waited: float,
    patience: float,
    sample: Callable[[Sequence[R], int], list[R]],
) -> list[list[R]]:
    """Groups to try in turn, each of ``CHOICES`` replicas at most.

    held: the models in each replica's memory. waited: seconds for which the request has been waiting.
    patience: seconds to wait for a holder of the model, where there is one, before any other is tried.
    """
    holders = [replica for replica, models in held.items() if model in models]
    others = [replica for replica, models in held.items() if model not in models]
    groups = [_few(holders, sample)]
    if not holders or waited > patience:
        least = min((len(held[replica]) for replica in others), default=0)
        groups += [
            _few([replica for replica in others if len(held[replica]) == least], sample),
            _few([replica for replica in others if len(held[replica]) > least], sample),
        ]
    return [group for group in groups if group]


def _few(replicas: Sequence[R], sample: Callable[[Sequence[R], int], list[R]]) -> list[R]:
    return sample(replicas, min(CHOICES, len(replicas)))

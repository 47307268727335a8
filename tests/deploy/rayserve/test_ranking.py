"""Which replicas are tried for a model, in which order."""

from collections.abc import Sequence

from deploy.rayserve.ranking import CHOICES, rank


def first(replicas: Sequence[str], count: int) -> list[str]:
    return list(replicas[:count])


HELD = {"a": ("x",), "b": ("y", "z"), "c": (), "d": ("x", "y")}


def test_who_holds_the_weights_is_asked_alone_at_first() -> None:
    """A load takes longer than most queues."""
    assert rank(HELD, "x", 0.0, 2.0, first) == [["a", "d"]]


def test_after_its_patience_a_request_goes_where_there_is_room() -> None:
    """A queue that does not move is worse than a load. Who holds least throws least out."""
    assert rank(HELD, "x", 2.1, 2.0, first) == [["a", "d"], ["c"], ["b"]]


def test_a_model_nobody_holds_goes_where_least_is() -> None:
    """There is nobody to wait for."""
    assert rank(HELD, "new", 0.0, 2.0, first) == [["c"], ["a", "b"]]


def test_few_are_asked_of_many() -> None:
    """Every one asked is a message to another machine."""
    many = dict.fromkeys(map(str, range(100)), ("x",))
    assert [len(group) for group in rank(many, "x", 0.0, 2.0, first)] == [CHOICES]


def test_no_replica_is_no_group() -> None:
    """Serve waits for one by itself."""
    assert rank({}, "x", 0.0, 2.0, first) == []

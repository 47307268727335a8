"""Answers of several servers are told as one."""

from gateway.everywhere import merged


def kind(name: str, loaded: bool) -> dict[str, object]:
    return {"model_type": name, "loaded": loaded, "memory_mb": 5.0 if loaded else None}


def test_a_model_is_loaded_where_one_server_has_it() -> None:
    """The first server's word alone would send an operator to load what is loaded."""
    first = {"models": {"sam3": kind("sam3", False), "dinov3": kind("dinov3", True)}, "total_memory_mb": 5.0}
    second = {"models": {"sam3": kind("sam3", True), "dinov3": kind("dinov3", False)}, "total_memory_mb": 7.5}
    told = merged("/models/status", {"a": first, "b": second})
    assert {name: model["loaded"] for name, model in told["models"].items()} == {"sam3": True, "dinov3": True}
    assert told["total_memory_mb"] == 12.5
    assert merged("/models/status", {"a": first})["models"] == first["models"]


def test_counts_are_added_and_words_are_the_firsts() -> None:
    """RunPod's health is a tree of counts."""
    one = {"jobs": {"completed": 1, "failed": 0}, "state": "ready"}
    other = {"jobs": {"completed": 2, "failed": 4}, "state": "loading"}
    told = merged("/v2/any/health", {"a": one, "b": other})
    assert told == {"jobs": {"completed": 3, "failed": 4}, "state": "ready"}

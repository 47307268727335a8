"""What a path is to the gateway: whom it is asked of, and what it tells of the model."""

import pytest

from gateway.routes import Kind, kind_of


@pytest.mark.parametrize("path", ["load", "unload", "unload-all"])
def test_what_changes_a_server_is_asked_of_all(path: str) -> None:
    """One of them alone would be as it was, and answer the next request so."""
    assert kind_of("POST", f"/models/{path}") is Kind.EVERYWHERE


@pytest.mark.parametrize("path", ["/models/load/more", "/inference/sam3", "/run"])
def test_what_makes_work_is_asked_of_one(path: str) -> None:
    """The rule above must not hold for everything."""
    assert kind_of("POST", path) is Kind.WORK

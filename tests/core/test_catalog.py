"""Models found by any of their names."""

from dataclasses import replace

import pytest

from core.catalog import Catalog
from core.errors import RequestError
from core.request import Task
from core.spec import PipelineSpec

ROW = PipelineSpec(name="row", factory="m:f", source="builtin:row", aliases=("Org/Row",))


def test_catalog_knows_aliases_and_suggests_near_names() -> None:
    """Clients send hub ids; a typo deserves a hint."""
    catalog = Catalog([ROW], default="row")
    assert catalog.get("org/row") is ROW is catalog.get(None)
    with pytest.raises(RequestError, match="'row'"):
        catalog.get("rov")


def test_a_name_cannot_mean_two_models() -> None:
    """The later row would win in silence."""
    with pytest.raises(ValueError, match="both"):
        Catalog([ROW, replace(ROW, name="other", source="Org/Row", aliases=())], default="row")


def test_a_task_is_given_to_the_default_or_to_the_first_that_can() -> None:
    """A caller who names no model must not be refused because the default is of another kind."""
    rows = [
        PipelineSpec(name=name, factory="x:y", source=f"builtin:{name}", tasks=frozenset({task}))
        for name, task in (("editor", Task.EDIT), ("first", Task.GENERATE), ("second", Task.GENERATE))
    ]
    catalog = Catalog(rows, default="second")
    assert catalog.able(Task.GENERATE).name == "second"
    assert Catalog(rows, default="editor").able(Task.GENERATE).name == "first"
    with pytest.raises(RequestError) as caught:
        catalog.able(Task.DEPTH)
    assert caught.value.code == "model_not_found"

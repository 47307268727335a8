"""Models found by any of their names."""

from dataclasses import replace

import pytest

from core.catalog import Catalog
from core.errors import RequestError
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

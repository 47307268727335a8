"""``/v1/models`` as two kinds of clients read it."""

import openai
import pytest

from api.openai_models import listing
from tests.api.findings import VISION
from tests.api.serving import Served
from tests.api.test_openai_images import connect


def test_openais_client_lists_what_is_served(served: Served) -> None:
    """Names that can be sent as ``model``."""
    with connect(served) as client:
        listed = list(client.models.list())
    assert [one.id for one in listed] == ["painter", "artist", "dreamer"]
    assert {one.object for one in listed} == {"model"}


@pytest.mark.parametrize("name", ["painter", "org/painter", "gpt-image-1"])
@pytest.mark.parametrize("prefix", ["", "/openai", "/v2/any-endpoint/openai"])
def test_one_model_by_any_of_its_names(served: Served, name: str, prefix: str) -> None:
    """Also with a slash, which is part of a hub's names."""
    with connect(served, prefix) as client:
        assert client.models.retrieve(name).id == name
    assert served.client.get(f"{prefix}/v1/models/{name}").json()["owned_by"] == "batchmux"


def test_a_model_that_is_not_served(served: Served) -> None:
    """With the client's own exception."""
    with connect(served) as client, pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/nobody")
    assert caught.value.code == "model_not_found"


def test_clients_of_the_sdxl_service_read_the_same_route(served: Served) -> None:
    """Both shapes in one answer."""
    answer = served.client.get("/v1/models").json()
    assert answer["object"] == "list"
    assert answer["default_model"] == "painter"
    assert [entry["name"] for entry in answer["models"]] == ["painter", "artist", "dreamer"]
    for entry in answer["models"]:
        assert entry.keys() == {"name", "family", "min_vram_gb", "resolution", "tag"}
        assert entry["resolution"] == "best@1024"
        assert isinstance(entry["min_vram_gb"], float)


def test_a_vision_model_is_listed_at_the_size_at_which_pictures_enter_it() -> None:
    """Its row has no size of pictures that it makes."""
    assert {entry["resolution"] for entry in listing(VISION, created=0)["models"]} == {"best@64"}

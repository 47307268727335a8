"""LiteLLM and LangChain's wrapper against a server, run in an environment of their own: BASE_URL SCENARIO."""

import base64
import io
import sys
from typing import Any

from PIL import Image as Pillow


def litellm_generation(base_url: str) -> None:
    import litellm

    answer: Any = litellm.image_generation(
        model="openai/artist", prompt="a lighthouse", size="128x96", n=2, api_base=base_url, api_key="any"
    )
    assert [size_of(one["b64_json"]) for one in answer.data] == [(128, 96)] * 2


def litellm_edit(base_url: str) -> None:
    import litellm

    answer: Any = litellm.image_edit(
        model="openai/painter", image=[picture()], prompt="night", api_base=base_url, api_key="any"
    )
    assert [size_of(one.b64_json) for one in answer.data] == [(96, 64)]


def litellm_refusal(base_url: str) -> None:
    import litellm

    try:
        litellm.image_generation(
            model="openai/nobody", prompt="x", api_base=base_url, api_key="any", max_retries=0
        )
    except litellm.NotFoundError:
        return
    raise AssertionError("an unknown model was not refused")


def langchain_wrapper(base_url: str) -> None:
    """It never asks for addresses and reads nothing else; the server's setting makes them the rule."""
    from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

    wrapper = DallEAPIWrapper(base_url=base_url, api_key="any", model="dall-e-3", size="128x128")
    url = wrapper.run("a lighthouse")
    assert url.startswith(base_url.removesuffix("/v1") + "/files/im_"), url


def picture() -> io.BytesIO:
    out = io.BytesIO()
    Pillow.new("RGB", (96, 64), (10, 20, 30)).save(out, "PNG")
    out.seek(0)
    out.name = "in.png"
    return out


def size_of(text: str) -> tuple[int, int]:
    return Pillow.open(io.BytesIO(base64.b64decode(text))).size


if __name__ == "__main__":
    globals()[sys.argv[2]](sys.argv[1])
    print("ok")

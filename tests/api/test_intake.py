"""Pictures as callers write them."""

import asyncio
import base64
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.budget import Lease
from api.codec import Codec
from api.images import ImageLimits
from api.intake import ImageIntake, ImageSource, IntakeOptions, from_base64
from core.errors import CapacityError, RequestError
from core.request import Image
from tests.api.serving import png, text

LIMITS = ImageLimits(max_bytes=1000)


@given(st.binary(max_size=200), st.sampled_from(["", "\n", "\r\n", " "]), st.booleans(), st.booleans())
def test_every_usual_spelling_of_base64_is_read(
    data: bytes, breaks: str, url_safe: bool, padded: bool
) -> None:
    """Line breaks from ``base64`` the program, the URL-safe alphabet and no padding from JavaScript."""
    written = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data).decode()
    if not padded:
        written = written.rstrip("=")
    written = breaks.join(written[at : at + 76] for at in range(0, len(written), 76)) + breaks
    assert from_base64(written, LIMITS) == data
    assert from_base64(f"data:image/png;base64,{written}", LIMITS) == data


@pytest.mark.parametrize(
    "prefix",
    [
        "data:image/png;base64,",
        "DATA:image/PNG;BASE64,",
        "data:;base64,",
        "data:text/html;charset=utf-8;base64,",
    ],
)
def test_a_data_uris_declared_type_is_not_asked(prefix: str) -> None:
    """The bytes are sniffed later."""
    assert from_base64(prefix + text(b"abc"), LIMITS) == b"abc"


@pytest.mark.parametrize(
    "written",
    [
        "%%%%",
        "abc$",
        "a",
        "YQ==YQ==",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:" + "x" * 500,
        "ä" * 8,
        "\ud800",
    ],
)
def test_what_is_no_base64_is_refused(written: str) -> None:
    """A lenient decoder drops such characters and goes on with garbage."""
    with pytest.raises(RequestError) as caught:
        from_base64(written, LIMITS)
    assert caught.value.code == "invalid_image"


def test_size_is_checked_before_decoding() -> None:
    """The text alone says how large the file is."""
    with pytest.raises(RequestError) as caught:
        from_base64("A" * 1501, LIMITS)
    assert caught.value.code == "image_too_large"


class Shelf:
    """A fetch from memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []

    async def __call__(self, url: str, lease: Lease) -> bytes:
        self.asked.append(url)
        if url not in self.files:
            raise RequestError("image_fetch_failed", "no")
        return self.files[url]


def load(intake: ImageIntake, *contents: str | bytes) -> tuple[Image, ...]:
    sources = [ImageSource(content, f"images.{at}") for at, content in enumerate(contents)]
    with intake:
        return asyncio.run(intake.load(sources))


def test_order_is_kept_whatever_comes_from_where() -> None:
    """A first picture is the one to edit, the second a reference: swapped, the edit is nonsense."""
    shelf = Shelf({"https://a.example/x": png(30, 30)})
    images = load(
        ImageIntake(IntakeOptions(), shelf),
        text(png(10, 10)),
        png(20, 20),
        "https://a.example/x",
        "data:image/jpeg;base64," + text(png(40, 40)),
    )
    assert [image.width for image in images] == [10, 20, 30, 40]
    assert shelf.asked == ["https://a.example/x"]


@pytest.mark.parametrize(
    ("bad", "code"),
    [("https://a.example/absent", "image_fetch_failed"), ("%%", "invalid_image"), (b"x", "invalid_image")],
)
def test_the_field_at_fault_is_named(bad: str | bytes, code: str) -> None:
    """With three pictures, "an image is broken" helps nobody."""
    with pytest.raises(RequestError) as caught:
        load(ImageIntake(IntakeOptions(), Shelf({})), png(), bad)
    assert (caught.value.code, caught.value.param) == (code, "images.1")


def test_input_is_refused_when_too_much_waits_but_answers_never_are() -> None:
    """A finished edit has cost its GPU time; refusing to encode it would waste that."""
    gate = threading.Event()

    def wait() -> str:
        assert gate.wait(10)
        return "done"

    async def crowd(codec: Codec) -> None:
        waiting = [asyncio.ensure_future(codec.admit(wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(CapacityError) as caught:
            await codec.admit(wait)
        assert caught.value.code == "queue_full"
        answer = asyncio.ensure_future(codec.finish(wait))
        gate.set()
        assert await asyncio.gather(*waiting, answer) == ["done"] * 3
        assert await codec.admit(wait) == "done"

    codec = Codec(1, 2)
    asyncio.run(crowd(codec))
    codec.close()


def test_a_cancelled_call_that_waits_is_never_run() -> None:
    """A caller who left must not cost a thread's time."""
    gate = threading.Event()
    ran: list[str] = []

    def call(name: str) -> Callable[[], None]:
        return lambda: ran.append(name)

    async def leave(codec: Codec) -> None:
        first = asyncio.ensure_future(codec.admit(lambda: gate.wait(10)))
        second = asyncio.ensure_future(codec.admit(call("second")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait((second,))
        gate.set()
        await first
        await codec.finish(call("third"))

    codec = Codec(1, 10)
    asyncio.run(leave(codec))
    codec.close()
    assert ran == ["third"]

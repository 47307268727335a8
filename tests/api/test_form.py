"""Forms as real clients write them, and as nobody should."""

import pytest
import requests

from api.form import MAX_PARTS, Form, parse_form
from core.errors import RequestError


def written(fields: list[tuple[str, tuple[str | None, bytes]]]) -> tuple[bytes, str]:
    """Body and content type as ``requests`` writes them."""
    prepared = requests.Request("POST", "http://x/", files=fields).prepare()
    assert isinstance(prepared.body, bytes)
    return prepared.body, str(prepared.headers["Content-Type"])


def parsed(*fields: tuple[str, tuple[str | None, bytes]]) -> Form:
    return parse_form(*written(list(fields)))


def test_fields_and_files_come_as_they_were_sent() -> None:
    """Bytes are untouched, also where they look like a boundary or a line's end."""
    picture = bytes(range(256)) * 300 + b"\r\n--boundary\r\n"
    form = parsed(
        ("image[]", ("a.png", picture)), ("image[]", ("b.png", b"2")), ("prompt", (None, "ночь".encode()))
    )
    assert form.files("image", "image[]") == [picture, b"2"]
    assert form.text("prompt") == "ночь"
    assert form.text("seed") is None
    assert form.names() == ["image[]", "prompt"]
    assert [part.filename for part in form.parts] == ["a.png", "b.png", None]


def test_curl_and_browsers_urlencoded_forms_are_read() -> None:
    """A form without files is often sent so."""
    form = parse_form(b"prompt=make+it%20night&seed=7", "application/x-www-form-urlencoded; charset=utf-8")
    assert (form.text("prompt"), form.text("seed")) == ("make it night", "7")


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"{}", "application/json", "unsupported_media_type"),
        (b"", "multipart/form-data", "unsupported_media_type"),
        (b"not a form", "multipart/form-data; boundary=x", "invalid_parameter"),
        (
            b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nhalf",
            "multipart/form-data; boundary=x",
            "invalid_parameter",
        ),
        (b"--x\r\n" + b"A: " + b"b" * 20_000, "multipart/form-data; boundary=x", "invalid_parameter"),
        (b"a=1&" * 100, "application/x-www-form-urlencoded", "invalid_parameter"),
    ],
    ids=["json", "no boundary", "garbage", "cut off", "long headers", "many fields"],
)
def test_what_is_no_form_is_refused(body: bytes, kind: str, code: str) -> None:
    """As the caller's fault, never as ours."""
    with pytest.raises(RequestError) as caught:
        parse_form(body, kind)
    assert caught.value.code == code


def test_a_thousand_parts_are_refused() -> None:
    """Each costs work on the event loop."""
    with pytest.raises(RequestError, match=str(MAX_PARTS)):
        parsed(*[("a", (None, b"1"))] * (MAX_PARTS + 1))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ([("seed", (None, b"1")), ("seed", (None, b"2"))], "2 times"),
        ([("seed", (None, b"\xff"))], "UTF-8"),
        ([("seed", (None, b"1" * (2**20 + 1)))], "limit"),
    ],
    ids=["twice", "bytes", "long"],
)
def test_a_text_field_is_one_short_text(
    fields: list[tuple[str, tuple[str | None, bytes]]], word: str
) -> None:
    """Two seeds would mean that one is ignored."""
    with pytest.raises(RequestError, match=word) as caught:
        parsed(*fields).text("seed")
    assert caught.value.param == "seed"

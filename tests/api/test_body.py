"""Bodies are bounded in bytes, time and shape before anything else looks at them."""

import asyncio
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.body import ClientGone, LongText, parse_json, read_body
from api.budget import ByteBudget
from core.errors import CapacityError, RequestError, ServingError


def receiving(messages: Iterable[dict[str, Any]]) -> Any:
    pending = iter(messages)

    async def receive() -> dict[str, Any]:
        message = next(pending, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        return message

    return receive


def chunks(*parts: bytes) -> list[dict[str, Any]]:
    last = len(parts) - 1
    return [{"type": "http.request", "body": part, "more_body": at < last} for at, part in enumerate(parts)]


def read(
    messages: Iterable[dict[str, Any]],
    headers: dict[str, str] | None = None,
    budget: ByteBudget | None = None,
    limit: int = 10,
) -> bytes:
    async def once() -> bytes:
        with (budget or ByteBudget(100)).lease() as lease:
            return await read_body(receiving(messages), headers or {}, lease, limit=limit, seconds=0.05)

    return asyncio.run(once())


def refused(messages: Iterable[dict[str, Any]], headers: dict[str, str] | None = None) -> ServingError:
    with pytest.raises(ServingError) as caught:
        read(messages, headers)
    return caught.value


def test_chunks_are_joined() -> None:
    """However the network cut them."""
    assert read(chunks(b"ab", b"", b"cd")) == b"abcd"


def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    """Nothing is received: an empty script of messages would wait for ever."""
    assert refused([], {"content-length": "11"}).code == "body_too_large"


def test_undeclared_bytes_are_counted() -> None:
    """Chunked bodies declare nothing."""
    assert len(read(chunks(b"12345", b"67890"))) == 10
    assert refused(chunks(b"12345", b"67890", b"1")).code == "body_too_large"


def test_a_body_that_does_not_end_in_time_is_given_up() -> None:
    """Slow senders hold memory."""
    assert refused([{"type": "http.request", "body": b"1", "more_body": True}]).code == "request_timeout"


def test_a_compressed_body_is_refused() -> None:
    """Nobody sends one, and a few kilobytes could unpack to anything."""
    assert refused([], {"content-encoding": "gzip"}).code == "unsupported_media_type"


def test_a_caller_who_leaves_midway_is_no_error_of_theirs() -> None:
    """There is nobody to tell."""
    with pytest.raises(ClientGone):
        read([{"type": "http.disconnect"}])


def test_bodies_in_all_are_bounded() -> None:
    """Each is below its own limit, together they are not; nothing stays counted afterwards."""
    budget = ByteBudget(15)
    with budget.lease() as other:
        other.take(9)
        with pytest.raises(CapacityError) as caught:
            read([], {"content-length": "7"}, budget)
        assert caught.value.code == "queue_full"
        assert read(chunks(b"123456"), {"content-length": "6"}, budget) == b"123456"
    assert budget.used == 0


def test_a_body_larger_than_the_budget_still_passes_alone() -> None:
    """A small budget must not turn a request away for good."""
    assert read(chunks(b"1234567890"), budget=ByteBudget(3)) == b"1234567890"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="open"),
        pytest.param(b'{"a": NaN}', id="nan"),
        pytest.param(b"[Infinity]", id="infinity"),
        pytest.param(b"[1e400]", id="out of range"),
        pytest.param(b'{"a":1,"a":2}', id="duplicate"),
        pytest.param(b'{"a":1,"\\u0061":2}', id="duplicate in disguise"),
        pytest.param(b'{"b":[{"a":"x","a":"y"}]}', id="duplicate deep down"),
        pytest.param(b'{"a\\"":1,"a\\"":2}', id="duplicate with a quote"),
        pytest.param(b'"\\ud800"', id="lone surrogate"),
        pytest.param(b'"\xff"', id="not utf-8"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte order mark"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"[" * 2000 + b"]" * 2000, id="deep and closed"),
        pytest.param(b'{"a":' * 100_000, id="deep objects"),
        pytest.param(b"[" + b"1," * 30_000 + b"1]", id="many values"),
        pytest.param(b"[" + b'"' * 100_000, id="many strings"),
        pytest.param(b'["' + b'\\"' * 100_000 + b'"]', id="many escaped quotes"),
        pytest.param(b"{'a': 1}", id="python"),
        pytest.param(b'{"a": 1} x', id="rest"),
        pytest.param(b'{"a": "secret-word"', id="unterminated"),
    ],
)
def test_strict_json_only(text: bytes) -> None:
    """What a lenient parser lets in comes out as a 500, or as two servers' different readings."""
    with pytest.raises(RequestError) as caught:
        parse_json(text)
    assert caught.value.code == "invalid_json"
    assert "secret-word" not in caught.value.message


LONG_TEXT = "QUJD" * 20_000


@pytest.mark.parametrize("text", [LONG_TEXT, "data:image/png;base64," + LONG_TEXT, "x\xe9" * 40_000])
def test_a_long_string_is_left_where_it_is(text: str) -> None:
    """Wherever it stands; turning it into a str costs more than all the rest of the parsing."""
    value = parse_json(json.dumps({"a": [1, text, {"b": text}], "c": "d"}, ensure_ascii=False).encode())
    for found in (value["a"][1], value["a"][2]["b"]):
        assert isinstance(found, LongText)
        assert bytes(found.data).decode() == text
    assert value["c"] == "d"


def test_a_long_string_with_escapes_is_parsed() -> None:
    """Its bytes are not its text."""
    assert parse_json(json.dumps([LONG_TEXT + "\n"]).encode()) == [LONG_TEXT + "\n"]


def test_a_duplicate_key_is_found_beside_long_strings() -> None:
    """Also when it is the picture that is named twice, or the name that is long."""
    with pytest.raises(RequestError, match="twice"):
        parse_json(f'{{"a":"{LONG_TEXT}","a":"{LONG_TEXT}"}}'.encode())
    with pytest.raises(RequestError, match="a key is over the limit"):
        parse_json(f'{{"{LONG_TEXT}":1}}'.encode())


@pytest.mark.parametrize(
    "body",
    [
        b'["' + b"\\\\" * 5_000_000 + b'"]',
        b'["' + b'\\\\\\"' * 2_500_000 + b'"]',
        b'"' * 10_000_000,
        b"[" * 10_000_000,
        b"[" + b"0," * 5_000_000 + b"0]",
        b'{"a":"' + b"x" * 10_000_000 + b'"}',
        b"[" + b" " * 10_000_000 + b"]",
    ],
    ids=["backslashes", "escaped quotes", "quotes", "brackets", "zeros", "one text", "blanks"],
)
def test_ten_megabytes_of_anything_are_looked_at_quickly(body: bytes) -> None:
    """Parsing happens on the event loop, where a second spent on one caller is everybody's."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with suppress(RequestError):
            parse_json(body)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1


Json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('ab\\"é', max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(Json, st.booleans())
def test_everything_valid_gets_through(value: object, ascii_only: bool) -> None:
    """The count of strings that finds duplicate keys must not be fooled by escapes."""
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.lists(st.tuples(st.text('a\\"', max_size=2), st.integers(0, 9)), min_size=1, max_size=6))
def test_duplicate_keys_are_found_exactly_when_there_are_any(pairs: list[tuple[str, int]]) -> None:
    """Also among keys full of quotes and backslashes."""
    body = "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in pairs) + "}"
    if len({key for key, _ in pairs}) == len(pairs):
        assert parse_json(body.encode()) == dict(pairs)
    else:
        with pytest.raises(RequestError, match="twice"):
            parse_json(body.encode())

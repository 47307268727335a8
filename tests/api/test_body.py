"""Bodies are bounded in bytes, time and shape before anything else looks at them."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.body import STEP, ClientGone, LongText, parse_json, read_body
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
            return await read_body(
                receiving(messages), headers or {}, lease, limit=limit, seconds=0.05, stall_seconds=0.05
            )

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


def test_a_declared_length_alone_keeps_nobody_out() -> None:
    """Two dozen idle sockets could otherwise declare all the memory there is, and everybody else would
    be refused until they are given up."""

    async def beside_idle(budget: ByteBudget) -> bytes:
        async def idle() -> None:
            headers = {"content-length": str(20 * STEP)}
            with budget.lease() as lease, suppress(RequestError):
                await read_body(receiving([]), headers, lease, limit=50 * STEP, seconds=5, stall_seconds=5)

        idlers = [asyncio.ensure_future(idle()) for _ in range(20)]
        await asyncio.sleep(0)
        assert budget.used == 20 * STEP
        headers = {"content-length": str(10 * STEP)}
        parts = chunks(*[bytes(STEP)] * 10)
        with budget.lease() as lease:
            body = await read_body(
                receiving(parts), headers, lease, limit=50 * STEP, seconds=5, stall_seconds=5
            )
            assert budget.used == 30 * STEP
        for idler in idlers:
            idler.cancel()
        await asyncio.gather(*idlers, return_exceptions=True)
        return body

    budget = ByteBudget(60 * STEP)
    assert len(asyncio.run(beside_idle(budget))) == 10 * STEP
    assert budget.used == 0


def test_bytes_that_arrive_are_counted_as_they_do() -> None:
    """A declared body that others leave no room for is refused half-way, not held uncounted."""

    async def grow() -> str:
        budget = ByteBudget(10 * STEP)

        async def receive() -> dict[str, Any]:
            if budget.used < 8 * STEP:
                other.take(2 * STEP)
            return {"type": "http.request", "body": bytes(STEP), "more_body": True}

        with budget.lease() as other, budget.lease() as lease:
            try:
                await read_body(
                    receive,
                    {"content-length": str(9 * STEP)},
                    lease,
                    limit=50 * STEP,
                    seconds=5,
                    stall_seconds=5,
                )
            except CapacityError as error:
                return error.code
        return ""

    assert asyncio.run(grow()) == "queue_full"


def test_a_body_that_stands_still_is_given_up_early() -> None:
    """Long before the limit of the whole."""

    async def still() -> None:
        async with asyncio.timeout(10):
            with ByteBudget(100).lease() as lease:
                await read_body(
                    receiving([{"type": "http.request", "body": b"1", "more_body": True}]),
                    {},
                    lease,
                    limit=10,
                    seconds=3600,
                    stall_seconds=0.05,
                )

    with pytest.raises(RequestError) as caught:
        asyncio.run(still())
    assert caught.value.code == "request_timeout"


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


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(json.dumps(LONG_TEXT + "\n"), id="line break"),
        pytest.param(json.dumps("/9j/" * 100_000).replace("/", "\\/"), id="php"),
        pytest.param(json.dumps("Q+//" * 100_000).replace("+", "\\u002B"), id="dotnet"),
        pytest.param(json.dumps(LONG_TEXT + "QQ==").replace("=", "\\u003d"), id="gson"),
        pytest.param(json.dumps("\r\n".join(["QUJD" * 19] * 9000)), id="mime"),
    ],
)
def test_the_escapes_of_a_long_base64_string_are_undone_by_its_reader(written: str) -> None:
    """Many writers of JSON escape a slash or a plus; wherever a piece of the text ends."""
    [found] = parse_json(f"[{written}]".encode())
    assert isinstance(found, LongText)
    text = json.loads(written).replace("\r", "").replace("\n", "")
    assert bytes(found.base64()).decode() == text


@pytest.mark.parametrize("escape", ["\\\\", '\\"', "\\u0041", "\\x", "\\\\n", "\\u002\\nB", "\\"])
def test_other_escapes_are_no_base64(escape: str) -> None:
    """No prompt is as long, so what is neither has no place in a body."""
    with pytest.raises(ValueError, match=r"^$"):
        LongText(memoryview((LONG_TEXT + escape).encode()), escaped=True).base64()


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
        b'["' + b"\\n" * 5_000_000 + b'"]',
        b'["' + b'","'.join([b"\\n" * 30_000] * 160) + b'"]',
    ],
    ids=[
        *("backslashes", "escaped quotes", "quotes", "brackets", "zeros", "one text", "blanks"),
        *("escapes in one text", "escapes in many"),
    ],
)
def test_ten_megabytes_of_anything_are_looked_at_quickly(body: bytes) -> None:
    """Parsing happens on the event loop, where a second spent on one caller is everybody's. The measure
    is one plain text of that size, read by the parser alone, in CPU time of this thread."""
    plain = b'"' + b"x" * 10_000_000 + b'"'
    assert cost(lambda: parse_json(body)) < 10 * cost(lambda: orjson.loads(plain))


def cost(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        with suppress(RequestError):
            call()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def test_the_loop_reads_no_long_text_whatever_is_in_it() -> None:
    """40 MB of escapes took it 0.2 s; now they are the business of a codec's thread."""
    body = b'["' + b"\\n" * 20_000_000 + b'"]'
    assert cost(lambda: parse_json(body)) < cost(lambda: orjson.loads(body)) / 5


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

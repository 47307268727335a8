"""Whose request it is, by the key that came with it."""

import base64

import pytest

from api.keys import INVALID, MISSING, KeyRing
from core.errors import ExecutionError, RequestError

RING = KeyRing.of(True, ["devtoken", "zweiter-schlüssel"])


def basic(credentials: str) -> bytes:
    return b"Basic " + base64.b64encode(credentials.encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-api-key", b"devtoken"),
        ("x-api-key", b" devtoken "),
        ("x-api-key", "zweiter-schlüssel".encode()),
        ("authorization", b"Bearer devtoken"),
        ("authorization", b"bearer  devtoken"),
        ("authorization", b"devtoken"),
        ("authorization", basic("devtoken:")),
        ("authorization", basic("somebody:devtoken")),
        ("authorization", basic("devtoken:x")),
    ],
)
def test_a_key_is_taken_in_every_form_that_clients_send(name: str, value: bytes) -> None:
    """X-API-Key by the SDXL service's, Bearer by OpenAI's, bare by RunPod's, Basic by A1111's."""
    assert len(RING.owner([(b"accept", b"*/*"), (name.encode(), value)])) == 16


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-api-key", b"devtoke"),
        ("x-api-key", b"devtokenx"),
        ("x-api-key", b"DEVTOKEN"),
        ("x-api-key", b"\xff\xfe"),
        ("x-api-key", b"devtoken,zweiter"),
        ("x-api-key", b"Bearer devtoken"),
        ("authorization", b"Bearer"),
        ("authorization", b"Bearer other"),
        ("authorization", b"Digest devtoken"),
        ("authorization", b"Basic devtoken"),
        ("authorization", b"Basic !!!!"),
        ("authorization", basic("a:b")),
    ],
)
def test_anything_else_is_invalid(name: str, value: bytes) -> None:
    """Also what cannot be decoded: hostile headers are refused and nothing worse."""
    with pytest.raises(RequestError) as caught:
        RING.owner([(name.encode(), value)])
    assert (caught.value.code, caught.value.message) == ("unauthorized", INVALID)


@pytest.mark.parametrize("headers", [[], [(b"x-api-key", b"")], [(b"authorization", b"  ")]])
def test_no_key_is_missing(headers: list[tuple[bytes, bytes]]) -> None:
    """The two faults have two texts, which clients match."""
    with pytest.raises(RequestError) as caught:
        RING.owner(headers)
    assert caught.value.message == MISSING


def test_one_right_key_is_enough() -> None:
    """SDKs send an Authorization of their own beside the header that a person added."""
    assert RING.owner([(b"authorization", b"Bearer unused"), (b"x-api-key", b"devtoken")])


def test_an_owner_is_stable_and_tells_nothing_of_the_key() -> None:
    """Durable jobs are found by it after a restart, and it stands in the log."""
    first = RING.owner([(b"x-api-key", b"devtoken")])
    assert first == KeyRing.of(True, ["devtoken"]).owner([(b"authorization", b"Bearer devtoken")])
    assert first != RING.owner([(b"x-api-key", "zweiter-schlüssel".encode())])
    assert "devtoken" not in first
    assert "devtoken" not in repr(RING)


def test_nobody_owns_anything_while_no_key_is_required() -> None:
    """A key that is sent all the same is not looked at."""
    assert KeyRing.of(False, ["devtoken"]).owner([(b"x-api-key", b"wrong")]) == ""


@pytest.mark.parametrize("keys", [[], [""]])
def test_required_keys_that_are_not_set_let_nobody_in(keys: list[str]) -> None:
    """An empty key must not be a key; the operator is told, not the caller blamed."""
    with pytest.raises(ExecutionError):
        KeyRing.of(True, keys).owner([(b"x-api-key", b"")])

"""Who may use the HTTP server, out of the settings."""

from typing import Any

import pytest

from core.errors import ServingError
from serverless import access
from serverless.preflight import findings
from settings import Settings
from tests.serverless.painting import SPEC


def settings(**given: Any) -> Settings:
    return Settings(_env_file=None, **given)


@pytest.mark.parametrize(
    ("given", "let_in", "refused"),
    [
        ({"api_key": "one"}, ["one"], ["two", ""]),
        ({"api_keys": "two, three"}, ["two", "three"], ["two, three", "one"]),
        ({"api_key": "one", "api_keys": "two"}, ["two"], ["one"]),
        ({"api_key": "one", "api_keys": " , "}, ["one"], ["", ","]),
    ],
)
def test_several_keys_win_over_one(given: dict[str, str], let_in: list[str], refused: list[str]) -> None:
    """The SDXL service's order; a list of nothing is no list."""
    keys = access.options(settings(require_api_key=True, **given)).keys
    for key in let_in:
        assert keys.owner([(b"x-api-key", key.encode())])
    for key in refused:
        with pytest.raises(ServingError):
            keys.owner([(b"x-api-key", key.encode())])


def test_limits_and_origins_are_passed_on() -> None:
    """A setting that nobody reads would be a promise."""
    options = access.options(
        settings(
            requests_per_minute=7, requests_at_once=2, cors_origins="https://a.example, https://b.example"
        )
    )
    assert (options.requests_per_minute, options.requests_at_once) == (7, 2)
    assert options.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["NO AUTHENTICATION"]),
        ({"api_host": "127.0.0.1"}, []),
        ({"require_api_key": True, "api_key": "k"}, []),
        ({"require_api_key": True}, ["answered 500"]),
        ({"require_api_key": True, "api_key": ""}, ["answered 500"]),
        ({"api_key": "k"}, ["NO AUTHENTICATION", "nobody is asked"]),
        ({"api_key": "k", "api_host": "::1"}, ["nobody is asked"]),
    ],
)
def test_an_open_server_is_told_of(given: dict[str, Any], words: list[str]) -> None:
    """Loudly, at every start and in --check; no key stands in a warning."""
    told = list(access.warnings(settings(**given)))
    assert len(told) == len(words)
    assert all(word in sentence for word, sentence in zip(words, told, strict=True))


@pytest.mark.parametrize(("given", "good"), [({}, True), ({"require_api_key": True}, False)])
def test_the_check_finds_an_open_server_and_a_shut_one(given: dict[str, Any], good: bool) -> None:
    """Before it is started. An open one works and may be meant; one that lets nobody in cannot be."""
    asked = findings(settings(standalone_mode=True, api_port=41_025, **given), SPEC)
    found = [finding for finding in asked if finding.subject == "access"]
    assert [(finding.good, finding.warning) for finding in found] == [(good, good)]
    assert str(found[0]).startswith("warning" if good else "PROBLEM")

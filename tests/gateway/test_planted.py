"""Bugs planted in the gateway, each of which the tests of faults must see."""

import json
from contextlib import closing

import pytest

from gateway.asking import Ask, Unanswered
from gateway.relay import Relay
from tests.api.serving import Answer
from tests.gateway.fronting import FaultProxy, Load, ask, executed, fronting, load, two_workers, until


class Careless(Relay):
    """Asks again whatever happened."""

    def _may_go_on(self, ask: Ask, error: Unanswered) -> str | None:
        return "elsewhere"


def test_a_request_that_is_asked_twice_is_counted_twice() -> None:
    """The count of executions is worth nothing unless it can exceed one."""
    with (
        two_workers() as (first, second),
        closing(FaultProxy(first.client.port)) as proxy,
        fronting([proxy.port, second.client.port]) as fronted,
    ):
        until(lambda: len(fronted.gateway.fleet.seen) == 2)
        fronted.gateway.relay = Careless(fronted.gateway.fleet)
        proxy.fault = "reset_after"
        done = load(fronted.client, range(40))
        assert done.good == 40
        assert max(executed(first, second).values()) == 2


def test_a_cut_answer_is_seen_by_whoever_gets_it() -> None:
    """Without a gateway in between: the proxy does cut, and the check of answers does notice."""
    with two_workers() as (first, _), closing(FaultProxy(first.client.port)) as proxy:
        whole = ask(first.client, 5)
        assert whole is not None
        proxy.fault = "cut_body"
        client = type(first.client)(proxy.port)
        assert ask(client, 5) is None
        with pytest.raises(json.JSONDecodeError):
            Load([(5, Answer(200, {}, whole.body[:-20]))]).check()
        with pytest.raises(AssertionError):
            Load([(6, whole)]).check()

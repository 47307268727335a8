"""Faults on the wire between the gateway and one of two workers, counted at callers and at workers."""

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from core.errors import ExecutionError
from tests.api.serving import Served, serving
from tests.gateway.fronting import (
    FaultProxy,
    Fronted,
    executed,
    fronting,
    load,
    two_workers,
    until,
)


@pytest.fixture
def shaky() -> Iterator[tuple[Fronted, FaultProxy, tuple[Served, Served]]]:
    """The first worker is behind the proxy, the second is healthy."""
    with (
        two_workers() as (first, second),
        closing(FaultProxy(first.client.port)) as proxy,
        fronting([proxy.port, second.client.port]) as fronted,
    ):
        until(lambda: len(fronted.gateway.fleet.seen) == 2)
        assert load(fronted.client, range(20)).good == 20
        executed(first, second)
        yield fronted, proxy, (first, second)


@pytest.mark.parametrize("fault", ["reset_before", "garbage", "error_at_once", "half_open"])
def test_what_fails_before_the_body_was_given_away_costs_nobody_anything(
    shaky: tuple[Fronted, FaultProxy, tuple[Served, Served]], fault: str
) -> None:
    """Nothing was executed, so the other worker may have it: all succeed, each is computed once."""
    fronted, proxy, workers = shaky
    proxy.fault = fault
    done = load(fronted.client, range(1000, 1100))
    done.check()
    assert proxy.hits[fault] > 0
    assert done.good == 100
    assert executed(*workers) == dict.fromkeys(range(1000, 1100), 1)


def test_a_server_that_is_not_there_costs_nobody_anything(
    shaky: tuple[Fronted, FaultProxy, tuple[Served, Served]],
) -> None:
    """And it is found again when it is back."""
    fronted, proxy, workers = shaky
    proxy.refuse()
    done = load(fronted.client, range(2000, 2200))
    done.check()
    assert done.good == 200
    assert executed(*workers) == dict.fromkeys(range(2000, 2200), 1)
    proxy.accept()
    first = fronted.gateway.fleet.balancer.standings[0]
    until(lambda: first.ejected_until is None)
    load(fronted.client, range(2300, 2340))
    assert executed(workers[0])


@pytest.mark.parametrize("fault", ["reset_after", "cut_body"])
def test_what_was_given_away_is_not_asked_again(
    shaky: tuple[Fronted, FaultProxy, tuple[Served, Served]], fault: str
) -> None:
    """It may have been computed. Five such failures eject the worker; from then on the other has it all."""
    fronted, proxy, workers = shaky
    proxy.fault = fault
    done = load(fronted.client, range(3000, 3200))
    done.check()
    assert 5 <= proxy.hits[fault] <= 5 + 8 + 4  # in a row, at once, and trials
    assert done.good == 200 - proxy.hits[fault]
    assert executed(*workers) == dict.fromkeys(range(3000, 3200), 1)
    late = load(fronted.client, range(3200, 3400))
    assert late.good >= 0.99 * 200


@pytest.mark.parametrize("fault", ["slow_headers", "slow_body"])
def test_slow_is_not_broken(shaky: tuple[Fronted, FaultProxy, tuple[Served, Served]], fault: str) -> None:
    """Within the time that a request has, a slow server is a server."""
    fronted, proxy, workers = shaky
    proxy.fault = fault
    done = load(fronted.client, range(4000, 4060))
    done.check()
    assert proxy.hits[fault] > 0
    assert done.good == 60
    assert executed(*workers) == dict.fromkeys(range(4000, 4060), 1)


def test_a_run_of_server_errors_ejects_and_none_is_computed_twice(
    shaky: tuple[Fronted, FaultProxy, tuple[Served, Served]],
) -> None:
    """The worker reports itself healthy all the while, so its probes must not bring it back."""
    fronted, _, (first, second) = shaky
    first.painter.fault = ExecutionError("pipeline_error", "a card that only makes mistakes")
    done = load(fronted.client, range(5000, 5200))
    done.check()
    failed = 200 - done.good
    assert 5 <= failed <= 5 + 8 + 4
    assert executed(first, second) == dict.fromkeys(range(5000, 5200), 1)


def test_both_gone_is_said_at_once() -> None:
    """503 with Retry-After, in the words of the text-to-image contract."""
    with two_workers() as (first, second):
        ports = first.client.port, second.client.port
    with fronting(ports) as fronted:
        answer = fronted.client.request(
            "POST", "/generate", b'{"prompt":"x"}', {"Content-Type": "application/json"}
        )
    assert answer.status == 503
    assert answer.json()["detail"] == "Cannot connect to text-to-image server"
    assert answer.json()["code"] == "no_upstream"
    assert 1 <= int(answer.headers["retry-after"]) <= 120


def test_a_rolling_restart_of_all_workers_loses_nothing() -> None:
    """Each drains, leaves, and comes back elsewhere, while callers go on asking."""
    with ExitStack() as stack:
        old = [stack.enter_context(ExitStack()) for _ in range(2)]
        workers = [each.enter_context(serving()) for each in old]
        proxies = [stack.enter_context(closing(FaultProxy(worker.client.port))) for worker in workers]
        fronted = stack.enter_context(fronting([proxy.port for proxy in proxies]))
        until(lambda: len(fronted.gateway.fleet.seen) == 2)
        retired: list[Served] = []

        def restart(number: int) -> None:
            if number not in (100, 300):
                return
            place = number // 200
            standing = fronted.gateway.fleet.balancer.standings[place]
            workers[place].probe.say("draining")
            until(lambda: standing.outstanding == 0)
            proxies[place].refuse()
            old[place].close()
            retired.append(workers[place])
            workers[place] = stack.enter_context(serving())
            proxies[place].accept(workers[place].client.port)
            until(
                lambda: (
                    standing.ejected_until is None and standing.resting_until < fronted.gateway.fleet.clock()
                )
            )

        done = load(fronted.client, range(6000, 6500), between=restart)
        done.check()
        assert done.broken == 0
        assert done.good == 500
        assert len(retired) == 2
        assert executed(*workers, *retired) == dict.fromkeys(range(6000, 6500), 1)

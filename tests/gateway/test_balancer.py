"""The policy as sequences of events: no server, no socket, and the time is an argument."""

from gateway.balancer import Balancer, Outcome, Policy


def balancer(*names: str, **policy: float | int) -> Balancer:
    return Balancer(Policy(**policy), names or ("a", "b"))  # type: ignore[arg-type]


def fail(balance: Balancer, name: str, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        balance.begin(name, now)
        balance.end(name, now, Outcome.BROKEN)


def test_the_one_with_less_to_do_is_next() -> None:
    """A round robin would queue short requests behind long ones."""
    balance = balancer()
    balance.begin("a", 0)
    assert balance.pick(0).name == "b"
    balance.begin("b", 0, work=5)
    assert balance.pick(0).name == "a"


def test_equals_take_turns() -> None:
    """Or an idle fleet would be one busy server and many cold ones."""
    balance = balancer("a", "b", "c")
    chosen = []
    for _ in range(6):
        name = balance.pick(0).name
        assert name is not None
        chosen.append(name)
        balance.begin(name, 0)
        balance.end(name, 0, Outcome.GOOD)
    assert chosen == ["a", "b", "c"] * 2


def test_work_that_others_sent_there_counts() -> None:
    """Several gateways share their servers and see one another's work in the servers' own counts only."""
    balance = balancer()
    balance.begin("a", 0)
    balance.probed("a", 0, Outcome.GOOD, waiting=1)
    balance.probed("b", 0, Outcome.GOOD, waiting=7)
    assert balance.pick(0).name == "a"


def test_a_model_goes_where_it_is_loaded_until_the_queue_there_is_dearer_than_a_load() -> None:
    """Loading costs seconds; waiting behind many requests costs more."""
    balance = balancer(cold_cost=4)
    balance.probed("b", 0, Outcome.GOOD, loaded=["sdxl"])
    for _ in range(4):
        assert balance.pick(0, model="sdxl").name == "b"
        balance.begin("b", 0, model="sdxl")
    balance.begin("b", 0, model="sdxl")
    assert balance.pick(0, model="sdxl").name == "a"


def test_recent_use_counts_as_loaded_for_a_while() -> None:
    """The second request of a burst must follow the first, which no probe has seen yet."""
    balance = balancer(remember_seconds=60)
    balance.begin("b", 0, model="sdxl")
    balance.end("b", 0, Outcome.GOOD)
    assert balance.pick(59, model="sdxl").name == "b"
    assert balance.pick(61, model="sdxl").name == "a"


def test_five_failures_in_a_row_eject_and_four_do_not() -> None:
    """A single failure is weather; five in a row are a climate."""
    balance = balancer()
    fail(balance, "a", 4)
    balance.begin("a", 0)
    balance.end("a", 0, Outcome.GOOD)
    fail(balance, "a", 4)
    assert balance.pick(0, tried={"b"}).name == "a"
    fail(balance, "a", 1)
    assert balance.pick(0, tried={"b"}).name is None


def test_half_open_lets_one_request_try() -> None:
    """A thundering herd on a server that has just come back would bring it down again."""
    balance = balancer()
    fail(balance, "a", 5)
    assert balance.pick(0.9, tried={"b"}).name is None
    assert balance.pick(1.0).name == "a"
    balance.begin("a", 1.0)
    assert balance.pick(1.1).name == "b"
    balance.end("a", 1.2, Outcome.GOOD)
    assert balance.pick(1.2, tried={"b"}).name == "a"


def test_each_failed_trial_doubles_the_time_up_to_the_longest() -> None:
    """A server that is gone for hours should not cost a request every second."""
    balance = balancer(eject_seconds=1, longest_eject_seconds=4)
    now = 0.0
    fail(balance, "a", 5, now)
    waits = []
    for _ in range(4):
        standing = balance.standing("a")
        assert standing is not None
        assert standing.ejected_until is not None
        waits.append(standing.ejected_until - now)
        now = standing.ejected_until
        fail(balance, "a", 1, now)
    assert waits == [1, 2, 4, 4]


def test_what_was_under_way_at_the_ejection_does_not_prolong_it() -> None:
    """Thirty requests that die together are one event, not thirty trials."""
    balance = balancer(max_outstanding=40)
    for _ in range(30):
        balance.begin("a", 0)
    for _ in range(30):
        balance.end("a", 0, Outcome.BROKEN)
    assert balance.pick(1.0).name == "a"


def test_a_probe_ends_the_ejection_of_an_absent_server_and_not_of_a_failing_one() -> None:
    """A server that fails every request may answer its health check all the while."""
    balance = balancer()
    fail(balance, "a", 5)
    balance.probed("a", 0.5, Outcome.GOOD)
    assert balance.pick(0.5, tried={"b"}).name is None
    balance.probed("a", 1.0, Outcome.GOOD)
    standing = balance.standing("a")
    assert standing is not None
    assert standing.ejected_until is None
    for _ in range(5):
        balance.begin("a", 2)
        balance.end("a", 2, Outcome.ERROR)
    balance.probed("a", 9, Outcome.GOOD)
    assert standing.ejected_until is not None


def test_failing_probes_eject_as_well() -> None:
    """Without traffic nobody else would notice."""
    balance = balancer()
    for _ in range(5):
        balance.probed("a", 0, Outcome.BROKEN)
    assert balance.pick(0, tried={"b"}).name is None


def test_a_caller_who_leaves_says_nothing_of_the_server() -> None:
    """Neither does it close a half-open one."""
    balance = balancer()
    fail(balance, "a", 5)
    balance.begin("a", 1)
    balance.end("a", 1, Outcome.NEUTRAL)
    standing = balance.standing("a")
    assert standing is not None
    assert standing.ejected_until is not None
    assert balance.pick(1).name == "a"


def test_a_full_fleet_is_told_from_an_absent_one() -> None:
    """The first is worth waiting for."""
    balance = balancer(max_outstanding=1)
    balance.begin("a", 0)
    balance.begin("b", 0)
    assert balance.pick(0).full
    balance.drain("a")
    balance.drain("b")
    assert not balance.pick(0).full


def test_one_that_refused_for_want_of_room_comes_last_but_is_not_out() -> None:
    """Its own Retry-After is what the caller should hear when every other one is gone."""
    balance = balancer()
    balance.rest("a", 0, 2)
    balance.begin("b", 0)
    assert balance.pick(1).name == "b"
    assert balance.pick(1, tried={"b"}).name == "a"
    assert balance.pick(2).name == "a"


def test_drained_and_added_again() -> None:
    """An operator takes a machine out for maintenance and brings it back."""
    balance = balancer()
    balance.begin("a", 0)
    balance.drain("a")
    assert balance.pick(0).name == "b"
    balance.end("a", 0, Outcome.GOOD)
    balance.add("a")
    assert balance.pick(0, tried={"b"}).name == "a"
    balance.remove("a")
    balance.end("a", 0, Outcome.GOOD)
    assert balance.pick(0, tried={"b"}).name is None


def test_the_retry_budget_bounds_what_failures_add() -> None:
    """Without it, a fleet that fails everything is asked twice as much as its callers ask."""
    balance = balancer(retry_share=0.2, retry_reserve=3)
    retried = 0
    for _ in range(100):
        balance.earn()
        retried += balance.may_retry()
    assert 3 <= retried <= 3 + 100 * 0.2


def test_a_slow_reader_takes_nobodys_place() -> None:
    """Ten callers who read a byte now and then would keep everybody else from an idle server."""
    balance = balancer("a", max_outstanding=1)
    balance.begin("a", 0)
    assert balance.pick(0).full
    balance.answered("a")
    assert balance.pick(0).name == "a"
    balance.begin("a", 0)
    balance.end("a", 0, Outcome.GOOD, answered=True)
    assert balance.pick(0).full
    balance.end("a", 0, Outcome.GOOD)
    assert balance.pick(0).name == "a"


def test_what_was_under_way_before_does_not_let_a_second_request_try() -> None:
    """Its caller left; that says nothing of the trial."""
    balance = balancer()
    balance.begin("a", 0)
    fail(balance, "a", 5)
    balance.begin("a", 1)
    balance.end("a", 1, Outcome.NEUTRAL)
    assert balance.pick(1, tried={"b"}).name is None
    balance.end("a", 1, Outcome.GOOD)
    assert balance.pick(1, tried={"b"}).name == "a"


def test_when_all_fail_what_they_are_asked_they_are_asked_nevertheless() -> None:
    """It may be one caller's requests that fail; nobody is saved by turning everybody away."""
    balance = balancer()
    for name in ("a", "b"):
        for _ in range(5):
            balance.begin(name, 0)
            balance.end(name, 0, Outcome.ERROR)
        assert balance.pick(0).name is not None
    balance.begin("a", 0)
    balance.end("a", 0, Outcome.GOOD)
    assert balance.pick(0, tried={"a"}).name is None
    fail(balance, "a", 5)
    assert balance.pick(0, tried={"b"}).name is None

"""The vision service as it is started, under mixed load: everyone gets their own answer, and once."""

from collections.abc import Iterator

import pytest

from benchmarks.vision_asks import ALIKE, SLUGS, unlike
from benchmarks.vision_server import Server, server
from benchmarks.vision_soak import Answered, answer_alone, churn, soak, unaccounted

REQUESTS, CLIENTS = 192, 32  # ``python -m benchmarks.vision`` sends 1,000
TURNS = 6  # and unloads and loads 200 times


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("vision")) as one:
        yield one


@pytest.fixture(scope="module")
def expected(running: Server) -> Answered:
    return answer_alone(running, each=4)


def test_answers_differ_where_requests_do(expected: Answered) -> None:
    """Or a misrouted one would not be seen: any two of one model are further apart than the tolerance."""
    for slug in SLUGS:
        own = [at for at, one in enumerate(expected.calls) if one.slug == slug and one.status == 200]
        assert len(own) == 4
        for at in own:
            for other in own:
                apart = unlike(expected.calls[at], expected.alone[at], expected.alone[other])
                assert (apart > 10 * ALIKE) == (at != other), (slug, at, other, apart)


def test_everyone_gets_their_own_answer(running: Server, expected: Answered) -> None:
    """As alone, with four models, several sizes and refused requests in between; and each is counted once."""
    before = running.metrics()
    outcome = soak(running, expected, count=REQUESTS, clients=CLIENTS, settle=REQUESTS // 2)
    assert (outcome.answered, outcome.lost, outcome.misrouted) == (REQUESTS, 0, 0)
    after = running.metrics()
    assert unaccounted(after) == after["batchmux_jobs_unaccounted"] == 0
    grown = {name: after[name] - before[name] for name in before if name.startswith("batchmux_")}
    assert grown['batchmux_jobs_ended_total{state="succeeded"}'] == outcome.accepted
    # Those that only a tokenizer can judge were let in, and failed by themselves.
    assert grown['batchmux_jobs_ended_total{state="failed"}'] > 0
    assert grown["batchmux_step_rows_sum"] == outcome.accepted, "nobody's forward was run again"
    assert grown["batchmux_step_rows_count"] < outcome.accepted, "requests shared forwards"


def test_models_come_and_go_while_requests_run(running: Server) -> None:
    """Who asks for a model that was just unloaded waits for it, and does not hear of it."""
    outcome = churn(running, turns=TURNS, clients=3, settle=2)
    assert outcome.failed == ()
    assert outcome.misrouted == 0
    assert outcome.answered > TURNS
    assert running.metrics()["batchmux_model_loads_total"] >= 4 + TURNS
    assert unaccounted(running.metrics()) == 0

"""The vision benchmark measures what it says it does."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from benchmarks.vision import LEAST_RATIO, REQUESTS, ROWS, SHARING, Cell, Round, compare
from benchmarks.vision_asks import SLUGS, Call, described, distinct, mixed, unlike
from benchmarks.vision_server import NAIVE, Server, server


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    folder: Path = tmp_path_factory.mktemp("vision")
    with server(folder) as ours, server(folder, NAIVE) as naive:
        yield ours, naive


@pytest.mark.parametrize("slug", SLUGS)
def test_both_servers_find_the_same(servers: tuple[Server, Server], slug: str) -> None:
    """Else one of them would be fast at something easier."""
    asked = described(slug, shown=3, words=1, size=(96, 72))
    answers = [one.ask(asked.path, asked.body) for one in servers]
    assert [answer.status for answer in answers] == [200, 200], answers[1].body[:300]
    ours, naive = (found(json.loads(answer.body)) for answer in answers)
    assert len(ours) == len(naive) > 0
    assert ours == pytest.approx(naive, abs=0.005)


def found(answer: Any) -> list[float]:
    """Numbers that tell one picture from another, in an order that both servers keep."""
    match answer:
        case {"results": [[*prompts]]}:
            return sorted(score for prompt in prompts for score in prompt["result"]["scores"])
        case {"results": [{"scores": [*scores]}]}:
            return sorted(scores)
        case {"features": {"last_hidden_state": [[[*token], *_]]}}:
            return list(token)
        case {"depth_data": str(text)}:
            with Pillow.open(io.BytesIO(base64.b64decode(text))) as grey:
                return [float(level) / 255 for level in grey.tobytes()[::50]]
    raise AssertionError(answer)


def test_rows_are_asked_of_both_in_turns(servers: tuple[Server, Server]) -> None:
    """As many pairs as were asked for, the first left out; every request a latency."""
    (cell,) = compare(ROWS[0], *servers, rounds=1, requests={2: 4})
    assert (len(cell.ours), len(cell.naive)) == (1, 1)
    assert all(len(one.latencies) == 4 and one.seconds > 0 for one in (*cell.ours, *cell.naive))
    assert "sam3" in str(cell)


def test_a_picture_is_shared_where_the_row_says_so() -> None:
    """And nowhere else: what a server remembers of an earlier picture would be measured."""
    shared = next(row for row in ROWS if "to a picture" in row.name)
    for row in ROWS:
        pictures = {json.loads(row.call(n).body)["images"][0] for n in range(2 * SHARING)}
        assert len(pictures) == (2 if row is shared else 2 * SHARING)


def test_a_slower_server_misses() -> None:
    """The median of the pairs, ours to theirs."""
    slow, fast = Round(2.0, (0.1, 0.2), 1.0), Round(1.0, (0.1, 0.2), 1.0)
    assert Cell(ROWS[0], 32, (slow,), (fast,)).faster == 0.5
    assert Cell(ROWS[0], 32, (slow,), (fast,)).missed
    assert not Cell(ROWS[0], 32, (fast,), (slow,)).missed
    assert LEAST_RATIO.keys() == REQUESTS.keys()


def test_a_misrouted_answer_is_seen() -> None:
    """Refusals are compared by their words, without the request's name in them."""
    refused = Call("sam3", b"", 422)
    one, same, other = (b'{"error": "a", "request_id": "1"}', b'{"error": "a"}', b'{"error": "b"}')
    assert unlike(refused, one, same) == 0
    assert unlike(refused, one, other) == float("inf")


def test_the_mix_holds_everything_equally() -> None:
    """A model that is never asked would not be measured."""
    calls = distinct(2)
    order = mixed(calls, 3 * len(calls))
    assert sorted(order) == sorted([*range(len(calls))] * 3)
    assert {calls[at].slug for at in order} == set(SLUGS)

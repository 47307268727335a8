"""Two replicas under Ray Serve on this machine, deployed and asked as an operator and callers would.

``make ray`` installs Ray beside the worker and runs these.
"""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.serving import Answer, png, text
from tests.deploy.fleet import MAX_QUEUE, Fleet, running_fleet

pytestmark = pytest.mark.ray

PICTURE = text(png(96, 96, (200, 120, 40)))
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "broken.safetensors").write_bytes(b"no LoRA")
    with running_fleet(
        folder,
        USER_LORAS=f"broken={folder / 'broken.safetensors'}",
        ALLOWED_MODELS="pocket-edit,pocket-sdxl",
    ) as running:
        yield running


def wishes(number: int) -> dict[str, Any]:
    """Of few kinds, so that some can share their steps, and none like another."""
    side = (64, 96, 128)[number % 3]
    return {
        "prompt": f"make it look like night, {number}",
        "image": PICTURE,
        "width": side,
        "height": side,
        "num_inference_steps": 1 + number % 2,
        "seed": number,
    }


def ask(fleet: Fleet, number: int) -> Answer:
    """One in ten asks for events, one for what no model does, one for a LoRA that cannot be read."""
    kind = number % 10
    if kind == 7:
        return fleet.run(wishes(number), headers=EVENTS)
    if kind == 8:
        return fleet.run(wishes(number) | {"num_inference_steps": 0.5})
    if kind == 9:
        return fleet.run(wishes(number) | {"loras": [{"id": "broken"}]})
    return fleet.run(wishes(number))


def outcome(number: int, answer: Answer) -> str:
    """What came back, in a word; the picture must be of the seed that was sent."""
    if answer.status != 200:
        return answer.code
    if number % 10 == 7:
        last = answer.body.strip().rpartition(b"\n\n")[2]
        name, _, data = last.partition(b"\ndata: ")
        told = json.loads(data)
        if name != b"event: done":
            return str(told["code"])
    else:
        told = answer.json()
    assert told["seed"] == number
    return "ok"


def test_500_requests_are_answered_although_a_replica_is_killed(fleet: Fleet) -> None:
    """A machine that goes takes up to two batches with it: they are computed again elsewhere, and every
    caller gets what it asked for, or the same refusal as ever."""
    answers: list[str] = [""] * 500
    with ThreadPoolExecutor(24) as callers:
        sent = {number: callers.submit(ask, fleet, number) for number in range(500)}
        for number, future in sent.items():
            if number == 200:
                before = fleet.replicas()
                victim = next(iter(before))
                fleet.kill(victim)
            answers[number] = outcome(number, future.result())
    expected = Counter(ok=400, invalid_parameter=100)
    assert Counter(answers) == expected
    after = fleet.report()
    assert after["ingress"]["resent"] >= 1, "nothing was under way where the replica was killed"
    assert after["ingress"]["accepted"] == sum(
        after["ingress"][state]
        for state in ("succeeded", "failed", "cancelled", "expired", "queued", "running")
    )
    [survivor] = before.keys() - {victim}
    assert max(int(rows) for rows in before[victim]["batch_sizes"]) > 1
    assert max(int(rows) for rows in after["replicas"][str(survivor)]["batch_sizes"]) > 1


def test_the_killed_replica_is_replaced_and_batches_again(fleet: Fleet) -> None:
    """What the controller starts in its stead takes its share, in batches."""
    fleet.wait(2)
    old = {pid: told["counts"]["succeeded"] for pid, told in fleet.replicas().items()}
    with ThreadPoolExecutor(24) as callers:
        answers = list(callers.map(lambda number: fleet.run(wishes(number)), range(60)))
    assert {answer.status for answer in answers} == {200}
    for pid, told in fleet.replicas().items():
        assert told["counts"]["succeeded"] > old[pid]
        assert max(int(rows) for rows in told["batch_sizes"]) > 1


def test_two_replicas_make_the_same_picture(fleet: Fleet) -> None:
    """What makes sending again safe: the request holds all that its picture depends on."""
    old = fleet.replicas()
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(lambda _: fleet.run(wishes(4)), range(16)))
    assert len({answer.json()["image"] for answer in answers}) == 1
    for pid, told in fleet.replicas().items():
        assert told["counts"]["succeeded"] > old[pid]["counts"]["succeeded"]


def test_a_row_that_fails_fails_alone_and_its_error_is_whole(fleet: Fleet) -> None:
    """Its code and the field at fault come from the device thread of another process."""
    failed = sum(told["counts"]["failed"] for told in fleet.replicas().values())
    poisoned = wishes(1) | {"loras": [{"id": "broken"}]}
    with ThreadPoolExecutor(8) as callers:
        asked = [poisoned if number == 3 else wishes(6 * number) for number in range(8)]
        answers = list(callers.map(fleet.run, asked))
    assert [answer.status for answer in answers] == [200, 200, 200, 422, 200, 200, 200, 200]
    assert (answers[3].code, answers[3].json()["param"]) == ("invalid_parameter", "loras")
    assert sum(told["counts"]["failed"] for told in fleet.replicas().values()) == failed + 1


def test_every_step_is_told(fleet: Fleet) -> None:
    """Through the replica, the handle, the ingress and the proxy, none of which may gather them."""
    answer = fleet.run(wishes(2) | {"num_inference_steps": 4}, headers=EVENTS)
    names = [piece.partition(b"\n")[0] for piece in answer.body.split(b"\n\n") if piece]
    told = [
        json.loads(piece.partition(b"data: ")[2])
        for piece in answer.body.split(b"\n\n")
        if piece.startswith(b"event: progress")
    ]
    assert names[-1] == b"event: done"
    assert [event["step"] for event in told if event["state"] == "running"][-1] == 4
    assert {event["steps"] for event in told} == {4}


def test_a_caller_who_leaves_ends_the_job_in_its_replica(fleet: Fleet) -> None:
    """Else the device works on for nobody."""

    def cancelled(told: Any) -> int:
        return sum(replica["counts"]["cancelled"] for replica in told["replicas"].values())

    before = cancelled(fleet.report())
    body = json.dumps({"input": wishes(2) | {"num_inference_steps": 100}}).encode()
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=30) as connection:
        head = "POST /run HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        got = b""
        while b'"running"' not in got:
            more = connection.recv(65536)
            assert more, got
            got += more
    fleet.until(lambda told: cancelled(told) == before + 1)
    fleet.until(lambda told: told["ingress"]["running"] == 0)


def test_what_waits_too_long_is_told_so(fleet: Fleet) -> None:
    """A deadline counts from the ingress, whoever holds the request when it passes."""
    answer = fleet.run(wishes(2) | {"num_inference_steps": 100, "timeout": 0.5})
    assert (answer.status, answer.code) == (504, "deadline_exceeded")


def test_a_full_queue_refuses_at_once(fleet: Fleet) -> None:
    """What is over the limit costs nobody anything, and is told when to come again."""
    with ThreadPoolExecutor(4 * MAX_QUEUE) as callers:
        answers = list(callers.map(lambda number: fleet.run(wishes(number)), range(4 * MAX_QUEUE)))
    assert {answer.code for answer in answers} == {"ok", "queue_full"}
    for answer in answers:
        if answer.code == "queue_full":
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) >= 1


def test_a_job_of_the_queue_is_done_by_a_replica(fleet: Fleet) -> None:
    """What is answered with an id is kept by the ingress, and computed where all else is."""
    body = json.dumps({"input": wishes(3)}).encode()
    id = fleet.post("/v2/local/run", body).json()["id"]

    def done(told: Any) -> bool:
        return bool(fleet.request("GET", f"/v2/local/status/{id}").json()["status"] == "COMPLETED")

    fleet.until(done)


def test_each_model_stays_where_its_weights_are(fleet: Fleet) -> None:
    """Two models, two replicas with room for one each: taking turns must not make them swap."""

    def alternate(times: int) -> None:
        for number in range(times):
            assert fleet.run(wishes(number)).status == 200
            painted = {"model": "pocket-sdxl", "prompt": "a tree", "width": 64, "height": 64}
            assert fleet.run(painted | {"num_inference_steps": 1, "seed": number}).status == 200

    def loads() -> int:
        return sum(told["loads"] for told in fleet.replicas().values())

    alternate(10)  # until each knows its own
    before = loads()
    alternate(15)
    assert loads() == before


def test_a_purge_reaches_every_replica(fleet: Fleet) -> None:
    """Who asks for memory back means all of it."""
    told = fleet.post("/v1/models/purge", b"{}").json()
    assert (told["removed"], told["remaining"]) == (len(fleet.replicas()), 0)
    assert fleet.run(wishes(3)).status == 200


def test_the_probes_speak_for_the_fleet(fleet: Fleet) -> None:
    """One address, one answer, whichever machines are behind it."""
    assert fleet.request("GET", "/ready").status == 200
    told = fleet.request("GET", "/health").json()
    assert (told["status"], told["model"]) == ("ready", "pocket-edit")
    assert b"batchmux" in fleet.request("GET", "/metrics").body


def test_a_replica_that_is_scaled_away_finishes_first(fleet: Fleet) -> None:
    """Fewer replicas must cost no request, and none a second computation."""
    resent = fleet.report()["ingress"]["resent"]
    with ThreadPoolExecutor(24) as callers:
        sent = [callers.submit(fleet.run, wishes(number)) for number in range(120)]
        sent[20].result()
        fleet.scale(1)
        assert Counter(future.result().status for future in sent) == {200: 120}
    fleet.wait(1)
    assert fleet.report()["ingress"]["resent"] == resent


def test_the_first_caller_of_an_idle_fleet_waits_for_a_replica(fleet: Fleet) -> None:
    """With no replica at all a request is no error: it is what starts one."""
    fleet.scale(0)
    fleet.wait(0)
    fleet.until(lambda told: fleet.request("GET", "/ready").status == 503)
    assert fleet.run(wishes(3)).status == 200

"""Webhooks of queued jobs, to a real server of the caller: what it is told is what /status shows."""

import base64
import hashlib
import hmac
import json
import queue as queues
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from api.fetch import GuardedFetch
from api.job_service import secret_of
from tests.api.queueing import Queue, is_painted, queueing, wishes
from tests.api.remote import Canary, Remote, content, remote_server

SECRET = "whsec_" + base64.b64encode(b"a key that both know").decode()


@pytest.fixture
def remote() -> Iterator[Remote]:
    with remote_server() as found:
        yield found


@pytest.fixture
def queue(tmp_path: Path, remote: Remote) -> Iterator[Queue]:
    post = GuardedFetch(max_bytes=2**20, timeout=5, allow_hosts={remote.pair}).post
    with queueing(tmp_path, post=post, secret=secret_of(SECRET)) as running:
        yield running


def receiver(remote: Remote) -> "queues.Queue[bytes]":
    taken: queues.Queue[bytes] = queues.Queue()

    def take(request: BaseHTTPRequestHandler) -> None:
        content(b"")(request)
        taken.put(remote.bodies[-1])

    remote.routes["/done"] = take
    return taken


def test_the_caller_is_told_what_the_status_shows(queue: Queue, remote: Remote) -> None:
    """Signed over id, time and body; a receiver can check it with any library of the standard."""
    taken = receiver(remote)
    id = queue.run(wishes(31), webhook=remote.url("/done"))
    body = taken.get(timeout=10)
    assert json.loads(body) == queue.get(f"status/{id}")
    assert is_painted(json.loads(body)["output"], 31)
    headers = remote.seen[-1]
    signed = b".".join((id.encode(), headers["webhook-timestamp"].encode(), body))
    expected = base64.b64encode(hmac.digest(b"a key that both know", signed, hashlib.sha256)).decode()
    assert headers["webhook-id"] == id
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["content-type"] == "application/json"


def test_failures_and_cancellations_are_told_too(queue: Queue, remote: Remote) -> None:
    """Or a caller would wait for ever."""
    taken = receiver(remote)
    queue.run({}, webhook=remote.url("/done"))
    assert json.loads(taken.get(timeout=10))["status"] == "FAILED"
    queue.painter.shut()
    id = queue.run(wishes(), webhook=remote.url("/done"))
    queue.begun()
    queue.post(f"cancel/{id}")
    assert json.loads(taken.get(timeout=10)) | {"delayTime": 0, "executionTime": 0, "workerId": ""} == {
        "id": id,
        "status": "CANCELLED",
        "delayTime": 0,
        "executionTime": 0,
        "workerId": "",
    }
    queue.painter.open()


def test_a_private_address_is_not_called(queue: Queue, remote: Remote, canary: Canary) -> None:
    """A webhook is as much of the caller's choice as any image_url."""
    taken = receiver(remote)
    private = queue.run(wishes(), webhook=f"http://127.0.0.1:{canary.port}/done")
    queue.ended(private)
    told = queue.run(wishes(), webhook=remote.url("/done"))
    assert json.loads(taken.get(timeout=10))["id"] == told
    assert not canary.reached


def test_a_text_signs_as_it_is() -> None:
    """And a secret of the standard's form is decoded first."""
    assert secret_of("plain words") == b"plain words"
    assert secret_of(SECRET) == b"a key that both know"

"""A caller's server is told of the end of a job: at least once, signed, never for ever."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from api.fetch import GuardedFetch
from api.job_record import JobOutcome, JobRecord
from api.job_store import JobStore
from api.webhooks import WebhookSender, signature
from core.errors import RequestError, ServingError, UpstreamError
from tests.api.jobs import START, WallClock, new_job
from tests.api.remote import Canary, content, redirect, remote_server

URL = "https://hooks.example/done?token=1"


def rendered(job: JobRecord) -> bytes:
    return b'{"id":"%s","status":"%s"}' % (job.id.encode(), job.state.encode())


class Receiver:
    """A caller's server: takes calls, or fails as it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        self.error: Exception | None = None

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> None:
        self.calls.append((url, dict(headers), body))
        if self.error is not None:
            raise self.error


Story = Callable[[JobStore, WebhookSender, Receiver, WallClock], Awaitable[None]]


def tell(folder: Path, story: Story, secret: bytes | None = b"secret") -> None:
    async def told() -> None:
        clock, receiver = WallClock(), Receiver()
        with JobStore(folder, clock=clock) as store:
            sender = WebhookSender(store, receiver, {"echo": rendered}, secret=secret, tries=3)
            await asyncio.wait_for(story(store, sender, receiver, clock), 20)

    asyncio.run(told())


async def finished(store: JobStore, webhook: str | None = URL, keep: float | None = None) -> str:
    await store.create(new_job(webhook=webhook, keep=keep))
    (job,) = await store.claim(1)
    assert await store.succeed(job.id, job.lease, JobOutcome(data=b"{}"))
    return job.id


async def send(sender: WebhookSender) -> None:
    await sender.send_due()
    await sender.idle()


def test_a_call_is_made_once_and_signed(tmp_path: Path) -> None:
    """The receiver checks that it is ours and fresh; computed here as the specification writes it."""

    async def story(store: JobStore, sender: WebhookSender, receiver: Receiver, clock: WallClock) -> None:
        await finished(store, webhook=None)
        id = await finished(store)
        await send(sender)
        clock.now += 1000
        await send(sender)
        ((url, headers, body),) = receiver.calls
        assert (url, body) == (URL, b'{"id":"%s","status":"succeeded"}' % id.encode())
        signed = f"{id}.{START:.0f}.".encode() + body
        expected = base64.b64encode(hmac.new(b"secret", signed, hashlib.sha256).digest()).decode()
        assert headers == {
            "Content-Type": "application/json",
            "webhook-id": id,
            "webhook-timestamp": f"{START:.0f}",
            "webhook-signature": f"v1,{expected}",
        }

    tell(tmp_path, story)


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks reference libraries' own tests."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_without_a_secret_nothing_pretends_to_be_signed(tmp_path: Path) -> None:
    """A header that anybody can forge is worse than none."""

    async def story(store: JobStore, sender: WebhookSender, receiver: Receiver, clock: WallClock) -> None:
        await finished(store)
        await send(sender)
        assert "webhook-signature" not in receiver.calls[0][1]

    tell(tmp_path, story, secret=None)


def test_a_server_that_is_down_is_called_again_and_not_for_ever(tmp_path: Path) -> None:
    """After 15 s, after 30 s more, and then it is given up; all under one id."""

    async def story(store: JobStore, sender: WebhookSender, receiver: Receiver, clock: WallClock) -> None:
        await finished(store)
        receiver.error = UpstreamError("upstream_error", "down")
        calls = []
        for seconds in (0, 14, 1, 29, 1, 1000, 1000):
            clock.now += seconds
            await send(sender)
            calls.append(len(receiver.calls))
        assert calls == [1, 1, 2, 2, 3, 3, 3]
        assert len({headers["webhook-id"] for _, headers, _ in receiver.calls}) == 1

    tell(tmp_path, story)


def test_a_job_that_is_kept_briefly_is_told_of_by_a_late_try(tmp_path: Path) -> None:
    """As one of /runsync, kept for a minute: its caller's server may be down for longer than that."""

    async def story(store: JobStore, sender: WebhookSender, receiver: Receiver, clock: WallClock) -> None:
        id = await finished(store, keep=60.0)
        receiver.error = UpstreamError("upstream_error", "down")
        for seconds in (0, 15, 60):
            clock.now = START + seconds
            await store.forget()
            await send(sender)
            if seconds == 15:
                receiver.error = None
        assert len(receiver.calls) == 3
        assert {headers["webhook-id"] for _, headers, _ in receiver.calls} == {id}
        await store.forget()
        with pytest.raises(RequestError) as gone:
            await store.get("ann", id)
        assert gone.value.code == "expired"

    tell(tmp_path, story)


def test_a_call_that_a_crash_cut_short_is_made_again(tmp_path: Path) -> None:
    """What is owed is in the file until it is settled."""

    async def story(store: JobStore, sender: WebhookSender, receiver: Receiver, clock: WallClock) -> None:
        await finished(store)
        await store.take_owed(5, 15.0)  # and then the process died

    async def later(store: JobStore, sender: WebhookSender, receiver: Receiver, clock: WallClock) -> None:
        await send(sender)
        assert receiver.calls == []
        clock.now += 15
        await send(sender)
        assert len(receiver.calls) == 1

    tell(tmp_path, story)
    tell(tmp_path, later)


@pytest.mark.parametrize("error", [RequestError("url_not_allowed", "no"), KeyError("a fault of ours")])
def test_what_cannot_mend_itself_is_not_tried_again(error: Exception, tmp_path: Path) -> None:
    """A private address stays private."""

    async def story(store: JobStore, sender: WebhookSender, receiver: Receiver, clock: WallClock) -> None:
        await finished(store)
        receiver.error = error
        for _ in range(3):
            await send(sender)
            clock.now += 1000
        assert len(receiver.calls) == 1

    tell(tmp_path, story)


def test_the_sender_looks_by_itself(tmp_path: Path) -> None:
    """Nobody has to wake it; cancelled, it leaves what is owed."""

    async def story(store: JobStore, sender: WebhookSender, receiver: Receiver, clock: WallClock) -> None:
        running = asyncio.ensure_future(sender.run())
        await finished(store)
        async with asyncio.timeout(10):
            while not receiver.calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    tell(tmp_path, story)


def test_webhooks_go_through_the_guard(canary: Canary) -> None:
    """A webhook is a caller's URL like any other: no private address, no redirect, no silence for ever."""

    async def post(url: str) -> str:
        try:
            await fetcher.post(url, {"webhook-id": "1"}, b"{}")
        except ServingError as error:
            return error.code
        return "taken"

    with remote_server() as remote:
        remote.routes |= {"/hook": content(b""), "/moved": redirect(f"http://127.0.0.1:{canary.port}/")}
        fetcher = GuardedFetch(max_bytes=1, timeout=10, allow_hosts={remote.pair})
        assert asyncio.run(post(remote.url("/hook"))) == "taken"
        assert remote.seen[0]["webhook-id"] == "1"
        assert asyncio.run(post(remote.url("/moved"))) == "upstream_error"
        assert asyncio.run(post(remote.url("/absent"))) == "upstream_error"
        assert asyncio.run(post(f"http://127.0.0.1:{canary.port}/")) == "url_not_allowed"
        fetcher.close()
    assert not canary.reached

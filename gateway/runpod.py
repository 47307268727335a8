"""``RunpodEndpoint``: a queue endpoint of RunPod's as a server that answers HTTP requests at once.

OpenAI's image requests become jobs that carry them (``openai_route``, ``openai_input``), flat ones become the
job's ``input``. Source of paths and states: docs.runpod.io/serverless/endpoints/job-operations.
"""

import asyncio
import re
from contextlib import suppress
from typing import Any, Final

import aiohttp
import orjson

from core.errors import CapacityError, ServingError
from gateway.asking import Ask, Reply, Unanswered
from gateway.refusals import refuse
from gateway.runpod_jobs import answer_of, input_of
from gateway.upstream import Connecting, Health, Upstream, number

_WORK: Final = re.compile(r"/run|/runsync|/generate|(?:/openai)?/v1/images/(?:generations|edits)")
_QUEUE: Final = re.compile(r"/v2/[^/]+(?P<rest>/.+)")
_MOST_BYTES: Final = 20 * 2**20  # RunPod's own limit of a runsync body
_ANSWER_BYTES: Final = 64 * 2**20
_WAIT_MS: Final = 1000  # the shortest that it takes: until then nobody knows the job's id
_OF_THE_JOB: Final = frozenset({b"idempotency-key"})
_OF_THE_BODY: Final = _OF_THE_JOB | {b"content-type", b"content-length", b"accept"}
_FIRST_POLL, _LONGEST_POLL = 0.25, 2.0
_MOST_LOST: Final = 5  # polls in a row
_ENDED: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})


class RunpodEndpoint(Upstream):
    """``url`` ends in the endpoint's id. The callers' own credentials are never sent there.

    shared: by callers who must not see each other's jobs. To RunPod all of them are the operator: a job's id,
    which nobody can guess, is what they are told apart by, and nobody may end what all have queued.
    """

    runpod = True

    def __init__(self, url: str, options: Connecting, *, key: str = "", shared: bool = False) -> None:
        super().__init__(url, options, key=key)
        self._shared = shared

    def takes(self, path: str) -> bool:
        if self._shared and path.endswith("/purge-queue"):
            return False
        return bool(_WORK.fullmatch(path) or _QUEUE.fullmatch(path))

    async def ask(self, ask: Ask) -> Reply:
        queue = _QUEUE.fullmatch(ask.path)
        if queue is not None:
            query = f"?{ask.query}" * bool(ask.query)
            return await self._exchange(ask, f"{self.url}{queue['rest']}{query}", self._headers(ask))
        content = await ask.body.whole(_MOST_BYTES)
        if ask.body.gone:
            raise Unanswered("the caller left")
        try:
            job = input_of(ask.path, ask.headers, content)
            del content
            async with asyncio.timeout(self.options.timeout):
                return answer_of(ask.path, await self._run(ask, {"input": job}))
        except TimeoutError:
            raise Unanswered("timeout", silent=True) from None
        except ServingError as error:  # the endpoint's own refusal, as a server words it
            return refuse(error, ask.path, ask.request_id)

    async def health(self) -> Health:
        status, body = await self.get("/health")
        if status != 200 or not isinstance(body, dict):
            raise Unanswered(f"error_{status}")
        jobs, workers = body.get("jobs"), body.get("workers")
        # With no worker running one is started by the first job.
        state = "failed" if number(workers, "unhealthy") and not number(workers, "ready") else "ready"
        return Health(state=state, waiting=number(jobs, "inQueue") + number(jobs, "inProgress"), body=body)

    async def _run(self, ask: Ask, job: dict[str, Any]) -> dict[str, Any]:
        """The job's last state; it is cancelled with the task that waits here."""
        ask.body.sent = True
        started = asyncio.ensure_future(self._call("POST", f"/runsync?wait={_WAIT_MS}", ask, job))
        try:
            state = await asyncio.shield(started)
            poll, lost = _FIRST_POLL, 0
            while state.get("status") not in _ENDED:
                await asyncio.sleep(poll)
                poll = min(poll * 1.5, _LONGEST_POLL)
                try:
                    state, lost = await self._call("GET", f"/status/{state['id']}", ask, None), 0
                except Unanswered:  # the job goes on whether or not it can be asked for
                    lost += 1
                    if lost == _MOST_LOST:
                        raise
        except (asyncio.CancelledError, TimeoutError):
            await asyncio.shield(self._cancel(started, ask))
            raise
        return state

    async def _cancel(self, started: "asyncio.Future[dict[str, Any]]", ask: Ask) -> None:
        with suppress(Unanswered, ServingError, TimeoutError):
            async with asyncio.timeout(2 * self.options.probe_seconds):
                job = await started
                await self._call("POST", f"/cancel/{job['id']}", ask, {})

    async def _call(self, method: str, path: str, ask: Ask, body: object) -> dict[str, Any]:
        """Raises ``Unanswered``, and ``ServingError`` for what RunPod itself refuses."""
        try:
            async with self.session.request(
                method,
                f"{self.url}{path}",
                headers=self._headers(ask) + [("content-type", "application/json")] * (body is not None),
                data=None if body is None else orjson.dumps(body),
                allow_redirects=False,
            ) as response:
                content = await response.content.read(_ANSWER_BYTES)
                while not response.content.at_eof() and len(content) < _ANSWER_BYTES:
                    content += await response.content.read(_ANSWER_BYTES)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            ask.body.sent = False
            raise Unanswered(type(error).__name__, unreached=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unanswered(type(error).__name__) from None
        if response.status == 429:
            raise CapacityError("queue_full", "the endpoint's queue is full; try again later", retry_after=5)
        try:
            state = orjson.loads(content)
        except orjson.JSONDecodeError:
            state = None
        if response.status != 200 or not isinstance(state, dict) or not isinstance(state.get("id"), str):
            raise Unanswered(f"status {response.status} of RunPod's queue")
        return state

    def _headers(self, ask: Ask) -> list[tuple[str, str]]:
        """Of the caller's own, those that say what the body is; none that says who the caller is."""
        kept = _OF_THE_BODY if _QUEUE.fullmatch(ask.path) else _OF_THE_JOB
        own = [(name.decode(), value.decode("latin-1")) for name, value in ask.headers if name in kept]
        return [*own, ("authorization", f"Bearer {self.key}"), ("x-request-id", ask.request_id)]

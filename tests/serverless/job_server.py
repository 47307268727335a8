"""RunPod's side of a worker's wire, on loopback: job-take, job-take-batch, job-stop, job-done, ping.

Paths, verbs and status codes are those that runpod 1.12 reads and writes (rp_job.py, rp_http.py,
rp_ping.py). A poll is held open until there is a job; a job is handed out only to a client that is
still connected, and every post is kept, so that a lost, doubled or late answer shows.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

LARGEST_POST = 20_000_000  # what the platform takes

Job = dict[str, Any]


@dataclass
class JobServer:
    """Use as an async context. ``hold`` is how long an empty poll is kept open, in seconds."""

    hold: float = 60.0
    refuse_posts: int = 0  # so many next posts of results are answered 500
    refuse_polls: int = 0  # so many next polls for jobs are answered 429

    queued: list[Job] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    results: dict[str, list[Job]] = field(default_factory=dict)
    updates: dict[str, list[Job]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    reopened: list[str] = field(default_factory=list)
    pings: list[dict[str, str]] = field(default_factory=list)
    polls: int = 0  # open at this moment
    stop_polls: int = 0
    asked: list[int] = field(default_factory=list)  # the batch sizes that polls asked for
    events: list[str] = field(default_factory=list)
    _stops: list[str] = field(default_factory=list)
    _release_stop_polls: bool = False

    async def __aenter__(self) -> "JobServer":
        self._changed = asyncio.Event()
        app = web.Application(client_max_size=LARGEST_POST)
        app.router.add_get("/v2/ep/job-take/{worker}", self._take_one)
        app.router.add_get("/v2/ep/job-take-batch/{worker}", self._take_batch)
        app.router.add_get("/v2/ep/job-stop/{worker}", self._stop_poll)
        app.router.add_post("/v2/ep/job-done/{worker}/{job}", self._done)
        app.router.add_get("/v2/ep/ping/{worker}", self._ping)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.base = f"http://{host}:{port}/v2/ep"
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._runner.cleanup()

    def environment(self) -> dict[str, str]:
        """What RunPod sets in a worker's container."""
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{self.base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_AI_API_KEY": "test-key",
            "RUNPOD_POD_ID": "worker-1",
            "RUNPOD_PING_INTERVAL": "1000",
            # The SDK's own checks ask 8.8.8.8 and want 4 GB: of the machine, not of this project.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def add(self, jobs: Iterable[Job]) -> None:
        self.queued += jobs
        self._note("queued")

    def stop(self, job_id: str) -> None:
        self._stops.append(job_id)
        self._note(f"stop {job_id}")

    def release_stop_polls(self) -> None:
        """Answer the open stop poll, as the platform does after a while."""
        self._release_stop_polls = True
        self._note("stop polls released")

    async def until(self, holds: Callable[[], object], within: float = 30.0) -> None:
        """Wait until ``holds()``; looked at after everything that happens here."""
        async with asyncio.timeout(within):
            while not holds():
                await self._next_event()

    def answer(self, job_id: str) -> Job:
        """The one result of a job."""
        posted = self.results[job_id]
        assert len(posted) == 1, f"{job_id} was answered {len(posted)} times"
        return posted[0]

    def _note(self, event: str) -> None:
        self.events.append(event)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _next_event(self) -> None:
        await self._changed.wait()

    async def _wait_here(self, request: web.Request, holds: Callable[[], object]) -> bool:
        """True when ``holds()`` in time and the client is still there."""
        try:
            async with asyncio.timeout(self.hold):
                while not holds():
                    await self._next_event()
        except TimeoutError:
            return False
        return request.transport is not None and not request.transport.is_closing()

    async def _take_one(self, request: web.Request) -> web.Response:
        jobs = await self._hand_out(request, 1)
        return jobs if isinstance(jobs, web.Response) else web.json_response(jobs[0])

    async def _take_batch(self, request: web.Request) -> web.Response:
        jobs = await self._hand_out(request, int(request.query["batch_size"]))
        return jobs if isinstance(jobs, web.Response) else web.json_response(jobs)

    async def _hand_out(self, request: web.Request, most: int) -> list[Job] | web.Response:
        if self.refuse_polls > 0:
            self.refuse_polls -= 1
            self._note("poll refused")
            return web.Response(status=429)
        self.polls += 1
        self.asked.append(most)
        self._note("poll")
        try:
            if not await self._wait_here(request, lambda: self.queued):
                return web.Response(status=204)
        finally:  # also when the client leaves: that cancels this handler
            self.polls -= 1
            self._note("poll closed")
        jobs, self.queued = self.queued[:most], self.queued[most:]
        self.taken += [job["id"] for job in jobs]
        self._note("taken " + " ".join(job["id"] for job in jobs))
        return jobs

    async def _stop_poll(self, request: web.Request) -> web.Response:
        self.stop_polls += 1
        self._note("stop poll")
        try:
            there = await self._wait_here(request, lambda: self._stops or self._release_stop_polls)
        finally:
            self.stop_polls -= 1
        stops, self._stops = self._stops if there else [], [] if there else self._stops
        return web.json_response({"jobsToStop": stops}) if stops else web.Response(status=204)

    async def _done(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job"]
        payload = json.loads(await request.text())
        if payload.get("status") == "IN_PROGRESS":
            self.updates.setdefault(job_id, []).append(payload)
            if job_id in self.results:
                self.reopened.append(job_id)
            self._note(f"update {job_id}")
            return web.json_response({})
        if self.refuse_posts > 0:
            self.refuse_posts -= 1
            self.refused.append(job_id)
            self._note(f"refused {job_id}")
            return web.Response(status=500)
        self.results.setdefault(job_id, []).append(payload)
        self._note(f"done {job_id}")
        return web.json_response({})

    async def _ping(self, request: web.Request) -> web.Response:
        self.pings.append(dict(request.query))
        self._note("ping")
        return web.json_response({})

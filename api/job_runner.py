"""``JobRunner``: carries out the store's jobs, a few at a time, and tells those who wait.

It refuses to know what a job asks for: each dialect brings a coroutine function that turns a record into
an outcome. All ends of jobs pass through here, so that nobody waits for news that has been.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress

from api.job_news import JobNews
from api.job_record import JobOutcome, JobRecord, JobState, NewJob
from api.job_store import JobStore
from core.errors import CapacityError, ExecutionError, ServingError
from core.result import OnProgress, Progress

log = logging.getLogger("batchmux.jobs")

# Raises ``ServingError``. Cancelling it must end the work. ``OnProgress`` may be called from any thread.
Work = Callable[[JobRecord, OnProgress], Awaitable[JobOutcome]]

_LOOK_SECONDS = 1.0  # between looks for jobs whose waiting or time is over
_OBEY_SECONDS = 5.0  # for cancelled work to end
_STORE_SECONDS = 30.0  # for which a result waits for room in the store
_FIRST_BACK_OFF = 0.5
_LONGEST_BACK_OFF = 30.0
# No job would get further than the one that met these; ``model_loading`` may concern its model alone.
_EVERYBODYS = frozenset({"queue_full", "not_ready", "shutting_down"})


class JobRunner:
    """Use from one event loop: ``start``, in the end ``drain``. The store is closed by who opened it.

    dialects:    name -> what carries its jobs out.
    concurrency: jobs in hand at once; their bodies are in memory.
    forget_seconds: between looks for finished jobs that were kept long enough.
    """

    def __init__(
        self,
        store: JobStore,
        dialects: Mapping[str, Work],
        *,
        concurrency: int = 8,
        forget_seconds: float = 10.0,
    ) -> None:
        self.store = store
        self._dialects = dialects
        self._concurrency = concurrency
        self._forget_seconds = forget_seconds
        self._news = JobNews()
        self._runs: dict[str, asyncio.Task[JobOutcome]] = {}  # what can be cancelled
        self._watches: set[asyncio.Task[None]] = set()  # what sees each of them through
        self._loops: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._paused_until = 0.0
        self._stopping = False
        self._drained = False

    def start(self) -> None:
        self._loops = [asyncio.ensure_future(self._take()), asyncio.ensure_future(self._keep_house())]

    async def drain(self, seconds: float) -> None:
        """Take no new work, let what runs finish for so long, and queue the rest for the next process."""
        self._stopping = True
        self._wake.set()
        taking, keeping = self._loops
        await taking
        if self._watches:
            await asyncio.wait(self._watches, timeout=seconds)
        for task in self._runs.values():
            task.cancel()
        if self._watches:
            await asyncio.wait(self._watches)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        self._drained = True
        self._news.silence()

    async def create(self, new: NewJob) -> tuple[JobRecord, bool]:
        """As ``JobStore.create``; raises ``CapacityError`` ``shutting_down`` too."""
        if new.dialect not in self._dialects:
            raise ValueError(f"nothing carries out jobs of {new.dialect!r}")
        self._refuse_when_stopping()
        job = await self.store.create(new)
        self._wake.set()
        return job

    async def cancel(self, owner: str, id: str) -> JobRecord:
        """The job after it; one that had ended stays as it was. Raises as ``JobStore.get`` does."""
        job = await self.store.cancel(owner, id)
        run = self._runs.get(id)
        if run is not None and job.state is JobState.CANCELLED:
            run.cancel()
        self._news.left(id)
        return job

    async def retry(self, owner: str, id: str) -> JobRecord:
        """As ``JobStore.retry``; raises ``CapacityError`` ``shutting_down`` too."""
        self._refuse_when_stopping()
        job = await self.store.retry(owner, id)
        self._wake.set()
        return job

    async def purge_queue(self, owner: str) -> int:
        """Cancel what the owner has waiting; how many."""
        ids = await self.store.purge_queue(owner)
        for id in ids:
            self._news.left(id)
        return len(ids)

    async def wait(self, owner: str, id: str, seconds: float) -> JobRecord:
        """The job once it has ended, or as it is after so many seconds or at the end of a drain.

        Raises as ``JobStore.get`` does.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        over = False
        with self._news.listen(id) as listener:
            while True:
                job = await self.store.get(owner, id)
                if job.state.terminal or self._drained or over:
                    return job
                over = not await listener.heard(max(end - clock(), 0))

    def progress(self, id: str) -> Progress | None:
        """Where a running job stands, if it has said so. The caller has looked whose it is."""
        return self._news.progress(id)

    async def follow(self, owner: str, id: str) -> AsyncGenerator[Progress, None]:
        """What a job reports, from now to its end; a slow reader gets the latest only.

        Raises as ``JobStore.get`` does.
        """
        with self._news.listen(id, progress=True) as listener:
            await self.store.get(owner, id)
            seen: Progress | None = None
            while not (self._drained or listener.over):
                latest = self._news.progress(id)
                if latest is None and (await self.store.get(owner, id)).state.terminal:
                    return
                if latest is not None and latest is not seen:
                    seen = latest
                    yield latest
                await listener.heard()

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise CapacityError("shutting_down", "this server is shutting down; try again shortly")

    # The two loops.

    async def _take(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._stopping:
            self._wake.clear()
            rest = self._paused_until - clock()
            free = self._concurrency - len(self._runs)
            if free > 0 and rest <= 0:
                for job in await self._claim(free):
                    self._begin(job)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(rest, _LOOK_SECONDS) if rest > 0 else _LOOK_SECONDS):
                    await self._wake.wait()

    async def _claim(self, free: int) -> list[JobRecord]:
        try:
            return await self.store.claim(free)
        except ServingError as error:
            log.error("no job can be taken: %s", error)
        except Exception:  # the loop goes on, whatever one look at the jobs met
            log.exception("no job can be taken")
        return []

    async def _keep_house(self) -> None:
        clock = asyncio.get_running_loop().time
        forget_at = clock()
        while True:
            try:
                for id in await self.store.expire_queued():
                    self._news.left(id)
                if clock() >= forget_at:
                    forget_at = clock() + self._forget_seconds
                    await self.store.forget()
            except ServingError as error:
                log.error("the job store cannot be tidied: %s", error)
            except Exception:
                log.exception("the job store cannot be tidied")
            await asyncio.sleep(_LOOK_SECONDS)

    # One run.

    def _begin(self, job: JobRecord) -> None:
        run = asyncio.ensure_future(self._work(job))
        self._runs[job.id] = run
        watch = asyncio.ensure_future(self._see_through(job, run))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def _work(self, job: JobRecord) -> JobOutcome:
        loop = asyncio.get_running_loop()

        def on_progress(progress: Progress) -> None:
            with suppress(RuntimeError):  # the loop has ended before the device thread
                loop.call_soon_threadsafe(self._moved, job, progress)

        work = self._dialects.get(job.dialect)
        if work is None:  # accepted by another version of this program
            raise ExecutionError("pipeline_error", "this server does not know this kind of job any more")
        return await work(job, on_progress)

    def _moved(self, job: JobRecord, progress: Progress) -> None:
        if job.id in self._runs:
            self._news.moved(job.id, progress)

    async def _see_through(self, job: JobRecord, run: "asyncio.Task[JobOutcome]") -> None:
        """Until the end of this run is durable."""
        try:
            await asyncio.wait((run,), timeout=self._seconds(job))
            late = not run.done()
            if late:
                run.cancel()
                await asyncio.wait((run,), timeout=_OBEY_SECONDS)
            await self._conclude(job, run, late)
        except Exception:  # the job then stays as it is until the next start
            log.exception("job %s cannot be concluded", job.id)
        finally:
            if self._runs.get(job.id) is run:
                del self._runs[job.id]
            self._news.left(job.id)
            self._wake.set()

    def _seconds(self, job: JobRecord) -> float | None:
        """What is left of the shorter of its two limits."""
        limits = [] if job.execution_timeout is None else [job.execution_timeout]
        if job.deadline is not None:
            limits.append(max(job.deadline - self.store.clock(), 0.0))
        return min(limits, default=None)

    async def _conclude(self, job: JobRecord, run: "asyncio.Task[JobOutcome]", late: bool) -> None:
        if late:
            text = "the job was not done within its time; allow more or ask for less"
            await self._fail(job, ExecutionError("deadline_exceeded", text), expired=True)
        elif run.cancelled():  # by a drain; or by its caller, and then the store knows already
            error = ExecutionError("pipeline_error", "the work was cancelled from within")
            await self._release(job, error, counted=not self._stopping)
        elif (failure := run.exception()) is None:
            await self._succeed(job, run.result())
        elif isinstance(failure, CapacityError) and failure.retryable:
            await self._release(job, failure, counted=False)
        elif isinstance(failure, ServingError) and failure.retryable:
            await self._release(job, failure, counted=True)
        elif isinstance(failure, ServingError):
            await self._fail(job, failure)
        else:
            log.error("job %s failed in a way nobody foresaw", job.id, exc_info=failure)
            await self._fail(job, ExecutionError("pipeline_error", "the server failed on this request"))

    async def _succeed(self, job: JobRecord, outcome: JobOutcome) -> None:
        """A result that the store has no room for waits a while, and holds its place among the runs
        meanwhile: nothing new is begun that could not be kept either."""
        try:
            await self._insist(lambda: self.store.succeed(job.id, job.lease, outcome), _STORE_SECONDS)
        except ServingError as error:
            await self._fail(job, error)

    async def _fail(self, job: JobRecord, error: ServingError, *, expired: bool = False) -> None:
        await self._insist(lambda: self.store.fail(job.id, job.lease, error, expired=expired))

    async def _release(self, job: JobRecord, error: ServingError, *, counted: bool) -> None:
        delay = error.retry_after or _FIRST_BACK_OFF * 2.0 ** min(job.lease - 1, 10)
        delay = 0.0 if self._stopping else min(delay, _LONGEST_BACK_OFF)
        if error.code in _EVERYBODYS:
            self._paused_until = asyncio.get_running_loop().time() + delay
        await self._insist(lambda: self.store.release(job.id, job.lease, error, delay=delay, counted=counted))

    async def _insist(self, change: Callable[[], Awaitable[bool]], seconds: float | None = None) -> None:
        """Until the store takes it, ``seconds`` are over or this process is about to end."""
        clock = asyncio.get_running_loop().time
        began, delay = clock(), _FIRST_BACK_OFF
        while True:
            try:
                await change()
                return
            except CapacityError:
                if self._stopping or (seconds is not None and clock() - began > seconds):
                    raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_BACK_OFF)

"""A worker process under a platform like RunPod, for tests to script."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.serverless.job_server import JobServer

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[[JobServer, "Worker"], Awaitable[None]]


class Worker:
    """The process, and what it printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._printed = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())
            printed, self._printed = self._printed, asyncio.Event()
            printed.set()

    async def says(self, words: str) -> str:
        async with asyncio.timeout(20):
            while True:
                for line in self.lines:
                    if words in line:
                        return line
                await self._printed.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """With its heartbeat process, which would outlive it."""
        os.killpg(self.process.pid, signal.SIGKILL)

    async def ended(self, within: float = 20.0) -> int:
        async with asyncio.timeout(within):
            status = await self.process.wait()
            await self._reader
        return status

    @property
    def counts(self) -> dict[str, int]:
        """Of jobs by their end, without the warm-up."""
        line = next(line for line in self.lines if "ended with" in line)
        counts: dict[str, int] = json.loads(
            line.partition("ended with ")[2].partition(";")[0].replace("'", '"')
        )
        counts["accepted"] -= 1
        counts["succeeded"] -= 1
        assert counts.pop("accepted") == sum(counts.values())
        return counts

    @property
    def forwards(self) -> list[tuple[float, int]]:
        """When each ended, and with how many rows."""
        line = next(line for line in self.lines if line.startswith("REPORT "))
        return [(when, rows) for when, rows in json.loads(line.removeprefix("REPORT "))["forwards"]]


def scenario(
    script: Script, *, step_seconds: float = 0.02, fault: str = "", polls: bool = True, **environment: str
) -> tuple[JobServer, Worker]:
    """A worker, ``script`` once it polls, and its end; a process that is left over is a failure."""

    async def main() -> tuple[JobServer, Worker]:
        async with JobServer() as server:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.serverless.worker_process", str(step_seconds)),
                *([fault] if fault else []),
                cwd=ROOT,
                env=os.environ | server.environment() | environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                limit=2**22,
            )
            worker = Worker(process)
            try:
                await server.until(lambda: not polls or (server.polls and server.stop_polls))
                await script(server, worker)
                assert process.returncode is not None, "the script must see the worker end"
            except BaseException:
                print("\n".join(line[:300] for line in worker.lines[-40:]))
                raise
            finally:
                if process.returncode is None:
                    worker.kill()
                    await worker.ended()
            assert server.reopened == [], "progress that lands after a result re-opens the job"
            return server, worker

    return asyncio.run(main())


async def leave(worker: Worker, status: int = 0) -> None:
    worker.terminate()
    assert await worker.ended() == status

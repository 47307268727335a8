"""A real gateway on loopback in front of real workers, and a proxy between them that fails as it is told."""

import asyncio
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException

from api.server import ServerOptions, make_server
from gateway.app import Gateway, create_app
from gateway.options import GatewayOptions
from tests.api.serving import Answer, Client, Served, paint, png, serving, text

PICTURE = text(png(64, 64))
SMALL = {"width": 64, "height": 64}


@dataclass
class Fronted:
    client: Client
    gateway: Gateway
    loop: asyncio.AbstractEventLoop

    def soon(self, call: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(call)


@contextmanager
def fronting(servers: Sequence[str | int], **options: object) -> Iterator[Fronted]:
    """A gateway; ``servers`` are ports or addresses. Its waits are short, so that tests are."""
    urls = tuple(f"http://127.0.0.1:{each}" if isinstance(each, int) else each for each in servers)
    short: dict[str, object] = {
        **{"timeout": 10.0, "max_concurrent": 32, "probe_every": 0.1, "connect_seconds": 2.0},
        **{"continue_seconds": 1.0, "silent_seconds": 2.0},
    }
    app, gateway = create_app(GatewayOptions(servers=urls, **(short | options)))  # type: ignore[arg-type]
    listener = socket.create_server(("127.0.0.1", 0))
    loops: list[asyncio.AbstractEventLoop] = []
    listening = threading.Event()

    def on_listening() -> None:
        loops.append(asyncio.get_running_loop())
        gateway.start()
        listening.set()

    running = make_server(app, ServerOptions(), drain=lambda seconds: None, on_listening=on_listening)
    thread = threading.Thread(target=running.run, args=([listener],))
    thread.start()
    try:
        assert listening.wait(10)
        yield Fronted(Client(listener.getsockname()[1]), gateway, loops[0])
    finally:
        asyncio.run_coroutine_threadsafe(gateway.stop(), loops[0]).result(10)
        running.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


class FaultProxy:
    """TCP from a port of its own to a server's, with one fault at a time; ``fault`` may change at any moment.

    The fault is that of the moment in which a request begins. Health checks pass, except where nothing does.
    """

    EVERYTHING = frozenset({"refused", "half_open"})

    def __init__(self, target: int) -> None:
        self.target = target
        self.fault = ""
        self.once = False  # the fault is over when it has hit a request
        self.hits: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self._server = self._do(self._listen())

    def _do(self, work: object) -> asyncio.Server:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)  # type: ignore[arg-type]

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def refuse(self) -> None:
        """As a machine on which nothing listens; open connections end."""

        async def stop() -> None:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()

        self._do(stop())

    def accept(self, target: int | None = None) -> None:
        self.target = target or self.target
        self._server = self._do(self._listen())

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            with suppress(OSError, asyncio.CancelledError):
                await _Pair(self, reader, writer).run()
        finally:
            self._tasks.discard(task)
            self._open.discard(writer)
            writer.transport.abort()


@dataclass
class _Pair:
    proxy: FaultProxy
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    fault: str = ""
    up: asyncio.StreamWriter | None = None
    down: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            while chunk := await self.reader.read(65536):
                if chunk.startswith((b"GET ", b"POST ", b"DELETE ")):
                    health = chunk.startswith(b"GET /health ")
                    self.fault = self.proxy.fault
                    if health and self.fault not in FaultProxy.EVERYTHING:
                        self.fault = ""
                    if self.fault and not health:
                        self.proxy.hits[self.fault] += 1
                        self.proxy.fault = "" if self.proxy.once else self.fault
                    if await self._at_once():
                        return
                await self._pass_up(chunk)
        finally:
            if self.down is not None:
                self.down.cancel()
            if self.up is not None:
                self.up.transport.abort()

    async def _at_once(self) -> bool:
        """Faults that need no server. Whether the connection is over."""
        match self.fault:
            case "reset_before":
                self._reset()
            case "garbage":
                self.writer.write(b"\x00\x01\x02 what is this?\r\n\r\n")
                await self.writer.drain()
            case "error_at_once":
                self.writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
                await self.writer.drain()
            case "half_open":
                await self.reader.read()  # until the other side gives up
            case _:
                return False
        return True

    async def _pass_up(self, chunk: bytes) -> None:
        if self.up is None:
            answers, self.up = await asyncio.open_connection("127.0.0.1", self.proxy.target)
            self.down = asyncio.ensure_future(self._pass_down(answers))
        self.up.write(chunk)
        await self.up.drain()

    async def _pass_down(self, answers: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while chunk := await answers.read(65536):
                if not chunk.startswith(b"HTTP/1.1 100 ") or chunk.count(b"HTTP/1.1") > 1:
                    if self.fault == "reset_after":
                        self._reset()
                        return
                    if self.fault == "cut_body":
                        self.writer.write(chunk[: len(chunk) - 20])
                        await self.writer.drain()
                        break
                    if self.fault in ("slow_headers", "slow_body"):
                        await self._slowly(chunk)
                        continue
                self.writer.write(chunk)
                await self.writer.drain()
        self.writer.close()

    async def _slowly(self, chunk: bytes) -> None:
        """A few pieces with a pause after each: before the headers end, or after."""
        start = 0 if self.fault == "slow_headers" else chunk.find(b"\r\n\r\n") + 4
        self.writer.write(chunk[:start])
        for at in range(start, start + 60, 20):
            self.writer.write(chunk[at : at + 20])
            await self.writer.drain()
            await asyncio.sleep(0.01)
        self.writer.write(chunk[start + 60 :])
        await self.writer.drain()

    def _reset(self) -> None:
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Load:
    """What became of many requests, each with a seed of its own, which its picture must show."""

    answered: list[tuple[int, Answer | None]] = field(default_factory=list)

    @property
    def good(self) -> int:
        return sum(answer is not None and answer.status == 200 for _, answer in self.answered)

    @property
    def broken(self) -> int:
        """Transfers that the caller saw break off."""
        return sum(answer is None for _, answer in self.answered)

    def check(self) -> None:
        """Every 200 is whole and its own caller's; everything else says what it is."""
        for seed, answer in self.answered:
            if answer is None:
                continue
            if answer.status == 200:
                assert answer.picture().convert("RGB").getpixel((0, 0)) == tuple(paint(seed)), seed
            else:
                assert answer.json()["code"], answer


def ask(client: Client, seed: int) -> Answer | None:
    """One edit; None where the answer broke off."""
    body = {"input": {"prompt": "paint", "image_base64": PICTURE, "seed": seed, **SMALL}}
    data = json.dumps(body).encode()
    try:
        return client.request("POST", "/run", data, {"Content-Type": "application/json"})
    except (OSError, HTTPException):
        return None


def load(
    client: Client, seeds: range, *, at_once: int = 8, between: Callable[[int], None] | None = None
) -> Load:
    """Closed loops; ``between`` is called before each request, with its number."""

    def one(seed: int) -> tuple[int, Answer | None]:
        if between is not None:
            between(seed - seeds.start)
        return seed, ask(client, seed)

    with ThreadPoolExecutor(at_once) as pool:
        return Load(list(pool.map(one, seeds)))


def executed(*workers: Served) -> Counter[int]:
    """How often each seed was computed, by all of them."""
    seen: Counter[int] = Counter()
    for worker in workers:
        while not worker.painter.entered.empty():
            seen[worker.painter.entered.get_nowait().seed] += 1
    return seen


@contextmanager
def two_workers() -> Iterator[tuple[Served, Served]]:
    with ExitStack() as stack:
        yield stack.enter_context(serving()), stack.enter_context(serving())


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for another thread, with a timeout."""
    waiting = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if true():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not happen")

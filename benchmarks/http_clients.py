"""The client side of ``benchmarks.http_load``: closed-loop callers that cost next to nothing.

One process, raw sockets, a request written once; a checked sample keeps it honest.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

import uvloop


class Caller(asyncio.BufferedProtocol):
    """Sends its request, waits for the whole answer, sends again, until told to stop."""

    def __init__(self, request: bytes, tally: "Tally") -> None:
        self._request = request
        self._tally = tally
        self._buffer = bytearray(4 * 2**20)
        self._room = memoryview(self._buffer)
        self._filled = 0
        self._expected = 0
        self._sent_at = 0.0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room[self._filled :]

    def buffer_updated(self, count: int) -> None:
        self._filled += count
        if not self._expected:
            end = self._buffer.find(b"\r\n\r\n", 0, self._filled)
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self._expected = end + 4 + length
            self._ok = head.startswith(b"http/1.1 200")
            self._tally.rows += int(head.partition(b"x-batch-size: ")[2].partition(b"\r\n")[0] or 0)
        if self._filled < self._expected:
            return
        self._tally.add(self._sent_at, time.perf_counter(), self._ok, self._expected)
        if self._tally.over:
            self._tally.samples.append(bytes(self._buffer[: self._expected]))
            self._transport.close()
        else:
            self._send()

    def _send(self) -> None:
        self._filled = self._expected = 0
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)


class Tally:
    """Answers that were asked for and came within the window of measurement."""

    def __init__(self, start: float, seconds: float) -> None:
        self.start, self.end = start, start + seconds
        self.latencies: list[float] = []
        self.total = 0
        self.rows = 0  # sum of the batch sizes that the answers name
        self.finished = 0
        self.failed = 0
        self.answer_bytes = 0
        self.over = False
        self.samples: list[bytes] = []

    def add(self, sent: float, received: float, ok: bool, size: int) -> None:
        self.over = received >= self.end
        self.answer_bytes = size
        self.total += 1
        self.failed += not ok
        if self.start <= received < self.end:
            self.finished += 1
            if sent >= self.start:
                self.latencies.append(received - sent)


async def run(port: int, body: bytes, clients: int, warm_up: float, seconds: float) -> Tally:
    head = (
        "POST /run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    tally = Tally(time.perf_counter() + warm_up, seconds)
    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: Caller(request, tally), "127.0.0.1", port))[1]
        for _ in range(clients)
    ]
    await asyncio.gather(*(caller.closed for caller in callers))
    return tally


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--body", type=Path, required=True)
    arguments.add_argument("--clients", type=int, required=True)
    arguments.add_argument("--warm-up", type=float, required=True)
    arguments.add_argument("--seconds", type=float, required=True)
    arguments.add_argument("--sample", type=Path, required=True, help="where one answer's body is put")
    options = arguments.parse_args()
    tally = uvloop.run(
        run(options.port, options.body.read_bytes(), options.clients, options.warm_up, options.seconds)
    )
    options.sample.write_bytes(tally.samples[0].partition(b"\r\n\r\n")[2])
    print(
        json.dumps(
            {
                "total": tally.total,
                "batch": tally.rows / tally.total,
                "finished": tally.finished,
                "failed": tally.failed,
                "seconds": options.seconds,
                "latencies": tally.latencies,
                "answer_bytes": tally.answer_bytes,
                "cpu": time.process_time(),
            }
        )
    )


if __name__ == "__main__":
    main()

"""The client side of ``benchmarks.http_load``: closed-loop callers that cost next to nothing.

One process, a blocking socket and a thread for each caller, so that callers move their bytes at the same
time, as callers on machines of their own do; a checked sample keeps it honest.
"""

import argparse
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Tally:
    """Answers that were asked for and came within the window of measurement.

    waited: seconds that the server says it did nothing, which count for nothing here.
    """

    def __init__(self, start: float, seconds: float) -> None:
        self.start, self.end = start, start + seconds
        self.latencies: list[float] = []
        self.total = 0
        self.rows = 0  # sum of the batch sizes that the answers name
        self.finished = 0
        self.failed = 0
        self.answer_bytes = 0

    def add(self, sent: float, received: float, ok: bool, size: int, batch: int, waited: float) -> None:
        self.answer_bytes = size
        self.total += 1
        self.rows += batch
        self.failed += not ok
        if self.start <= received < self.end:
            self.finished += 1
            if sent >= self.start:
                self.latencies.append(received - sent - waited)


def call(port: int, request: bytes, tally: Tally, room_for: int) -> bytes:
    """Send, wait for the whole answer, send again, until the window is over; the last answer."""
    buffer = bytearray(room_for)
    room = memoryview(buffer)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            sent_at = time.perf_counter()
            connection.sendall(request)
            filled = connection.recv_into(room)
            while (end := buffer.find(b"\r\n\r\n", 0, filled)) < 0:
                filled += connection.recv_into(room[filled:])
            head = bytes(room[:end]).lower()
            length = end + 4 + int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while filled < length:
                filled += connection.recv_into(room[filled:length], length - filled, socket.MSG_WAITALL)
            received = time.perf_counter()
            batch = int(head.partition(b"x-batch-size: ")[2].partition(b"\r\n")[0] or 0)
            waited = float(head.partition(b"x-waited-ms: ")[2].partition(b"\r\n")[0] or 0) / 1000
            tally.add(sent_at, received, head.startswith(b"http/1.1 200"), length, batch, waited)
            if received >= tally.end:
                return bytes(room[end + 4 : length])


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--body", type=Path, required=True)
    arguments.add_argument("--clients", type=int, required=True)
    arguments.add_argument("--warm-up", type=float, required=True)
    arguments.add_argument("--seconds", type=float, required=True)
    arguments.add_argument("--sample", type=Path, required=True, help="where one answer's body is put")
    arguments.add_argument("--buffer", type=int, default=4 * 2**20, help="bytes of the largest answer")
    options = arguments.parse_args()
    body = options.body.read_bytes()
    head = (
        "POST /run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    tally = Tally(time.perf_counter() + options.warm_up, options.seconds)
    with ThreadPoolExecutor(options.clients) as pool:
        sent = head.encode() + body
        calls = [pool.submit(call, options.port, sent, tally, options.buffer) for _ in range(options.clients)]
        samples = [done.result() for done in calls]
    options.sample.write_bytes(samples[0])
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

"""The server behind the proxies of ``benchmarks.gateway``: takes a body, waits, answers."""

import argparse
import asyncio
import random
import time
from typing import Any

from api.server import ServerOptions, serve


class Waiting:
    """ASGI. Half to one and a half of ``seconds`` before each answer of ``size`` bytes, which tells how long.

    Were all waits equal, callers whom a pause of the machine brought into step would stay so.
    """

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds = seconds
        self._answer = b'{"image":"' + b"A" * max(0, size - 12) + b'"}'
        self._health = b'{"state":"ready","jobs":{},"loaded_models":[]}'

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        probe = scope["path"] == "/health"
        began = time.perf_counter()
        if self._seconds and not probe:
            await asyncio.sleep(self._seconds * (0.5 + random.random()))
        answer = self._health if probe else self._answer
        waited = b"%.3f" % ((time.perf_counter() - began) * 1000)
        headers = [(b"content-length", b"%d" % len(answer)), (b"x-waited-ms", waited)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--seconds", type=float, default=0.0)
    arguments.add_argument("--answer", type=int, default=200, help="bytes")
    options = arguments.parse_args()
    serve(
        Waiting(options.seconds, options.answer),
        ServerOptions(port=options.port, drain_seconds=1),
        drain=lambda seconds: None,
        on_listening=lambda: print("listening", flush=True),
    )


if __name__ == "__main__":
    main()

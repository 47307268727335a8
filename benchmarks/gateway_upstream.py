"""The server behind the proxies of ``benchmarks.gateway``: takes a body, waits, answers."""

import argparse
import asyncio
import random
from typing import Any

from api.server import ServerOptions, serve


class Waiting:
    """ASGI. ``seconds`` before each answer of ``size`` bytes; up to twice as many for a connection's first.

    So callers who begin together do not go on in step, which would measure how a burst is served.
    """

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds = seconds
        self._known: set[Any] = set()
        self._answer = b'{"image":"' + b"A" * max(0, size - 12) + b'"}'
        self._health = b'{"state":"ready","jobs":{},"loaded_models":[]}'

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        probe = scope["path"] == "/health"
        if self._seconds and not probe:
            first = scope["client"] not in self._known
            self._known.add(scope["client"])
            await asyncio.sleep(self._seconds * (1 + random.random() * first))
        answer = self._health if probe else self._answer
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
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

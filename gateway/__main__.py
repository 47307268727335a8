"""``python -m gateway``: serve until SIGTERM, then finish what is under way."""

import asyncio
import sys
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import suppress

import settings
from api.server import ServerOptions, serve
from gateway.app import from_settings


def main() -> int:
    try:
        config = settings.load()
        app, gateway = from_settings()
    except settings.BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    loops: list[asyncio.AbstractEventLoop] = []

    def listening() -> None:
        loops.append(asyncio.get_running_loop())
        gateway.start()

    def drain(seconds: float) -> None:
        idle: Future[None] = Future()

        def tell() -> None:
            if not idle.done():
                idle.set_result(None)

        loops[0].call_soon_threadsafe(gateway.drain, tell)
        with suppress(Late):
            idle.result(seconds)
        asyncio.run_coroutine_threadsafe(gateway.stop(), loops[0]).result()

    options = ServerOptions(host=config.api_host, port=config.api_port, drain_seconds=config.drain_seconds)
    serve(app, options, drain=drain, on_listening=listening)
    return 0


if __name__ == "__main__":
    sys.exit(main())

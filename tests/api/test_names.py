"""A name that nobody answers for keeps no other waiting."""

import asyncio
import threading
from typing import Any

from api.names import Names


class Resolver:
    """The system's, where every name that begins with "slow" waits for a gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def __call__(self, host: str, port: int, type: int) -> list[Any]:
        if host.startswith("slow"):
            assert self.gate.wait(10)
        return [(2, type, 6, "", ("192.0.2.1", port))]


def test_slow_names_do_not_hold_up_others_nor_do_busy_default_threads() -> None:
    """uvloop looks up two names at a time, and asyncio shares its threads with everything else."""

    async def crowd(resolver: Resolver) -> list[str]:
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(None, resolver.gate.wait, 10) for _ in range(64)]
        names = Names(4, resolver)
        slow = [asyncio.ensure_future(names(f"slow{at}.example", 80)) for at in range(3)]
        try:
            async with asyncio.timeout(5):
                found = list(await names("fast.example", 80))
        finally:
            resolver.gate.set()
            await asyncio.gather(*slow, *busy)
            names.close()
        return found

    assert asyncio.run(crowd(Resolver())) == ["192.0.2.1"]


def test_a_literal_is_its_own_address() -> None:
    """In every spelling that the system's dialler takes."""
    names = Names()
    assert asyncio.run(_all(names, ["127.0.0.1", "127.1", "2130706433", "::1"])) == [
        ["127.0.0.1"],
        ["127.0.0.1"],
        ["127.0.0.1"],
        ["::1"],
    ]
    names.close()


async def _all(names: Names, hosts: list[str]) -> list[list[str]]:
    return [list(await names(host, 80)) for host in hosts]

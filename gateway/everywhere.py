"""Questions that concern all servers: each is asked, and one answer is made of theirs.

Lists become one list, counts are added, and what changes something succeeds only where it did everywhere.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import orjson

from core.errors import ServingError, UpstreamError
from gateway.asking import Ask, CutOff, Reply, Unanswered, once
from gateway.refusals import reply
from gateway.upstream import Upstream

_MOST_BYTES: Final = 4 * 2**20


async def ask_all(ask: Ask, servers: Sequence[Upstream]) -> tuple[Upstream, Reply]:
    """A server whose answer stands for all, and that answer. Raises ``ServingError`` where there is none."""
    asks = {server: _page_of(ask, server) for server in servers}
    asked = [server for server, one in asks.items() if one is not None]
    found = await asyncio.gather(*(_ask(server, asks[server]) for server in asked))
    replies = [(server, *one) for server, one in zip(asked, found, strict=True) if one is not None]
    if not replies:
        raise UpstreamError("no_upstream", "no server answers this now; try again in a moment")
    bad = [(server, told, content) for server, told, content in replies if told.status >= 300]
    changes = ask.method != "GET" and not ask.path.endswith("/purge-queue")
    if bad and (changes or len(bad) == len(replies)):
        server, told, content = bad[0]
        return server, replace(told, chunks=once(content))
    good = [(server, told, content) for server, told, content in replies if told.status < 300]
    server, told, content = good[0]
    bodies = {one.name: _json(each) for one, _, each in good}
    alone = len(good) == 1 and ask.path != "/jobs"
    if alone or not all(isinstance(body, dict) for body in bodies.values()):
        return server, replace(told, chunks=once(content))
    return server, reply(merged(ask.path, bodies), told.status)


async def _ask(server: Upstream, ask: Ask | None) -> tuple[Reply, bytes] | None:
    assert ask is not None
    try:
        # Plain, for answers in another coding could not be made one.
        plain = [(name, value) for name, value in ask.headers if name != b"accept-encoding"]
        told = await server.ask(replace(ask, headers=plain))
    except (Unanswered, ServingError):
        return None
    try:
        return told, await told.whole(_MOST_BYTES)
    except CutOff:
        return None
    finally:
        await told.close()


def merged(path: str, bodies: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    listed = list(bodies.values())
    if path == "/jobs":
        return _jobs(bodies)
    if path.endswith("/models"):
        return listed[0] | {
            name: _union(listed, name, key) for name, key in (("data", "id"), ("models", "name"))
        }
    if path == "/models/status":
        return _models(listed)
    if path.endswith(("/health", "/purge-queue", "/purge")):
        total: dict[str, Any] = _sum(listed)
        return total
    return listed[0]


def _models(bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each kind the model of a server that has it loaded, where one has; memory is that of all."""
    kinds: dict[str, Any] = {}
    for body in bodies:
        for kind, model in (body.get("models") or {}).items():
            if kind not in kinds or (isinstance(model, dict) and model.get("loaded") is True):
                kinds[kind] = model
    total = sum(float(body.get("total_memory_mb") or 0) for body in bodies)
    return bodies[0] | {"models": kinds, "total_memory_mb": round(total, 1)}


def _union(bodies: Sequence[dict[str, Any]], name: str, key: str) -> list[Any]:
    """The first of each ``key``, in the order in which they are named."""
    rows: dict[Any, Any] = {}
    for body in bodies:
        for row in body.get(name) or []:
            rows.setdefault(row.get(key) if isinstance(row, dict) else row, row)
    return list(rows.values())


def _sum(values: Sequence[Any]) -> Any:
    """Counts added, at any depth; of anything else the first."""
    first = values[0]
    if isinstance(first, dict):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _sum([value[name] for value in values if name in value]) for name in names}
    counts = isinstance(first, int | float) and not isinstance(first, bool)
    return sum(values) if counts else first


def _jobs(bodies: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A page of each server's; ``after`` remembers where each of them stopped."""
    if not all(isinstance(body.get("jobs"), list) for body in bodies.values()):
        return {name: job for body in bodies.values() for name, job in body.items()}  # keyed by id
    jobs = [job for body in bodies.values() for job in body["jobs"]]
    jobs.sort(key=lambda job: str(job.get("created_at")), reverse=True)
    more = {name: body["after"] for name, body in bodies.items() if body.get("after")}
    return {"jobs": jobs, "after": urlencode(more) or None}


def _page_of(ask: Ask, server: Upstream) -> Ask | None:
    """The same question with the server's own ``after``; None where its last page was read."""
    if ask.path != "/jobs" or "after=" not in ask.query:
        return ask
    query = dict(parse_qsl(ask.query))
    own = dict(parse_qsl(query.get("after", ""))).get(server.name)
    if own is None:
        return None
    return replace(ask, target=f"{ask.path}?{urlencode(query | {'after': own})}")


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None

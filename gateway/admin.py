"""``/gateway/upstreams``: servers are listed, added, drained and removed while the gateway runs.

What was changed is kept in a file, from which the other processes of this gateway and the next start learn
it, unless they were configured with other servers. Without an admin key these paths do not exist.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import orjson

from api.body import parse_json
from core.errors import RequestError
from gateway.asking import Reply
from gateway.fleet import Fleet
from gateway.own import shown
from gateway.refusals import reply
from gateway.upstream import name_of
from settings import check_server

if TYPE_CHECKING:
    from gateway.headers import Header
    from gateway.options import GatewayOptions

PATH: Final = "/gateway/upstreams"


class Admin:
    def __init__(self, fleet: Fleet, options: "GatewayOptions") -> None:
        self._fleet = fleet
        self._options = options
        self._known_as_of = 0
        self._leaving: set[str] = set()  # removed, with requests under way

    def owns(self, path: str) -> bool:
        return path.startswith(PATH) and self._options.admin is not None

    def owner(self, headers: "Iterable[Header]") -> str:
        """Raises ``RequestError`` for whoever is not the operator."""
        assert self._options.admin is not None
        return self._options.admin.owner(headers)

    async def answer(self, method: str, path: str, content: bytes) -> Reply:
        """``GET`` lists, ``POST`` adds or brings back, ``POST …/drain``, ``DELETE``; each names a ``url``."""
        if method == "GET":
            return self._listed()
        body = parse_json(content)
        url = body.get("url") if isinstance(body, dict) else None
        if not isinstance(url, str):
            raise RequestError("invalid_parameter", 'the body must be {"url": "http://…"}', param="url")
        url = url.rstrip("/")
        try:
            check_server(url)
        except ValueError as error:
            raise RequestError("invalid_parameter", str(error), param="url") from None
        draining = path == f"{PATH}/drain"
        if method == "POST" and path in (PATH, f"{PATH}/drain"):
            if draining and name_of(url) not in self._fleet.upstreams:
                raise RequestError("not_found", "no such server here", param="url")
            state = {**self._state(), url: "draining" if draining else "active"}
        elif method == "DELETE" and path == PATH:
            state = {each: how for each, how in self._state().items() if each != url}
            if not state:
                raise RequestError("conflict", "a gateway needs a server; add another one first")
        else:
            raise RequestError("method_not_allowed", "use GET, POST or DELETE")
        self._keep(state)
        await self._become(state)
        return self._listed()

    def _listed(self) -> Reply:
        fleet = self._fleet
        return reply(
            {"upstreams": [{"url": each.url, **shown(each, fleet)} for each in fleet.upstreams.values()]}
        )

    async def catch_up(self) -> None:
        """Take over what another process was told."""
        await self._let_go()
        path = self._options.kept
        if path is None or self._options.admin is None:
            return
        try:
            changed = path.stat().st_mtime_ns
            if changed == self._known_as_of:
                return
            self._known_as_of = changed
            kept = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return
        state = kept.get("servers") if isinstance(kept, dict) else None
        if isinstance(state, dict) and state and kept.get("configured") == list(self._options.servers):
            await self._become({str(url): str(how) for url, how in state.items()})

    async def _let_go(self) -> None:
        """Of those that were removed, the ones that have answered all they had."""
        for name in list(self._leaving):
            standing = self._fleet.balancer.standing(name)
            if standing is None or not standing.outstanding:
                self._leaving.discard(name)
                await self._fleet.remove(name)

    def _state(self) -> dict[str, str]:
        balancer = self._fleet.balancer
        drained = {each.name for each in balancer.standings if each.draining}
        return {
            each.url: "draining" if each.name in drained else "active"
            for each in self._fleet.upstreams.values()
            if each.name not in self._leaving
        }

    async def _become(self, state: dict[str, str]) -> None:
        for name, upstream in list(self._fleet.upstreams.items()):
            if upstream.url not in state:
                self._fleet.balancer.drain(name)
                self._leaving.add(name)
        for url, how in state.items():
            name = name_of(url)
            self._leaving.discard(name)
            if name not in self._fleet.upstreams or how == "active":
                self._fleet.add(self._fleet.upstreams.get(name) or self._options.upstream(url))
            if how == "draining":
                self._fleet.balancer.drain(name)
        await self._let_go()

    def _keep(self, state: dict[str, Any]) -> None:
        path = self._options.kept
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(orjson.dumps({"configured": self._options.servers, "servers": state}))
        new.replace(path)
        self._known_as_of = path.stat().st_mtime_ns

"""What the gateway answers itself: ``/``, ``/health``, ``/metrics`` and the probes."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

from core.version import VERSION
from gateway.asking import Reply
from gateway.fleet import Fleet
from gateway.refusals import reply
from gateway.upstream import Health, Upstream

_FRESH_SECONDS: Final = 1.0  # a probe that is younger is told again
_MINUTE: Final = 60.0


class Counts:
    """Of generations that came through here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._arrivals: deque[float] = deque()
        self._seconds = 0.0
        self.total = self.succeeded = self.failed = 0

    def arrived(self) -> None:
        self.total += 1
        self._arrivals.append(self._clock())
        self._forget()

    def answered(self, status: int, seconds: float) -> None:
        """A caller who left is neither."""
        if 200 <= status < 300:
            self.succeeded += 1
            self._seconds += seconds
        elif status >= 400 and status != 499:
            self.failed += 1

    def summary(self, fleet: Fleet) -> dict[str, Any]:
        """The text-to-image server's own words; the wait for a server is the gateway's queue."""
        self._forget()
        return {
            "total_requests": self.total,
            "successful_generations": self.succeeded,
            "failed_generations": self.failed,
            "current_queue_size": fleet.waiting,
            "active_generations": fleet.under_way,
            "average_generation_time_ms": round(self._seconds * 1000 / max(self.succeeded, 1), 1),
            "average_queue_wait_ms": round(fleet.waited_seconds * 1000 / max(self.total, 1), 1),
            "uptime_seconds": round(self._clock() - self._started, 1),
            "requests_per_minute": len(self._arrivals),
            "servers": [shown(upstream, fleet) for upstream in fleet.upstreams.values()],
        }

    def _forget(self) -> None:
        now = self._clock()
        while self._arrivals and now - self._arrivals[0] >= _MINUTE:
            self._arrivals.popleft()


class OwnPages:
    def __init__(self, fleet: Fleet, counts: Counts, draining: Callable[[], bool]) -> None:
        self._fleet = fleet
        self._counts = counts
        self._draining = draining

    async def answer(self, path: str) -> Reply:
        match path:
            case "/health":
                await self._fleet.probe(_FRESH_SECONDS)
                return reply(self._health())
            case "/metrics":
                return reply(self._counts.summary(self._fleet))
            case "/live":
                return reply({"status": "alive"})
            case "/ready" | "/ping":
                return self._ready()
        return reply(self._root())

    def _root(self) -> dict[str, Any]:
        servers = [_address(upstream) for upstream in self._fleet.upstreams.values()]
        return {
            "message": "batchmux gateway: text-to-image and image editing",
            "version": VERSION,
            "status": "running",
            "text2image_server_url": ",".join(servers),
            "mode": "gateway",
        }

    def _ready(self) -> Reply:
        if self._draining():
            return reply({"status": "draining"}, 503, {"Retry-After": "5"})
        able = [seen for seen in self._fleet.seen.values() if _sound(seen)]
        if able or not self._fleet.seen:
            return reply({"status": "ready"})
        return reply({"status": "no server"}, 503, {"Retry-After": "5"})

    def _health(self) -> dict[str, Any]:
        """Always 200; one server's state stands for all while it is the best of them."""
        fleet = self._fleet
        sound = [seen for seen in fleet.seen.values() if _sound(seen)]
        ready = [seen for seen in sound if seen.state == "ready"]
        everybody = len(ready) == len(fleet.upstreams)
        status = "healthy" if ready and everybody else "degraded" if sound else "unhealthy"
        most = sum(fleet.balancer.policy.max_outstanding for _ in sound)
        server: dict[str, Any] = {
            "status": "healthy" if ready else "degraded" if sound else _worst(fleet),
            "model_loaded": any(_says(seen, "model_loaded") for seen in sound),
            "cuda_available": any(_says(seen, "cuda_available", "gpu_available") for seen in sound),
            "current_queue_size": fleet.waiting,
            "active_generations": fleet.under_way,
            "available_slots": max(0, most - fleet.under_way),
        }
        if not sound:
            server["error"] = "Cannot connect to text-to-image server"
        return {
            "status": status,
            "gateway": "draining" if self._draining() else "running",
            "text2image_server": server,
            "servers": [shown(upstream, fleet) for upstream in fleet.upstreams.values()],
        }


def shown(upstream: Upstream, fleet: Fleet) -> dict[str, Any]:
    """One server, without its address, which is nobody's business here."""
    seen = fleet.seen.get(upstream.name)
    standing = fleet.balancer.standing(upstream.name)
    return {
        "name": upstream.name,
        "kind": "runpod" if upstream.runpod else "server",
        "state": seen.state if isinstance(seen, Health) else seen or "unknown",
        "models": list(seen.loaded) if isinstance(seen, Health) else [],
        "under_way": standing.outstanding if standing else 0,
        "ejected": standing is not None and standing.ejected_until is not None,
        "draining": standing is not None and standing.draining,
    }


def _sound(seen: Health | str) -> TypeGuard[Health]:
    return isinstance(seen, Health) and seen.state in ("ready", "loading")


def _says(health: Health, *names: str) -> bool:
    body = health.body or {}
    inner = body.get("text2image_server")
    places = (body, inner if isinstance(inner, dict) else {})
    return any(place.get(name) is True for place in places for name in names)


def _worst(fleet: Fleet) -> str:
    return next((seen if isinstance(seen, str) else "error" for seen in fleet.seen.values()), "unreachable")


def _address(upstream: Upstream) -> str:
    parts = urlsplit(upstream.url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"

"""The same wishes over HTTP to a server of ours, and what else it can be asked."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp

from command.display import Display
from command.failure import FAILED, LATER, WRONG, Failure
from command.made import Made, made

T = TypeVar("T")

# What is being waited for, and steps done of so many.
Tell = Callable[[str, int, int], None]

_LOOK_SECONDS = 0.1
_CONNECT_SECONDS = 10
_SEND_KEY = "send it with --api-key or API_KEY"


class Server:
    """url: without a path, or with the one that a proxy puts before ours. Every method raises ``Failure``."""

    def __init__(self, url: str, api_key: str | None) -> None:
        if "://" not in url:
            url = f"http://{url}"
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def picture(self, job_input: dict[str, Any], display: Display) -> Made:
        return made(self._run(lambda: self._watched(job_input, display)))

    async def _watched(self, job_input: dict[str, Any], display: Display) -> Any:
        """A stop here closes the connection, on which the server lets the job go."""

        def tell(text: str, step: int, steps: int) -> None:
            told[:] = [text, step, steps]

        told: list[Any] = [f"waiting for {self._url}", 0, 0]
        work = asyncio.ensure_future(self._ask("POST", "/runsync", {"input": job_input}, tell))
        try:
            while not (await asyncio.wait([work], timeout=_LOOK_SECONDS))[0]:
                text, step, steps = told
                if step:
                    display.steps(step, steps)
                else:
                    display.stage(text)
            return await work
        finally:
            work.cancel()

    def get(self, path: str) -> Any:
        return self._run(lambda: self._ask("GET", path))

    def delete(self, path: str) -> Any:
        return self._run(lambda: self._ask("DELETE", path))

    def _run(self, ask: Callable[[], Awaitable[T]]) -> T:
        async def main() -> T:
            return await ask()

        return asyncio.run(main())

    async def _ask(self, method: str, path: str, body: object = None, tell: Tell | None = None) -> Any:
        """The answer's value. ``tell`` hears of the work's steps where the server tells of them."""
        accept = {"Accept": "application/json" if tell is None else "text/event-stream, application/json"}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=limits, headers=self._headers, trust_env=True) as session,
                session.request(
                    method, self._url + path, json=body, headers=accept, allow_redirects=False
                ) as response,
            ):
                if response.content_type == "text/event-stream" and tell is not None:
                    return await _last_of(response.content, tell)
                data = await response.read()
                if response.status != 200:
                    raise _refusal(response.status, data, response.headers.get("Location", ""))
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise Failure(f"--url: {self._url} is no http:// or https:// address", WRONG) from None
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, KeyError) as error:
            raise Failure(f"{self._url} does not answer ({_reason(error)})", LATER) from None
        try:
            return json.loads(data)
        except ValueError:
            raise Failure(f"{self._url} answers no JSON; is it a batchmux?", FAILED) from None


async def _last_of(content: aiohttp.StreamReader, tell: Tell) -> Any:
    """The value of ``done``. Raises ``Failure`` for ``error``, and where the events end without either."""
    buffer = bytearray()
    async for chunk in content.iter_any():
        # Only what is new can end an event; a picture is a line of megabytes.
        looked = max(0, len(buffer) - 1)
        buffer += chunk
        while (end := buffer.find(b"\n\n", looked)) >= 0:
            name, _, data = bytes(buffer[:end]).partition(b"\ndata: ")
            del buffer[: end + 2]
            looked = 0
            if name == b"event: done":
                return json.loads(data)
            if name == b"event: error":
                raise _refusal(int(json.loads(data)["status"]), data, "")
            if name == b"event: progress":
                progress = json.loads(data)
                ahead = progress.get("position")
                tell(f"queued, {ahead} ahead" if ahead else "waiting", progress["step"], progress["steps"])
    raise Failure("the server closed the connection before the picture was done", LATER)


def _refusal(status: int, data: bytes, location: str) -> Failure:
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    told: dict[str, Any] = body if isinstance(body, dict) else {}
    sentence = next((text for key in ("error", "detail") if isinstance(text := told.get(key), str)), "")
    code, param = str(told.get("code") or ""), str(told.get("param") or "")
    if 300 <= status < 400:
        sentence = f"the server sends us on to {location[:200]}; give that as --url"
    elif status in (401, 403):
        sentence = f"{sentence or 'the server wants a key'}; {_SEND_KEY}"
    elif not sentence:
        sentence = f"the server answers with status {status} and no reason"
    later = status in (429, 502, 503)
    return Failure(
        sentence, LATER if later else WRONG if status < 500 else FAILED, code=code or str(status), param=param
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    os_error = getattr(error, "os_error", error)
    return getattr(os_error, "strerror", None) or str(error) or type(error).__name__

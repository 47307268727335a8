"""What passes between the gateway and a server: a request, the answer to it, and how it can fail."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from gateway.body import Body
from gateway.headers import Header


class Unanswered(Exception):
    """No answer came, or none that can be read.

    unreached: there was no connection at all. silent: the time was over.
    """

    def __init__(self, why: str, *, unreached: bool = False, silent: bool = False) -> None:
        super().__init__(why)
        self.unreached = unreached
        self.silent = silent


class CutOff(Exception):
    """An answer that had begun ended before its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """target: path and query as the caller wrote them. headers: the caller's, names in lower case.

    client: the caller's address. scheme: by which the caller came.
    """

    method: str
    target: str
    headers: Sequence[Header]
    body: Body
    request_id: str
    client: str = ""
    scheme: str = "http"

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]


async def _nothing() -> None: ...


@dataclass(kw_only=True, slots=True)
class Reply:
    """chunks: the body; ``CutOff`` is raised where it ends too early. close: gives the connection back."""

    status: int
    headers: list[Header]
    chunks: AsyncIterator[bytes]
    close: Callable[[], Awaitable[None]] = field(default=_nothing)

    async def whole(self, limit: int) -> bytes:
        """The body where it is short; raises ``CutOff`` for a longer one as well."""
        content = bytearray()
        async for chunk in self.chunks:
            content += chunk
            if len(content) > limit:
                raise CutOff
        return bytes(content)


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content

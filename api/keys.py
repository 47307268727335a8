"""``KeyRing``: whose request it is, by the key that came with it. Knows no path and no route."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.errors import ExecutionError, RequestError

Headers = Iterable[tuple[bytes, bytes]]  # as ASGI has them: names in lower case

MISSING = "Missing X-API-Key header"
INVALID = "Invalid API key"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """``digests``: of the keys that are let in. ``required``: else everybody is.

    Digests are compared, so that neither a key's length nor its first characters show in the time taken.
    """

    required: bool = False
    digests: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, required: bool, keys: Sequence[str]) -> "KeyRing":
        return cls(required, tuple(_digest(key.encode()) for key in keys if key))

    def owner(self, headers: Headers) -> str:
        """16 hex digits that stand for the key, the same after a restart; "" while none is required.

        Raises ``RequestError`` ``unauthorized``, and ``ExecutionError`` when one is required and none is set.
        """
        if not self.required:
            return ""
        if not self.digests:
            message = "REQUIRE_API_KEY is on but this server has no API_KEY; its operator must set one"
            raise ExecutionError("pipeline_error", message)
        sent = [_digest(key) for key in _keys(headers)]
        if not sent:
            raise RequestError("unauthorized", MISSING)
        # Every pair is compared, so that the time does not tell which key it was.
        fits = [known for known in self.digests for one in sent if hmac.compare_digest(known, one)]
        if not fits:
            raise RequestError("unauthorized", INVALID)
        return hashlib.blake2b(fits[0], digest_size=8, person=b"batchmux.owner").hexdigest()


def _keys(headers: Headers) -> Iterator[bytes]:
    """What may be a key: X-API-Key, and Authorization as Bearer, as Basic or as it stands."""
    for name, value in headers:
        value = value.strip()
        if not value:
            continue
        if name == b"x-api-key":
            yield value
        elif name == b"authorization":
            yield value  # RunPod's clients send the bare key
            scheme, _, rest = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield rest.strip()
            elif scheme.lower() == b"basic":
                yield from _basic(rest.strip())


def _basic(credentials: bytes) -> Iterator[bytes]:
    """A1111's clients send ``user:password``; the key may be either."""
    try:
        user, _, password = base64.b64decode(credentials, validate=True).partition(b":")
    except binascii.Error:
        return
    yield from (user, password)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

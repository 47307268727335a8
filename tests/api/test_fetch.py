"""A caller's URL reaches public addresses and nothing else, however it is written."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from api.budget import ByteBudget
from api.fetch import GuardedFetch
from core.errors import CapacityError, RequestError, ServingError
from tests.api.remote import Canary, Remote, content, endless, redirect, remote_server, silent

if TYPE_CHECKING:
    from yarl import URL


@pytest.fixture
def remote() -> Iterator[Remote]:
    with remote_server() as server:
        yield server


@pytest.fixture
def canary() -> Iterator[Canary]:
    bird = Canary()
    yield bird
    bird.close()


class Names:
    """A resolver whose answers a test writes."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.addresses


def guarded(remote: Remote | None = None, **options: object) -> GuardedFetch:
    known: dict[str, object] = {
        "max_bytes": 100_000,
        "timeout": 10.0,
        "allow_hosts": {remote.pair} if remote else (),
    }
    return GuardedFetch(**(known | options))  # type: ignore[arg-type]


def fetch(fetcher: GuardedFetch, url: str, budget: ByteBudget | None = None) -> bytes:
    async def once() -> bytes:
        with (budget or ByteBudget(2**30)).lease() as lease:
            return await fetcher(url, lease)

    return asyncio.run(once())


def refused(fetcher: GuardedFetch, url: str) -> ServingError:
    with pytest.raises(ServingError) as caught:
        fetch(fetcher, url)
    return caught.value


def test_an_allowed_private_pair_is_fetched(remote: Remote) -> None:
    """FETCH_ALLOW_HOSTS: an object store in the same network is a usual set-up."""
    remote.routes["/cat.png"] = content(b"meow")
    assert fetch(guarded(remote), remote.url("/cat.png")) == b"meow"


def test_allowing_a_pair_allows_that_pair_alone(remote: Remote, canary: Canary) -> None:
    """Another port of the same host is another service."""
    assert refused(guarded(remote), f"http://127.0.0.1:{canary.port}/").code == "url_not_allowed"
    assert refused(guarded(remote), f"http://localhost:{remote.port}/").code == "url_not_allowed"
    assert not canary.reached
    assert not remote.seen


FORMS = [
    "http://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST.:{port}/",
    "http://127.1:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://user:pass@127.0.0.1:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@example.com/",
    "https://127.0.0.1:{port}/",
    "HTTP://127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_x",
    "file:///etc/passwd",
    "http://127.0.0.1:{port}/\r\nHost: example.com",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1 :{port}/",
    "http://" + "a" * 9000 + "/",
    "http://:{port}/",
    "http://[::1/",
    "http://example.com:22/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "",
]


@pytest.mark.parametrize("form", FORMS)
def test_no_spelling_of_loopback_gets_through(form: str, canary: Canary) -> None:
    """Every one answers with the same words, so that nobody learns what is inside."""
    error = refused(guarded(), form.format(port=canary.port))
    assert (error.code, error.message) == (
        "url_not_allowed",
        "the URL must be a public http or https address",
    )
    assert not canary.reached


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize(
    "form", ["http://127.0.0.1", "http://localhost", "http://2130706433", "http://[::1]", "http://0x7f.1"]
)
def test_the_usual_ports_are_no_way_in_either(form: str, port: int) -> None:
    """Port and address are two checks; this is the second alone."""
    scheme = "https" if port == 443 else "http"
    assert refused(guarded(), form.replace("http", scheme) + "/").code == "url_not_allowed"


@pytest.mark.parametrize(
    "addresses",
    [("127.0.0.1",), ("169.254.169.254",), ("8.8.8.8", "10.0.0.1"), ("::1",), ("2002:7f00:1::",), ()],
)
def test_a_name_is_worth_its_worst_address(addresses: tuple[str, ...]) -> None:
    """A name of the attacker's own may mix public and private answers, and a retry would pick another."""
    names = Names(*addresses)
    assert refused(guarded(resolve=names), "http://pictures.example/cat.png").code == "url_not_allowed"
    assert names.asked == [("pictures.example", 80)]


def test_a_name_is_resolved_once_and_dialled_as_checked(remote: Remote) -> None:
    """Between two look-ups an attacker's name server would change its answer (DNS rebinding)."""
    remote.routes["/"] = content(b"x")
    names = Names("127.0.0.1")
    fetcher = guarded(allow_hosts={f"pictures.example:{remote.port}"}, resolve=names)
    assert fetch(fetcher, f"http://pictures.example:{remote.port}/") == b"x"
    assert names.asked == [("pictures.example", remote.port)]
    assert remote.seen[0]["host"] == f"pictures.example:{remote.port}"


def test_an_allowed_server_cannot_send_us_elsewhere(remote: Remote, canary: Canary) -> None:
    """Every hop is a new URL."""
    for at, target in enumerate(
        (f"http://127.0.0.1:{canary.port}/", f"//127.0.0.1:{canary.port}/", "file:///etc")
    ):
        remote.routes[f"/{at}"] = redirect(target)
        assert refused(guarded(remote), remote.url(f"/{at}")).code == "url_not_allowed"
    assert not canary.reached


class TrustsRedirects(GuardedFetch):
    """A planted bug: it checks the first hop only, as many do."""

    hops = 0

    async def _checked_addresses(self, target: "URL") -> Sequence[str]:
        self.hops += 1
        return await super()._checked_addresses(target) if self.hops == 1 else ["127.0.0.1"]


def test_the_canary_notices_an_unchecked_redirect(remote: Remote, canary: Canary) -> None:
    """The control: with that bug the tests above would fail."""
    remote.routes["/"] = redirect(f"http://127.0.0.1:{canary.port}/")
    fetcher = TrustsRedirects(max_bytes=1000, timeout=0.3, allow_hosts={remote.pair})
    refused(fetcher, remote.url("/"))
    assert canary.reached


def test_three_redirects_are_followed_and_no_fourth(remote: Remote) -> None:
    """Relative ones too; image hosts use one or two."""
    remote.routes |= {"/4": redirect("/3"), "/3": redirect("2", 301), "/2": redirect("1", 307)}
    remote.routes |= {"/1": redirect("0", 308), "/0": content(b"x")}
    assert fetch(guarded(remote), remote.url("/3")) == b"x"
    assert refused(guarded(remote), remote.url("/4")).code == "image_fetch_failed"


def test_nothing_of_ours_goes_along(remote: Remote) -> None:
    """No cookies from hop to hop, no compression, nothing that names this machine."""
    remote.routes |= {"/1": redirect("0"), "/0": content(b"x")}
    fetch(guarded(remote), remote.url("/1"))
    for headers in remote.seen:
        assert set(headers) == {"host", "accept", "accept-encoding", "user-agent", "connection"}
        assert headers["accept-encoding"] == "identity"


def test_an_endless_body_is_cut_off(remote: Remote) -> None:
    """Counted while it streams: nothing declares its length."""
    remote.routes["/"] = endless
    assert refused(guarded(remote), remote.url("/")).code == "image_too_large"


def test_a_body_of_just_the_limit_passes(remote: Remote) -> None:
    """The limit itself is allowed."""
    remote.routes |= {"/fits": content(bytes(100_000)), "/over": content(bytes(100_001))}
    assert len(fetch(guarded(remote), remote.url("/fits"))) == 100_000
    assert refused(guarded(remote), remote.url("/over")).code == "image_too_large"


def test_a_compressed_answer_is_refused(remote: Remote) -> None:
    """It was not asked for, and would be a bomb's way around the byte limit."""
    remote.routes["/"] = content(b"\x1f\x8b", Content_Encoding="gzip")
    assert refused(guarded(remote), remote.url("/")).code == "image_fetch_failed"


def test_one_deadline_covers_everything(remote: Remote) -> None:
    """A server that accepts and says nothing holds a request for that long and no longer."""
    remote.routes["/"] = silent(5)
    assert refused(guarded(remote, timeout=0.2), remote.url("/")).code == "image_fetch_timeout"


def test_a_slow_name_server_counts_towards_the_deadline() -> None:
    """It belongs to the attacker as well."""

    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    assert refused(guarded(timeout=0.1, resolve=never), "http://a.example/").code == "image_fetch_timeout"


@pytest.mark.parametrize("path", ["/absent", "/nowhere"])
def test_a_servers_error_is_told_as_such(path: str, remote: Remote) -> None:
    """The caller can mend a wrong link."""
    remote.routes["/nowhere"] = redirect("")
    assert refused(guarded(remote), remote.url(path)).code == "image_fetch_failed"


def test_a_closed_port_and_an_unknown_name_are_failures(canary: Canary) -> None:
    """Not ours, and without the address in the message."""
    canary.close()
    pair = f"127.0.0.1:{canary.port}"
    error = refused(guarded(allow_hosts={pair}), f"http://{pair}/")
    assert (error.code, error.message) == ("image_fetch_failed", "the image could not be fetched")
    assert refused(guarded(), "http://" + "a" * 70 + ".invalid/").code == "image_fetch_failed"


def test_fetched_bytes_count_as_held(remote: Remote) -> None:
    """Many slow downloads must not add up to more memory than there is."""
    remote.routes["/"] = content(bytes(90_000))
    budget = ByteBudget(100_000)
    with budget.lease() as other:
        other.take(50_000)
        with pytest.raises(CapacityError) as caught:
            fetch(guarded(remote), remote.url("/"), budget)
    assert caught.value.code == "queue_full"
    assert budget.used == 0


def test_errors_are_request_errors(remote: Remote) -> None:
    """A broken answer is the link's fault, whatever the parser below raises."""

    def garbage(request: object) -> None:
        request.wfile.write(b"HTTP/1.1 two hundred\r\n\r\n")  # type: ignore[attr-defined]

    remote.routes["/"] = garbage
    error = refused(guarded(remote), remote.url("/"))
    assert isinstance(error, RequestError)
    assert error.code == "image_fetch_failed"


def test_too_many_downloads_at_once_are_refused() -> None:
    """Each may take its full timeout: names that nobody answers for must not pile up. A place is free
    again once its download has ended."""

    class Waiting:
        def __init__(self) -> None:
            self.gate = asyncio.Event()

        async def __call__(self, host: str, port: int) -> Sequence[str]:
            await self.gate.wait()
            raise OSError

    async def crowd() -> list[str]:
        waiting = Waiting()
        fetcher = guarded(max_fetches=2, resolve=waiting)
        codes = []

        async def once() -> None:
            with ByteBudget(100).lease() as lease:
                try:
                    await fetcher("http://a.example/", lease)
                except ServingError as error:
                    codes.append(error.code)

        first = [asyncio.ensure_future(once()) for _ in range(2)]
        await asyncio.sleep(0)
        await once()
        waiting.gate.set()
        await asyncio.gather(*first)
        await once()
        return codes

    assert asyncio.run(crowd()) == ["queue_full", *["image_fetch_failed"] * 3]

"""Who is let in: by key, by path and by rate, over real HTTP."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Route as StarletteRoute

from api.app import AccessOptions
from api.intake import ImageIntake, IntakeOptions
from api.keys import KeyRing
from tests.api.serving import Answer, Client, Served, png, serving, text, unserved

WISHES = {"prompt": "p", "image_base64": text(png()), "seed": 5, "width": 96, "height": 64}
KEYS = KeyRing.of(True, ["devtoken", "second"])
HEALTHS = {"/health", "/firered/health", "/vision/health", "/sdxl/health"}
PUBLIC = HEALTHS | {"/health/gpu", "/", "/live", "/ready", "/ping", "/metrics", "/files/{name}"}


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with serving(access=AccessOptions(keys=KEYS)) as running:
        yield running


def call(client: Client, method: str, path: str, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.request(method, path, b"{}" if method == "POST" else None, named)


def test_every_route_but_the_public_ones_asks_for_a_key(locked: Served) -> None:
    """Read from the application itself, so that a route added later is checked too."""
    with ImageIntake(IntakeOptions()) as intake:
        app = unserved(intake)
    asked = 0
    for route in app.routes:
        assert isinstance(route, StarletteRoute) or hasattr(route, "methods")
        path = route.path  # type: ignore[attr-defined]
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            answer = call(locked.client, method, path.replace("{", "").replace(":path}", "").replace("}", ""))
            open_to_all = path in PUBLIC and method in {"GET", "HEAD"}
            assert (answer.status == 401) is not open_to_all, (method, path, answer.status)
            asked += 1
    assert asked > 20


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("GET", "/health/"),
        ("GET", "//health"),
        ("GET", "/HEALTH"),
        ("GET", "/health/../run"),
        ("GET", "/%68ealth/x"),
        ("GET", "/health;x"),
        ("POST", "/health"),
        ("DELETE", "/metrics"),
        ("OPTIONS", "/run"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("TRACE", "/"),
    ],
)
def test_what_nobody_declared_public_is_closed(method: str, path: str, locked: Served) -> None:
    """Default-deny: a 404 would already tell what there is."""
    answer = call(locked.client, method, path)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert call(locked.client, method, path, X_API_Key="devtoken").status != 401


def test_a_route_added_past_the_table_is_closed() -> None:
    """Nobody needs to remember the gate."""
    with ImageIntake(IntakeOptions()) as intake:
        app = unserved(intake, AccessOptions(keys=KEYS))

        @app.get("/added")
        async def added() -> dict[str, bool]:
            return {"reached": True}

        assert status_in_process(app, "/added") == 401
        assert status_in_process(app, "/added", (b"x-api-key", b"second")) == 200


def status_in_process(app: FastAPI, path: str, *headers: tuple[bytes, bytes]) -> int:
    sent: list[Any] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": list(headers),
        "client": ("192.0.2.1", 1),
        "server": ("192.0.2.2", 80),
    }
    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [({}, "Missing X-API-Key header"), ({"X_API_Key": "wrong"}, "Invalid API key")],
)
def test_a_refusal_has_the_dialects_own_shape(headers: dict[str, str], sentence: str, locked: Served) -> None:
    """A client reads errors where it always does."""
    answer = call(locked.client, "POST", "/run", **headers)
    assert answer.status == 401
    body = answer.json()
    assert (body["detail"], body["error"], body["code"]) == (sentence, sentence, "unauthorized")
    assert answer.headers["x-request-id"] == body["request_id"]
    assert locked.painter.entered.empty()


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": "devtoken"},
        {"Authorization": "Bearer second"},
        {"Authorization": "devtoken"},
        {"Authorization": "Basic " + base64.b64encode(b"me:devtoken").decode()},
    ],
)
def test_a_key_lets_in(headers: dict[str, str], locked: Served) -> None:
    """In every form that a client may send."""
    assert locked.client.run(WISHES, headers=headers).status == 200
    while not locked.painter.entered.empty():
        locked.painter.entered.get()


def test_a_server_that_requires_keys_and_has_none_answers_500() -> None:
    """The SDXL service's contract; probes still answer, so that the platform shows it running."""
    with serving(access=AccessOptions(keys=KeyRing.of(True, []))) as running:
        answer = running.client.run(WISHES, headers={"X-API-Key": "anything"})
        assert answer.status == 500
        assert "API_KEY" in answer.json()["error"]
        assert running.client.get("/health").status == 200


def test_too_many_requests_a_minute_are_refused_by_key() -> None:
    """Each key has its own minute, so one's flood leaves another's requests alone."""
    with serving(access=AccessOptions(keys=KEYS, requests_per_minute=3)) as running:
        answers = [running.client.run(WISHES, headers={"X-API-Key": "devtoken"}) for _ in range(5)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[-1].json()["code"] == "rate_limited"
        assert 50 <= int(answers[-1].headers["retry-after"]) <= 60
        assert running.client.run(WISHES, headers={"X-API-Key": "second"}).status == 200
        assert running.client.get("/health").status == 200


@pytest.mark.parametrize(
    ("path", "body", "limited"),
    [
        ("/sdapi/v1/interrupt", b"", False),
        ("/sdapi/v1/options", b"{}", False),
        ("/lora/unload", b"{}", False),
        ("/v2/x/purge-queue", b"", False),
        ("/v1/models/purge", b"{}", True),  # the next picture pays for it with the model's loading
    ],
)
def test_only_what_makes_work_counts_against_a_limit(path: str, body: bytes, limited: bool) -> None:
    """Who has used up his minute must still be able to end what he began."""
    with serving(access=AccessOptions(requests_per_minute=1)) as running:
        assert running.client.run(WISHES).status == 200
        answer = running.client.request("POST", path, body)
    assert (answer.status == 429) is limited, answer.body


def test_too_many_requests_at_once_are_refused() -> None:
    """The first ones are answered all the same, and then there is room again."""
    with serving(access=AccessOptions(requests_at_once=2)) as running:
        running.painter.shut()
        answers: list[int] = []
        callers = [
            threading.Thread(target=lambda: answers.append(running.client.run(WISHES).status))
            for _ in range(2)
        ]
        for caller in callers:
            caller.start()
        for _ in callers:
            running.painter.entered.get(timeout=10)
        refused = running.client.run(WISHES)
        assert (refused.status, refused.json()["code"]) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        running.painter.open()
        for caller in callers:
            caller.join(10)
        assert answers == [200, 200]
        assert running.client.run(WISHES).status == 200


def test_pages_of_named_origins_may_call() -> None:
    """A browser asks first, without a key, and reads refusals and figures too."""
    page = {"Origin": "https://studio.example"}
    asks = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    with serving(access=AccessOptions(keys=KEYS, cors_origins=("https://studio.example",))) as running:
        before = running.client.request("OPTIONS", "/run", headers=asks)
        assert before.status == 200
        assert before.headers["access-control-allow-origin"] == "https://studio.example"
        assert "x-api-key" in before.headers["access-control-allow-headers"]
        refused = running.client.request("POST", "/run", json.dumps({}).encode(), page)
        assert refused.status == 401
        assert refused.headers["access-control-allow-origin"] == "https://studio.example"
        other = running.client.request("POST", "/run", b"{}", {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers

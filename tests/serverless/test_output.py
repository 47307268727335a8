"""Nothing leaves that the SDK could not post or the platform would drop."""

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientSession
from PIL import Image as Pillow

from api.fetch import GuardedFetch
from api.flat import FlatJob
from api.images import ImageFormat
from api.intake import ImageIntake, IntakeOptions
from core.errors import ExecutionError, RequestError, ServingError
from core.request import Image
from core.result import InferenceResult
from serverless.bucket import Bucket
from serverless.output import MB, OutputGuard, measure, refusal
from tests.serverless.edits import dialect, job, picture
from tests.serverless.painting import painted
from tests.serverless.s3_server import KEY_ID, SECRET, S3Server, endpoint_parts

# A picture that PNG cannot make small.
NOISE = Image(pixels=Pillow.effect_noise((256, 256), 60).convert("RGB").tobytes(), width=256, height=256)


def run(
    limit: int,
    check: Callable[[Callable[..., Awaitable[dict[str, Any]]]], Awaitable[None]],
    *,
    bucket: Bucket | None = None,
    allow: str = "",
    output_format: str = "png",
) -> None:
    """``check`` gets a guard that is already given a job and its 256² noise."""

    async def main() -> None:
        with ImageIntake(IntakeOptions()) as intake:
            language = dialect(intake)
            asked = await language.parse(
                job("a", width=256, height=256, output_format=output_format)["input"], id="a"
            )
            result = painted(asked.request)
            result = InferenceResult(
                id="a", output=NOISE, model=result.model, seed=result.seed, steps=result.steps
            )
            fetch = GuardedFetch(max_bytes=MB, timeout=5, allow_hosts={allow})
            guard = OutputGuard(language.render_output, limit, bucket, fetch.put)
            await check(lambda *own: guard(asked, result, "job-1", *own))

    asyncio.run(main())


def test_what_fits_leaves_as_asked() -> None:
    """A lossless picture is the default for a reason."""

    async def check(guarded: Callable[..., Awaitable[dict[str, Any]]]) -> None:
        answer = await guarded()
        assert answer["output_format"] == "png"
        assert picture(answer).tobytes() == NOISE.pixels

    run(18 * MB, check)


@pytest.mark.parametrize(("limit", "expected"), [(150_000, "jpeg"), (70_000, "webp")])
def test_what_does_not_fit_leaves_in_a_smaller_format(limit: int, expected: str) -> None:
    """A slightly different picture is worth more to the caller than none."""

    async def check(guarded: Callable[..., Awaitable[dict[str, Any]]]) -> None:
        answer = await guarded()
        assert answer["output_format"] == expected
        assert picture(answer).size == (256, 256)
        assert measure(answer) <= limit

    run(limit, check)


@pytest.mark.parametrize(
    ("asked_for", "tried"),
    [("png", ["png", "jpeg", "webp"]), ("jpeg", ["jpeg", "webp"]), ("webp", ["webp", "jpeg"])],
)
def test_no_format_is_tried_twice(asked_for: ImageFormat, tried: list[str]) -> None:
    """Each costs a fifth of a second of a codec thread, and comes out as before."""
    rendered: list[str] = []

    async def main() -> None:
        async def render(job: FlatJob, result: InferenceResult) -> dict[str, Any]:
            rendered.append(job.output_format)
            return {"image": "a" * 1000}

        async def put(url: str, body: bytes, content_type: str) -> None: ...

        with ImageIntake(IntakeOptions()) as intake:
            asked = await dialect(intake).parse(job("a", output_format=asked_for)["input"], id="a")
            with pytest.raises(ExecutionError, match="over the limit"):
                await OutputGuard(render, 100, None, put)(asked, painted(asked.request), "a")

    asyncio.run(main())
    assert rendered == tried


def test_what_fits_in_no_format_is_an_error_with_a_remedy() -> None:
    """The platform would drop it, and the job would hang until its timeout."""

    async def check(guarded: Callable[..., Awaitable[dict[str, Any]]]) -> None:
        with pytest.raises(ExecutionError, match=r"over the limit of 0\.005 MB; ask for a smaller") as caught:
            await guarded()
        assert caught.value.code == "output_too_large"

    run(5_000, check)


@pytest.mark.parametrize("whose", ["operator", "job"])
def test_what_fits_in_no_format_goes_to_the_bucket(whose: str) -> None:
    """Uploaded in the format asked for, and fetched back through the URL of the answer."""

    async def main() -> None:
        async with S3Server() as s3:
            config = {
                "endpointUrl": s3.endpoint,
                "bucketName": "pictures",
                "accessId": KEY_ID,
                "accessSecret": SECRET,
            }
            bucket = Bucket.of_job(config)

            async def check(guarded: Callable[..., Awaitable[dict[str, Any]]]) -> None:
                answer = await (guarded() if whose == "operator" else guarded(bucket))
                assert "image" not in answer
                endpoint, path = endpoint_parts(answer["image_url"])
                assert (endpoint, path) == (s3.endpoint, "/pictures/job-1/result.png")
                async with ClientSession() as session, session.get(answer["image_url"]) as response:
                    assert response.status == 200
                    assert response.content_type == "image/png"
                    assert (await response.read())[:4] == b"\x89PNG"

            await asyncio.to_thread(
                run, 5_000, check, bucket=bucket if whose == "operator" else None, allow=s3.host
            )

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refused", "answered 503"),
        ("wrong key", "answered 403"),
        ("private", "public http"),
        ("gone", "reached"),
    ],
)
def test_a_bucket_that_does_not_take_it_is_an_error(fault: str, words: str) -> None:
    """And one that a job names must not make this worker talk to a private address."""

    async def main() -> None:
        async with S3Server(status=503 if fault == "refused" else 200) as s3:
            endpoint = "http://127.0.0.1:9" if fault == "gone" else s3.endpoint
            allow = {"private": "", "gone": "127.0.0.1:9"}.get(fault, s3.host)
            secret = "another" if fault == "wrong key" else SECRET
            bucket = Bucket(endpoint=endpoint, key_id=KEY_ID, secret=secret, name="pictures")

            async def check(guarded: Callable[..., Awaitable[dict[str, Any]]]) -> None:
                with pytest.raises(ExecutionError, match=words) as caught:
                    await guarded()
                assert caught.value.code == "output_too_large"
                assert "127.0.0.1" not in caught.value.message

            await asyncio.to_thread(run, 5_000, check, bucket=bucket, allow=allow)
            assert s3.objects == {}

    asyncio.run(main())


def cyclic() -> dict[str, Any]:
    answer: dict[str, Any] = {}
    answer["self"] = answer
    return answer


@pytest.mark.parametrize(
    "answer",
    [{"x": b"bytes"}, {"x": float("nan")}, {"x": "\ud800"}, {"x": {1, 2}}, {"x": float("inf")}, cyclic()],
)
def test_what_is_no_json_never_leaves(answer: dict[str, Any]) -> None:
    """The SDK posts nothing for these, logs a line, and the job hangs."""

    async def main() -> None:
        async def render(job: FlatJob, result: InferenceResult) -> dict[str, Any]:
            return answer

        async def put(url: str, body: bytes, content_type: str) -> None: ...

        with ImageIntake(IntakeOptions()) as intake:
            asked = await dialect(intake).parse(job("a")["input"], id="a")
            with pytest.raises(ExecutionError) as caught:
                await OutputGuard(render, MB, None, put)(asked, painted(asked.request), "a")
            assert caught.value.code == "pipeline_error"

    asyncio.run(main())


def test_the_measure_is_what_the_sdk_posts() -> None:
    """It writes non-ASCII text as it is."""
    answer = {"prompt": "größer", "image": "a" * 100}
    assert measure(answer) == len(json.dumps(answer, ensure_ascii=False).encode())


def test_measuring_does_not_write_the_picture() -> None:
    """18 MB of base64 as JSON stop the event loop, and with it every other job, for 0.1 s."""
    answer = {"prompt": "paint", "image": "a" * 64_000_000}
    tracemalloc.start()
    try:
        assert measure(answer) > 64_000_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_refusal_is_text_with_facts_beside() -> None:
    """``error`` must be a plain string: the SDK's clients read nothing else."""
    error: ServingError = RequestError("invalid_parameter", "width 1 is too small", param="width")
    assert refusal(error) == {
        "error": "width 1 is too small",
        "code": "invalid_parameter",
        "message": "width 1 is too small",
        "retryable": False,
        "param": "width",
    }


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://bucket.s3.us-west-2.amazonaws.com", "us-west-2"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("https://s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("https://fra1.digitaloceanspaces.com", "fra1"),
        ("https://pictures.fra1.digitaloceanspaces.com", "fra1"),
        ("https://minio.example:9000", "us-east-1"),
    ],
)
def test_the_region_is_read_from_the_endpoint(endpoint: str, region: str) -> None:
    """A signature for another region is refused by the providers that write it there."""
    bucket = Bucket(endpoint=endpoint, key_id=KEY_ID, secret=SECRET, name="b")
    put, get = bucket.sign("key", "image/png")
    assert f"%2F{region}%2Fs3%2F" in put
    assert f"%2F{region}%2Fs3%2F" in get
    assert put.startswith(f"{endpoint}/b/key?")

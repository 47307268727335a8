"""S3-compatible buckets, for results that fit into no job answer.

A file goes up through a presigned URL, so the sending is left to the guarded client: a bucket that a
job names (``s3Config``) is an address of the caller's choice, like any ``image_url``.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from core.errors import RequestError
from settings import Settings

PUT_SECONDS = 600
GET_SECONDS = 7 * 24 * 3600  # as the SDK's rp_upload.py; S3 allows no more

_JOB_FIELDS = ("endpointUrl", "bucketName", "accessId", "accessSecret")


class Put(Protocol):
    """Sends a file to a URL. Raises ``ServingError`` unless the server took it."""

    async def __call__(self, url: str, body: bytes, content_type: str) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Where to put files, and as whom.

    name: None puts them under the month, as the SDK does; the endpoint then names the bucket.
    """

    endpoint: str = field(repr=False)
    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    name: str | None = None

    @classmethod
    def of_job(cls, config: object) -> "Bucket":
        """The bucket of a job's ``s3Config``. Raises ``RequestError`` naming what is missing."""
        given = config if isinstance(config, dict) else {}
        missing = [name for name in _JOB_FIELDS if not (isinstance(given.get(name), str) and given[name])]
        if missing:
            raise RequestError(
                "invalid_parameter",
                f"s3Config lacks {', '.join(missing)}; give all of {', '.join(_JOB_FIELDS)} as text",
                param="s3Config",
            )
        if urlsplit(given["endpointUrl"]).scheme not in ("http", "https"):
            raise RequestError(
                "invalid_parameter", "s3Config.endpointUrl must be an http or https URL", param="s3Config"
            )
        return cls(
            endpoint=given["endpointUrl"],
            key_id=given["accessId"],
            secret=given["accessSecret"],
            name=given["bucketName"],
        )

    @classmethod
    def of_settings(cls, settings: Settings) -> "Bucket | None":
        """The operator's, when address and both keys are there."""
        key_id, secret = settings.bucket_access_key_id, settings.bucket_secret_access_key
        if not (settings.bucket_endpoint_url and key_id and secret):
            return None
        return cls(
            endpoint=settings.bucket_endpoint_url,
            key_id=key_id.get_secret_value(),
            secret=secret.get_secret_value(),
            name=settings.bucket_name,
        )

    async def upload(self, put: Put, key: str, body: bytes, content_type: str) -> str:
        """A URL that gives the file to anybody for a week. Raises ``ServingError``."""
        put_url, get_url = await asyncio.to_thread(self.sign, key, content_type)
        await put(put_url, body, content_type)
        return get_url

    def sign(self, key: str, content_type: str) -> tuple[str, str]:
        """Presigned URLs to put and to get ``key``. Talks to nobody. Raises ``RequestError``."""
        import botocore.session  # a fifth of a second that only large results pay
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        where = {"Bucket": self.name or time.strftime("%m-%y"), "Key": key}
        try:
            client = botocore.session.get_session().create_client(
                "s3",
                endpoint_url=self.endpoint,
                aws_access_key_id=self.key_id,
                aws_secret_access_key=self.secret,
                region_name=_region(self.endpoint),
                config=Config(
                    signature_version="s3v4",
                    s3={"addressing_style": "path"},
                    request_checksum_calculation="when_required",
                ),
            )
            put = client.generate_presigned_url(
                "put_object", Params={**where, "ContentType": content_type}, ExpiresIn=PUT_SECONDS
            )
            get = client.generate_presigned_url("get_object", Params=where, ExpiresIn=GET_SECONDS)
        except (BotoCoreError, ValueError):
            raise RequestError(
                "invalid_parameter", "the bucket's endpoint or name is not usable", param="s3Config"
            ) from None
        return str(put), str(get)


def _region(endpoint: str) -> str:
    """The region inside the endpoint's host name, where the provider writes it there.

    Source: ``extract_region_from_url`` of runpod's ``rp_upload.py``.
    """
    host = urlsplit(endpoint).hostname or ""
    if ".s3." in f".{host}" and host.endswith(".amazonaws.com"):
        region = f".{host}".split(".s3.")[1].removesuffix("amazonaws.com").strip(".")
        return region or "us-east-1"
    if host.endswith(".digitaloceanspaces.com"):
        return host.removesuffix(".digitaloceanspaces.com").split(".")[-1]
    if ".s3." in f".{host}":
        return f".{host}".split(".s3.")[1].split(".")[0]
    return "us-east-1"

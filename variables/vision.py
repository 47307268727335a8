"""Variables of requests to vision models: how much one of them may hold, and how much it may answer."""

from pydantic import Field
from pydantic_settings import BaseSettings


class VisionSettings(BaseSettings):
    max_vision_images: int = Field(
        32, ge=1, le=1000, description="most pictures of one request to a vision model; never over MAX_QUEUE"
    )
    max_request_pixels: int = Field(
        100_000_000, ge=64 * 64, description="most pixels of all its pictures together, decoded"
    )
    max_answer_mb: int = Field(
        64,
        ge=1,
        le=1024,
        description="longest JSON answer of a vision model in MiB",
    )

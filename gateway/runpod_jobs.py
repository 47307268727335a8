"""HTTP requests as inputs of RunPod jobs, and ended jobs as the answers those requests expect.

It refuses to know how a job is run. What is wrong with a field is found out by the worker.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
import pybase64

from api.errors import STATUS
from api.form import Form, parse_form
from core.errors import (
    CapacityError,
    ExecutionError,
    RequestError,
    ServingError,
    UpstreamError,
)
from gateway.asking import Reply
from gateway.headers import Header, value_of
from gateway.refusals import reply

_KINDS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("n", "output_compression", "partial_images", "seed", "num_inference_steps"), int),
    **dict.fromkeys(("true_cfg_scale", "guidance_scale", "strength", "step_cache"), float),
}
_PICTURES: Final = ("image", "images", "url", "mask")
_RENAMED: Final = {"guidance_scale": "true_cfg_scale"}  # of the text-to-image contract
_CLASSES: Final = (RequestError, CapacityError, ExecutionError, UpstreamError)


def input_of(path: str, headers: Iterable[Header], content: bytes) -> dict[str, Any]:
    """A job's ``input``. Raises ``RequestError``."""
    route = path.removeprefix("/openai")
    content_type = value_of(headers, b"content-type")
    if content_type.startswith(("multipart/", "application/x-www-form-urlencoded")):
        asked = _of_form(parse_form(content, content_type))
    else:
        asked = _object(content)
    if route.startswith("/v1/images/"):
        return {"openai_route": route, "openai_input": asked}
    if route == "/generate":
        return {_RENAMED.get(name, name): value for name, value in asked.items() if value not in (None, "")}
    given = asked.get("input")
    if not isinstance(given, dict):
        raise RequestError("invalid_parameter", 'the body must be {"input": {…}}', param="input")
    return given


def answer_of(path: str, job: Mapping[str, Any]) -> Reply:
    """The answer of a job that has ended. Raises ``ServingError`` for one that did not end well."""
    output = job.get("output")
    if job.get("status") != "COMPLETED":
        raise fault_of(job)
    if not isinstance(output, dict) or "error" in output:
        raise fault_of(output if isinstance(output, dict) else job)
    return reply(_picture(job, output) if path == "/generate" else output)


def fault_of(job: Mapping[str, Any]) -> ServingError:
    """What a job says of its failure, by its code where it has one."""
    said, code = job.get("error"), job.get("code")
    message = said if isinstance(said, str) and said else "the job failed"
    if job.get("status") == "TIMED_OUT":
        return ExecutionError("deadline_exceeded", "the job was not finished in time")
    if job.get("status") == "CANCELLED":
        return UpstreamError("upstream_error", "the job was cancelled at the server", retryable=False)
    if code in STATUS and code != "cancelled":
        kind = next(kind for kind in _CLASSES if code in kind.codes)
        param = job.get("param")
        return kind(str(code), message, param=param if isinstance(param, str) else None)
    return ExecutionError("pipeline_error", message)


def _picture(job: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Any]:
    """As the text-to-image contract words it."""
    image = output.get("image")
    if not isinstance(image, str):
        raise UpstreamError("upstream_error", "the job answered no picture")
    return {
        "image_base64": f"data:image/{output.get('output_format', 'png')};base64,{image}",
        "seed": output.get("seed"),
        "generation_time_ms": job.get("executionTime", 0),
        "width": output.get("width"),
        "height": output.get("height"),
        "image_id": None,
    }


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise RequestError(
            "invalid_json", "the body is not valid JSON; check quotation marks, commas and encoding"
        ) from None
    if not isinstance(value, dict):
        raise RequestError("invalid_parameter", "the body must be an object")
    return value


def _of_form(form: Form) -> dict[str, Any]:
    """The fields as JSON has them: numbers as numbers, files as base64."""
    asked: dict[str, Any] = {}
    for part in form.parts:
        name = part.name.partition("[")[0]
        if name in _PICTURES:
            text = part.data.decode("ascii") if part.filename is None and part.data.isascii() else None
            picture = pybase64.b64encode(part.data).decode() if text is None else text.strip()
            asked.setdefault(name, []).append(picture)
        elif text := form.text(part.name):
            asked[name] = _value(name, text)
    return asked


def _value(name: str, text: str) -> object:
    if name == "stream":
        return text.strip().lower() in ("true", "1")
    try:
        return _KINDS.get(name, str)(text)
    except ValueError:
        return text  # the worker names the field

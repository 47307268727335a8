"""The part of AUTOMATIC1111's web API at ``/sdapi/v1`` that front ends use; tried with what they send.

What is global there, the chosen checkpoint and the job that runs, is here each caller's own.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.automatic1111_fields import (
    IGNORED_SETTINGS,
    ImageToImage,
    TextToImage,
    checkpoint_of,
    request_body,
)
from api.automatic1111_jobs import LiveJobs
from api.automatic1111_pictures import ImageToImageDialect, TextToImageDialect, refuse
from api.body import parse_json, read_body
from api.dialect import Arrival, Dialect, Endpoint, Handler, Services
from api.route import Route, arrival_of
from api.settings_text import SAMPLER
from core.errors import RequestError
from core.request import Task

_CALLERS: Final = 1000  # whose choice of a model is remembered
_SETTINGS_BYTES: Final = 64 * 1024
_SETTINGS: Final = {
    "required": True,
    "description": "sd_model_checkpoint chooses; the others are taken without effect.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "sd_model_checkpoint": {"type": ["string", "null"], "description": "a model's name"},
                    **{name: {} for name in sorted(IGNORED_SETTINGS)},
                },
            }
        }
    },
}


def endpoints(services: Services) -> list[Endpoint]:
    web_ui = WebUi(services)
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": '{"images": [base64 of a PNG], "parameters": {…}, "info": JSON as text}'},
        "default": {"description": 'Refused: {"error" and "detail": a sentence, "code": a stable word}'},
    }
    asked: list[tuple[str, Dialect[Any], type[TextToImage], str]] = [
        ("txt2img", TextToImageDialect(services, web_ui.model_of), TextToImage, "Make pictures of a text"),
        ("img2img", ImageToImageDialect(services, web_ui.model_of), ImageToImage, "Edit a picture"),
    ]
    told: list[tuple[str, str, Handler, str]] = [
        ("GET", "options", web_ui.options, "The caller's model"),
        ("POST", "options", web_ui.choose, "Choose the model of this caller's calls"),
        ("GET", "sd-models", web_ui.models, "What is served here"),
        ("GET", "samplers", web_ui.samplers, "The one solver"),
        ("GET", "progress", web_ui.progress, "How far the caller's oldest job is"),
        ("POST", "interrupt", web_ui.interrupt, "End the caller's jobs"),
    ]
    return [
        *(
            Endpoint(
                path=f"/sdapi/v1/{name}",
                handle=web_ui.computing(dialect),
                summary=summary,
                responses=answers,
                openapi={"requestBody": request_body(model)},
                refuse=refuse,
            )
            for name, dialect, model, summary in asked
        ),
        *(
            Endpoint(
                path=f"/sdapi/v1/{name}",
                handle=handle,
                methods=(method,),
                summary=summary,
                responses={"default": answers["default"]} if method == "POST" else {},
                openapi={"requestBody": _SETTINGS} if handle == web_ui.choose else None,
                control=True,
                refuse=refuse,
            )
            for method, name, handle, summary in told
        ),
    ]


def caller_of(arrival: Arrival) -> str:
    """Who asks: callers of one key are one, and so are all while no keys are asked for."""
    return arrival.owner


class WebUi:
    """What is remembered between calls, and the addresses that need no model."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._jobs = LiveJobs(services.submit)
        self._chosen: OrderedDict[str, str] = OrderedDict()

    def model_of(self, arrival: Arrival, task: Task) -> str:
        """The model of a caller's calls that name none. Raises ``RequestError`` where none can do it."""
        chosen = self._chosen.get(caller_of(arrival))
        return self._services.catalog.able(task).name if chosen is None else chosen

    def _shown(self, arrival: Arrival) -> str:
        catalog = self._services.catalog
        paints = [spec.name for spec in (catalog.default, *catalog) if spec.vision is None]
        return self._chosen.get(caller_of(arrival)) or next(iter(paints), catalog.default.name)

    def computing(self, dialect: Dialect[Any]) -> Handler:
        """The dialect's calls, each remembered as its caller's while it lives."""

        async def handle(request: Request) -> Response:
            submit = self._jobs.submit_of(caller_of(arrival_of(request)))
            return await Route(replace(self._services, submit=submit), dialect)(request)

        return handle

    async def options(self, request: Request) -> Response:
        return _json({"sd_model_checkpoint": self._shown(arrival_of(request)), "samples_format": "png"})

    async def choose(self, request: Request) -> Response:
        settings = parse_json(await self._body(request))
        if not isinstance(settings, dict):
            raise RequestError("invalid_parameter", "the body must be an object", param="body")
        wanted = checkpoint_of(settings, "options")
        if wanted is not None:
            caller = caller_of(arrival_of(request))
            self._chosen[caller] = self._services.catalog.get(wanted).name
            self._chosen.move_to_end(caller)
            if len(self._chosen) > _CALLERS:
                self._chosen.popitem(last=False)
        return _json(None)

    async def models(self, request: Request) -> Response:
        return _json(
            [
                {"title": spec.name, "model_name": spec.name, "filename": spec.name}
                | {"hash": None, "sha256": None, "config": None}
                for spec in self._services.catalog
                if spec.vision is None
            ]
        )

    async def samplers(self, request: Request) -> Response:
        return _json([{"name": SAMPLER, "aliases": [SAMPLER.lower()], "options": {}}])

    async def progress(self, request: Request) -> Response:
        jobs = self._jobs.of(caller_of(arrival_of(request)))
        oldest = jobs[0] if jobs else None
        share = oldest.share if oldest else 0.0
        spent = self._jobs.now() - oldest.began if oldest else 0.0
        state = {
            "skipped": False,
            "interrupted": any(job.interrupted for job in jobs),
            "job": "",
            "job_count": len(jobs),
            "job_no": 0,
            "sampling_step": oldest.step if oldest else 0,
            "sampling_steps": oldest.steps if oldest else 0,
        }
        return _json(
            {
                "progress": round(share, 4),
                "eta_relative": round(spent / share - spent, 1) if share else 0.0,
                "state": state,
                "current_image": None,
                "textinfo": None,
            }
        )

    async def interrupt(self, request: Request) -> Response:
        self._jobs.interrupt(caller_of(arrival_of(request)))
        return _json({})

    async def _body(self, request: Request) -> bytes:
        options = self._services.options
        with self._services.intake.budget.lease() as lease:
            return await read_body(
                request.receive,
                request.headers,
                lease,
                limit=_SETTINGS_BYTES,
                seconds=options.body_seconds,
                stall_seconds=options.body_stall_seconds,
            )


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")

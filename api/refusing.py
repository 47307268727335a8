"""``refused``: the one answer to what cannot be done, in the words of the path that was asked for.

Also ``guarded``, by which every handler may simply raise. It refuses to know any dialect but the flat one,
which speaks where nobody else does.
"""

import logging

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.body import ClientGone
from api.dialect import Answer, Arrival, Handler
from api.errors import headers_of
from api.flat import refuse
from api.visit import arrival_of, visit_of
from core.errors import ExecutionError, ServingError

log = logging.getLogger("batchmux.api")


def guarded(handle: Handler) -> Handler:
    """``handle``, whose errors become answers, and whose callers may leave."""

    async def answered(request: Request) -> Response:
        try:
            return await handle(request)
        except ClientGone:
            visit_of(request.scope).code = "cancelled"
            return Response(status_code=499)
        except ServingError as error:
            return refused(error, request)
        except Exception:
            visit = visit_of(request.scope)
            log.exception("request=%s job=%s failed in a way nobody foresaw", visit.shown_id, visit.id)
            return refused(ExecutionError("pipeline_error", "the server failed on this request"), request)

    return answered


def refused(error: ServingError, request: Request) -> Response:
    """Notes the code, for the log."""
    visit, arrival = visit_of(request.scope), arrival_of(request)
    visit.code = error.code
    words = (None if visit.endpoint is None else visit.endpoint.refusal) or _plain
    answer = words(error, arrival)
    response = Response(
        answer.body, answer.status, {**headers_of(error), **answer.headers}, answer.media_type
    )
    if error.code == "unauthorized":
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.code == "request_timeout" or "expect" in arrival.headers:
        # What is left of the body may never come, so the connection cannot be used again.
        response.headers["Connection"] = "close"
    return response


def _plain(error: ServingError, arrival: Arrival) -> Answer:
    status, body = refuse(error, request_id=arrival.shown_id, gpu_available=None)
    return Answer(orjson.dumps(body), status)

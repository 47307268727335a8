"""``GET /files/…``: pictures that answers named by their address. Public: whoever knows the name may look."""

from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.dialect import Answer, Arrival, Endpoint, Services
from api.files import MEDIA_TYPES
from api.flat import refuse
from core.errors import RequestError, ServingError

_NAME: Final = rf"^im_[0-9a-f]{{8}}\.({'|'.join(MEDIA_TYPES)})$"
_HEADERS: Final = {
    "Cache-Control": "public, max-age=31536000, immutable",  # a name is never given to another picture
    "X-Content-Type-Options": "nosniff",
}


def endpoints(services: Services) -> list[Endpoint]:
    async def fetch(request: Request) -> Response:
        name = str(request.path_params["name"])
        content = await services.files.get(name)
        if content is None:
            raise RequestError(
                "not_found", "no such file here, or it is no longer kept; ask for the picture again"
            )
        return Response(content, 200, _HEADERS, MEDIA_TYPES[name.rpartition(".")[2]])

    return [
        Endpoint(
            path="/files/{name}",
            handle=fetch,
            methods=(method,),
            summary="A picture that an answer named by its address",
            responses={
                200: {"description": "The picture", "content": {kind: {} for kind in MEDIA_TYPES.values()}},
                404: {"description": "No such picture, or no longer kept"},
            },
            openapi={
                "parameters": [
                    {
                        "name": "name",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "pattern": _NAME},
                    }
                ]
            },
            public=True,
            refuse=_refuse,
            documented=method == "GET",
        )
        for method in ("GET", "HEAD")
    ]


def _refuse(error: ServingError, arrival: Arrival) -> Answer:
    status, body = refuse(error, request_id=arrival.shown_id, gpu_available=None)
    return Answer(orjson.dumps(body), status, headers={"Cache-Control": "no-store"})

"""``gunicorn main:app -w 4 -k uvicorn.workers.UvicornWorker``, or ``python main.py``: the gateway."""

import sys
from typing import Any


def __getattr__(name: str) -> Any:
    """``app``, made when a server asks for it."""
    if name == "app":
        from uvicorn.config import HTTP_PROTOCOLS

        from gateway import app

        # gunicorn's uvicorn worker can be told of no other protocol, and uvicorn's own has no limits.
        HTTP_PROTOCOLS["auto"] = "api.connection:GuardedProtocol"
        return app.app
    raise AttributeError(name)


if __name__ == "__main__":
    from gateway.__main__ import main

    sys.exit(main())

"""Other people's servers, on loopback: one that answers what a test says, and one nobody may reach."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Handler = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Remote:
    """``routes`` by path; ``seen`` holds the headers of each request, ``bodies`` what was posted."""

    port: int
    routes: dict[str, Handler] = field(default_factory=dict)
    seen: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def pair(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://{self.pair}{path}"


def content(data: bytes, status: int = 200, **headers: str) -> Handler:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {
            "Content-Type": "application/pdf",
            "Content-Length": str(len(data)),
            **headers,
        }.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(data)

    return answer


def redirect(location: str, status: int = 302) -> Handler:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.send_header("Set-Cookie", "session=1; Path=/")
        request.end_headers()

    return answer


def endless(request: BaseHTTPRequestHandler) -> None:
    """A body without end or declared length."""
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(bytes(65536))
    except OSError:
        request.close_connection = True


def silent(seconds: float) -> Handler:
    """Accepts, then says nothing until the other side leaves."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.connection.settimeout(seconds)
        with suppress(OSError):
            request.rfile.read(1)
        request.close_connection = True

    return answer


@contextmanager
def remote_server() -> Iterator[Remote]:
    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            remote.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.do_GET()

        def do_DELETE(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            remote.seen.append({name.lower(): value for name, value in self.headers.items()})
            handler = remote.routes.get(self.path)
            if handler is None:
                self.send_error(404)
            else:
                handler(self)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    remote = Remote(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield remote
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class Canary:
    """A port that must stay untouched. The kernel completes connections to it, so none goes unnoticed."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    @property
    def reached(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        connection.close()
        return True

    def close(self) -> None:
        self._listener.close()

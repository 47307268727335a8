"""A model hub on the loopback: the part of its API that fetching a checkpoint needs, with faults on demand.

Large files are redirected to a second address, as to the hub's storage. Facts of the API: the client's own
source (huggingface_hub 2.4) and https://huggingface.co/docs/hub/api.
"""

import hashlib
import http.server
import json
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = ".safetensors"
PIECE = 2**20


@dataclass
class Repository:
    """files: by path. revisions: commit by branch or tag."""

    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    gated: bool = False


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    range: str | None
    token: str | None


class HubServer:
    """repositories: by ``owner/name``.

    stall_at:  bytes after which the storage stops sending a file, by its path; ``stalled`` is then set.
    corrupt:   paths of which one byte is sent wrong.
    asked:     every request, in order.
    """

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.stall_at: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.asked: list[Asked] = []
        self.stalled, self.released = threading.Event(), threading.Event()
        self._servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) for _ in range(2)]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self._servers[1].server_port}"

    def downloads(self, path: str) -> list[Asked]:
        """Requests for the content of a file."""
        return [asked for asked in self.asked if asked.method == "GET" and asked.path.endswith(path)]

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


def _handler(hub: HubServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def _serve(self) -> None:
            path = unquote(urlsplit(self.path).path)
            token = self.headers.get("Authorization")
            hub.asked.append(Asked(self.command, path, self.headers.get("Range"), token))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._describe("/".join(parts[2:4]), parts[4:])
            elif parts[0] == "storage":
                self._send(hub.repositories["/".join(parts[1:3])], "/".join(parts[3:]))
            elif parts[2:3] != ["resolve"]:
                self._refuse(404, "EntryNotFound")
            else:
                self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

        def _describe(self, name: str, rest: list[str]) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                return self._refuse(404, "RepoNotFound")
            commit = _commit(repository, rest[1] if rest else "main")
            if commit is None:
                return self._refuse(404, "RevisionNotFound")
            if rest[:1] == ["tree"]:
                return self._answer([_entry(path, data) for path, data in repository.files.items()])
            return self._answer({"id": name, "sha": commit, "siblings": []})

        def _resolve(self, name: str, revision: str, path: str) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                return self._refuse(404, "RepoNotFound")
            if repository.gated:
                return self._refuse(403, "GatedRepo")
            commit = _commit(repository, revision)
            if commit is None:
                return self._refuse(404, "RevisionNotFound")
            if path not in repository.files:
                return self._refuse(404, "EntryNotFound")
            data = repository.files[path]
            shown = {"X-Repo-Commit": commit, "ETag": f'"{_blob_id(data)}"'}
            if not path.endswith(LARGE):
                return self._send(repository, path, shown)
            digest = hashlib.sha256(data).hexdigest()
            shown |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            return self._answer(b"", 302, shown | {"Location": f"{hub.storage}/storage/{name}/{path}"})

        def _send(self, repository: Repository, path: str, shown: dict[str, str] | None = None) -> None:
            whole = repository.files[path]
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            data = bytearray(whole[start:])
            if path in hub.corrupt:
                data[len(data) // 2] ^= 1
            status = 206 if start else 200
            ranged = {"Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"} if start else {}
            stop = hub.stall_at.get(path)
            if stop is None or self.command == "HEAD":
                return self._answer(bytes(data), status, (shown or {}) | ranged)
            self._head(status, len(data), (shown or {}) | ranged)
            self.wfile.write(data[:stop])
            self.wfile.flush()
            hub.stalled.set()
            hub.released.wait(60)
            self.close_connection = True

        def _answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self._head(status, len(content), headers or {})
            if self.command != "HEAD":
                self.wfile.write(content)

        def _refuse(self, status: int, code: str) -> None:
            self._answer(b"", status, {"X-Error-Code": code, "X-Error-Message": "refused"})

        def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(length)}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _commit(repository: Repository, revision: str) -> str | None:
    known = repository.revisions
    return revision if revision in known.values() else known.get(revision)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _blob_id(data)}
    if path.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()

"""Serve Prefect and the reports to this machine alone: refuse what a web page of another site asks of them.

A page that is open in the user's browser can send requests to 127.0.0.1, and read the answers where it has pointed a
name of its own there (DNS rebinding). The headers Origin and Host tell, and no page can choose them; Prefect checks
neither. docs/decisions/0014 says what that is for.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fastapi.responses import PlainTextResponse

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")


def own_origins(port: int) -> list[str]:
    """Return the origins of the pages that a server at this port of the loopback serves itself."""
    return [f"http://{name}:{port}" for name in NAMES]


def find_fault(hosts: Sequence[str], origins: Sequence[str], port: int) -> str | None:
    """Return why a request with these headers Host and Origin is refused; None where it is not.

    The port in Host may be another: that of a tunnel to this one.
    """
    if len(hosts) != 1 or hosts[0].partition(":")[0] not in NAMES:
        return f"this server is called {' or '.join(NAMES)}, and by no other Host"
    if not set(origins) <= {*own_origins(port)}:
        return "this server answers no page of another site"
    return None


class OwnPagesOnly:
    """An ASGI application that refuses foreign requests and hands the others on; so, too, for websockets.

    Its pages may ask nothing of other hosts: Prefect's newer UI, as it is loaded, asks a company that counts its users.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        app = self._app
        if scope["type"] != "lifespan":
            hosts, origins = (
                [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
                for wanted in (b"host", b"origin")
            )
            if fault := find_fault(hosts, origins, scope["server"][1]):
                app = PlainTextResponse(f"{fault}\n", HTTPStatus.FORBIDDEN)
        origins = own_origins(scope["server"][1]) if scope["type"] == "http" else []
        own = " ".join(["'self'", *origins, *(origin.replace("http", "ws") for origin in origins)])
        policy = (b"content-security-policy", f"connect-src {own}; frame-ancestors 'none'".encode())

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], policy]}
            await send(message)

        await app(scope, receive, send_with_policy)


def create_app() -> OwnPagesOnly:
    """Return Prefect's server for uvicorn; around it, since Prefect's own services call it under another name."""
    from prefect.server.api.server import create_app

    return OwnPagesOnly(create_app(final=True))


class _ReportHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def end_headers(self) -> None:
        """Keep pages of other sites from loading the gallery's scripts, for which browsers send no Origin."""
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        super().end_headers()

    def send_head(self) -> Any:
        """Send the headers of one answer and return the open file, None for an answer without one."""
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        if fault := find_fault(hosts, origins, self.connection.getsockname()[1]):
            return self.send_error(HTTPStatus.FORBIDDEN, fault)
        folder, path = os.path.realpath(self.directory), self.translate_path(self.path)
        try:  # of a folder the index is sent
            targets = [os.path.realpath(os.path.join(path, name)) for name in ("", "index.html", "index.htm")]
        except ValueError:
            return self.send_error(HTTPStatus.NOT_FOUND, "a path has no NUL")
        if any(os.path.commonpath([folder, target]) != folder for target in targets):
            return self.send_error(HTTPStatus.NOT_FOUND, "a link out of reports/ is not followed")
        return super().send_head()


@contextmanager
def serve_reports(folder: Path, port: int) -> Iterator[str]:
    """Serve a folder on the loopback, for reading only, at the yielded address; on any free port if `port` is taken.

    The folder may come, go and come again: each answer looks it up anew.
    """
    handler = partial(_ReportHandler, directory=str(folder))
    try:
        site = ThreadingHTTPServer((HOST, port), handler)
    except OSError:
        site = ThreadingHTTPServer((HOST, 0), handler)
    with site:
        threading.Thread(target=site.serve_forever, name="reports", daemon=True).start()
        try:
            yield f"http://{HOST}:{site.server_address[1]}/"
        finally:
            site.shutdown()

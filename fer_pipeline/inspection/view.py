"""Serve a gallery to this machine alone, and merge the verdicts that its pages post into `data/review.csv`.

Who may read is who `docs/decisions/0014-loopback.md` says: requests of other Hosts and of other sites' pages are
refused, also where those load a file as a script or picture, which sends no Origin. Who may write has the token too,
which stands behind # in the address that is printed, so that no file and no request but a post holds it.
"""

import hmac
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import ConfigError, PipelineError

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
MOST_BYTES = 2**25  # of posted verdicts, 200,000 of them
SECONDS = 60  # that a request may take to arrive
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
Refusal = tuple[HTTPStatus, str]


class _Handler(SimpleHTTPRequestHandler):
    """Answers one request; `merge` takes posted bytes and says what became of them, `verdicts` gives a fresh script."""

    timeout = SECONDS
    server_version, sys_version = "gallery", ""

    def __init__(
        self, *args: Any, token: str, merge: Callable[[bytes], str], verdicts: Callable[[], bytes], **options: Any
    ) -> None:
        self._token, self._merge, self._verdicts = token, merge, verdicts
        super().__init__(*args, **options)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _find_fault(self) -> str | None:
        """Returns why a request is refused; the port in Host may be that of a tunnel to this one."""
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        if len(hosts) != 1 or hosts[0].partition(":")[0] not in NAMES:
            return f"this server is called {' or '.join(NAMES)}, and by no other Host"
        site, mode = self.headers.get("Sec-Fetch-Site", "none"), self.headers.get("Sec-Fetch-Mode", "")
        if set(origins) - {f"http://{hosts[0]}"} or (site not in ("same-origin", "none") and mode != "navigate"):
            return "this server answers no page of another site"
        return None

    def send_head(self) -> Any:
        """Sends the headers of one answer and returns the open file, None for an answer without one."""
        if fault := self._find_fault():
            return self.send_error(HTTPStatus.FORBIDDEN, fault)
        folder = os.path.realpath(self.directory)
        try:
            path = self.translate_path(self.path)
            target, *pages = (os.path.realpath(os.path.join(path, one)) for one in ("", "index.html", "index.htm"))
        except ValueError:
            return self.send_error(HTTPStatus.NOT_FOUND, "a path has no NUL")
        if os.path.commonpath([folder, target, *pages]) != folder:
            return self.send_error(HTTPStatus.NOT_FOUND, "a link out of the gallery is not followed")
        if target == os.path.join(folder, "verdicts.js") and os.path.exists(target):
            try:
                return self._answer(HTTPStatus.OK, self._verdicts(), "text/javascript")
            except PipelineError as error:
                return self._answer(HTTPStatus.CONFLICT, f"{error}\n".encode())
        return super().send_head()

    def list_directory(self, path: Any) -> None:
        """Lists no folder."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Merges posted verdicts."""
        status, text = self._refuse_post() or self._take_post()
        self.close_connection = True
        self._answer(status, f"{text}\n".encode())

    def _refuse_post(self) -> Refusal | None:
        length = self.headers.get("Content-Length", "")
        if fault := self._find_fault():
            return HTTPStatus.FORBIDDEN, fault
        if not hmac.compare_digest(self.headers.get("X-Token", "").encode(), self._token.encode()):
            return HTTPStatus.FORBIDDEN, "the token is not that of this server; open the address that it printed"
        if self.path != "/review":
            return HTTPStatus.NOT_FOUND, "verdicts are posted to /review"
        if not (length.isascii() and length.isdigit()):
            return HTTPStatus.LENGTH_REQUIRED, "a post says how long it is"
        if len(length) > 12 or int(length) > MOST_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MOST_BYTES:,} bytes are taken; post fewer verdicts"
        return None

    def _take_post(self) -> Refusal:
        try:
            data = self.rfile.read(length := int(self.headers["Content-Length"]))
            if len(data) < length:
                return HTTPStatus.BAD_REQUEST, "the post is shorter than it says"
            return HTTPStatus.OK, self._merge(data)
        except (PipelineError, OSError) as error:
            return HTTPStatus.CONFLICT, one_line(error)

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serve(
    folder: Path, port: int, *, merge: Callable[[bytes], str], verdicts: Callable[[], bytes]
) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """Yields a server on the loopback, which is not yet running, and the address of its first page, with the token.

    Args:
        folder: The gallery; it may be written anew meanwhile.
        port: 0 is any free one; one that is taken is a ConfigError.
        merge: Is given the bytes of a post, one post at a time, and returns a line; a PipelineError is the answer too.
        verdicts: Returns `verdicts.js` as it is now.
    """
    token, turn = secrets.token_urlsafe(24), threading.Lock()

    def merge_in_turn(data: bytes) -> str:
        with turn:
            return merge(data)

    handler = partial(_Handler, directory=str(folder), token=token, merge=merge_in_turn, verdicts=verdicts)
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen at port {port} ({error}); name another with --port, or 0 for any") from None
    with server:
        yield server, f"http://{HOST}:{server.server_address[1]}/#token={token}"

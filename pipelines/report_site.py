"""The folder of reports on the loopback, to be read and no more, so that a link to the report opens in a browser."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def report_site(folder: Path, port: int) -> Iterator[str]:
    """Serves `folder` at the yielded address while the block runs; on any free port where `port` is taken.

    The folder may come, go and come again: each answer looks it up anew.
    """
    handler = partial(_Quiet, directory=str(folder))
    try:
        site = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:
        site = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=site.serve_forever, name="reports", daemon=True).start()
    try:
        yield f"http://127.0.0.1:{site.server_address[1]}/"
    finally:
        site.shutdown()
        site.server_close()

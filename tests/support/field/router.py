"""A small server of OSRM's route protocol: it goes a bit to the east, and from there to the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DETOUR_DEG = 0.002


class _Roads(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = 404, b"{}"
        if self.path.startswith("/route/v1/foot/"):
            status, body = 200, json.dumps(_answer(self.path.split("/")[4].partition("?")[0])).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


def _answer(places: str) -> dict[str, object]:
    start, end = ([float(number) for number in place.split(",")] for place in places.split(";"))
    way = [start, [start[0] + DETOUR_DEG, start[1]], [start[0] + DETOUR_DEG, end[1]], end]
    return {"code": "Ok", "routes": [{"geometry": {"coordinates": way}}]}


@contextmanager
def router() -> Iterator[str]:
    """The address of a running router."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Roads)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

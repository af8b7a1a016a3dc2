"""A Kubernetes API server that repeats recorded answers to the cluster test, in their order.

The recording is of a run on a real cluster: each request with its answer, reduced to the fields that the test reads. The test sends the
same requests when it gets the same answers, so any other request is a fault. Objects that are applied aren't recorded, since manifests
change: each is accepted. After an answer that a test has changed, deletions
succeed, lists are empty and pods fail, so that the cluster test ends soon.

It was a single-node cluster of Kubernetes 1.20, for whose API the objects had been converted; paths and version of the recording are
those of 1.30.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

RECORDING = Path(__file__).with_name("recorded_api.json.gz")


class Answer(NamedTuple):
    """A request and its answer."""

    method: str
    path: str
    """Path without its query, followed by `?dryRun` for a dry run."""
    status: int
    body: Any
    """JSON of the answer, or the text of a log; only for GET."""


Change = Callable[[Answer], Answer]


def recording() -> list[Answer]:
    """All recorded answers in their order."""
    content = json.loads(gzip.decompress(RECORDING.read_bytes()))
    return [Answer(method, path, status, content["bodies"][body]) for method, path, status, body in content["answers"]]


@dataclass
class RecordedApi:
    """The served recording, and what was asked."""

    change: Change
    asked: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Requests that the recording doesn't have."""
    left: bool = False
    """Whether a changed answer was given, after which the test goes its own way."""
    port: int = 0
    _deleted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._answers = iter(recording())

    def answer(self, method: str, path: str) -> Answer:
        """The next recorded answer, if the request is the recorded one."""
        self.asked.append((method, path))
        if method == "PATCH":
            return self._patched(Answer(method, path, HTTPStatus.OK, {}))
        if not self.left:
            recorded = next(self._answers, None)
            if recorded and recorded[:2] == (method, path):
                changed = self.change(recorded)
                self.left = changed is not recorded
                return changed
            if method != "DELETE":
                self.wrong.append(f"{method} {path}, recorded: {recorded and recorded[:2]}")
            self.left = True
        if method == "DELETE":
            self._deleted.add(path)
            return Answer(method, path, HTTPStatus.OK, {})
        if path in self._deleted:
            return Answer(method, path, HTTPStatus.NOT_FOUND, {"message": "not found"})
        return Answer(method, path, HTTPStatus.OK, {"items": [], "status": {"phase": "Failed"}})

    def _patched(self, accepted: Answer) -> Answer:
        changed = accepted if self.left else self.change(accepted)
        self.left = self.left or changed is not accepted
        return changed


@contextmanager
def recorded_api(change: Change = lambda answer: answer) -> Iterator[RecordedApi]:
    """Serves the recording on loopback. `change` may return another answer than the recorded one."""
    api = RecordedApi(change)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _, query = self.path.partition("?")
            answer = api.answer(self.command, path + ("?dryRun" if "dryRun" in query else ""))
            body = (answer.body if isinstance(answer.body, str) else json.dumps(answer.body)).encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PATCH = do_POST = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        api.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()

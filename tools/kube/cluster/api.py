"""A client of the Kubernetes API for the cluster test: plain requests to `kubectl proxy`, which does the authentication."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlencode

from tools.kube.render import Object, kubectl

PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "PriorityClass": "priorityclasses",
    "StorageClass": "storageclasses",
}
"""Path segments of kinds whose plural isn't the kind with an s."""
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
MANAGER = "tandem-cluster-test"
ANSWERED_WITHIN_S = 60.0
REFUSED = 429
"""Status of an eviction that a PodDisruptionBudget refuses for now."""


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, request: str, *, status: int, reason: str) -> None:
        super().__init__(f"{request}: {status}: {reason}")
        self.status = status
        """HTTP status of the answer."""


class Api:
    """The API of a cluster, at the address of its proxy."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port

    def get(self, path: str) -> Object:
        """The object or list at a path. Raises ApiError."""
        return self._json("GET", path)

    def items(self, kind: str, version: str, namespace: str = "") -> list[Object]:
        """All objects of a kind, in a namespace if it is given."""
        return list(self.get(_path({"kind": kind, "apiVersion": version}, namespace, named=False)).get("items", ()))

    def exists(self, path: str) -> bool:
        """Whether an object exists."""
        try:
            self.get(path)
        except ApiError as error:
            if error.status == http.client.NOT_FOUND:
                return False
            raise
        return True

    def text(self, path: str) -> str:
        """A text, such as a log."""
        return self._request("GET", path)

    def apply(self, obj: Object, *, dry_run: bool = False) -> None:
        """Creates or changes an object by server-side apply; unknown fields are refused. A dry run stores nothing."""
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"} | (
            {"dryRun": "All"} if dry_run else {}
        )
        path = f"{_path(obj, obj['metadata'].get('namespace', ''))}?{urlencode(query)}"
        self._json("PATCH", path, obj, kind="application/apply-patch+yaml")

    def patch(self, obj: Object, change: Object) -> None:
        """Merges a change into an object."""
        path = _path(obj, obj["metadata"].get("namespace", ""))
        self._json("PATCH", path, change, kind="application/strategic-merge-patch+json")

    def evict(self, pod: Object) -> bool:
        """Evicts a pod. Returns False if a PodDisruptionBudget refuses it for now."""
        metadata = {key: pod["metadata"][key] for key in ("name", "namespace")}
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/eviction"
        try:
            self._json("POST", path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})
        except ApiError as error:
            if error.status == REFUSED:
                return False
            raise
        return True

    def delete(self, obj: Object, *, grace_s: int | None = None) -> None:
        """Deletes an object and what it owns. An absent object is no error."""
        options: Object = {"propagationPolicy": "Background"} | (
            {} if grace_s is None else {"gracePeriodSeconds": grace_s}
        )
        try:
            self._json("DELETE", _path(obj, obj["metadata"].get("namespace", "")), options)
        except ApiError as error:
            if error.status != http.client.NOT_FOUND:
                raise

    def _json(self, method: str, path: str, body: Object | None = None, *, kind: str = "application/json") -> Object:
        answer = json.loads(self._request(method, path, json.dumps(body).encode() if body else b"", kind=kind))
        return answer if isinstance(answer, dict) else {}

    def _request(self, method: str, path: str, body: bytes = b"", *, kind: str = "") -> str:
        connection = http.client.HTTPConnection(*self._address, timeout=ANSWERED_WITHIN_S)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        finally:
            connection.close()
        if response.status >= http.client.BAD_REQUEST:
            try:
                reason = json.loads(text)["message"]
            except (ValueError, KeyError, TypeError):
                reason = text[:500]
            raise ApiError(f"{method} {path.partition('?')[0]}", status=response.status, reason=reason)
        return text


def path_of(obj: Object) -> str:
    """Path of an object."""
    return _path(obj, obj["metadata"].get("namespace", ""))


def _path(obj: Object, namespace: str, *, named: bool = True) -> str:
    version = obj["apiVersion"]
    parts: Sequence[str] = ("apis" if "/" in version else "api", version)
    if namespace and obj["kind"] not in CLUSTER_WIDE:
        parts = (*parts, "namespaces", namespace)
    plural = PLURALS.get(obj["kind"], f"{obj['kind'].lower()}s")
    return "/" + "/".join((*parts, plural, *([obj["metadata"]["name"]] if named else [])))


@contextmanager
def proxied(context: str) -> Iterator[Api]:
    """The API of the cluster of a kubeconfig context; empty for the current one. Raises RuntimeError if kubectl can't start."""
    chosen = ("--context", context) if context else ()
    command = (kubectl(), *chosen, "proxy", "--port", "0", "--reject-methods", "")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as proxy:
        try:
            lines = proxy.stdout or ()
            serving = re.search(r"127\.0\.0\.1:(\d+)", next(iter(lines), ""))
            if not serving:
                why = proxy.stderr.read().strip()[-500:] if proxy.stderr else ""
                raise RuntimeError(f"kubectl proxy doesn't start: {why}")
            yield Api("127.0.0.1", int(serving[1]))
        finally:
            proxy.terminate()

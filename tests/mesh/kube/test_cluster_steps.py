"""Steps of the cluster test against the recorded answers of an API server, also with answers that a broken cluster gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.support.kube.recorded_api import Answer, Change, RecordedApi, recorded_api
from tools.kube.__main__ import given
from tools.kube.cluster import __main__ as command
from tools.kube.cluster import workloads
from tools.kube.cluster.api import Api
from tools.kube.cluster.steps import ORDER, ClusterTest
from tools.kube.cluster.workloads import name_of
from tools.kube.render import K8S, containers, pod_of, render

IMAGE, BEFORE = "localhost/tandem:next", "localhost/tandem:before"
STEPS = [
    "the cluster",
    "server-side dry run",
    "apply",
    "wait",
    "demo by mutual TLS",
    "roll every workload",
    "evict",
    "delete pods, 4 at a time",
    "upgrade",
    "alerts",
]
NAMESPACE = "/api/v1/namespaces/tandem"


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "POLL_S", 0.0)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with a certificate of a caller."""
    folder = tmp_path / "certs" / "npa-desk-seoul"
    folder.mkdir(parents=True)
    (folder / "tls.crt").write_text("certificate")
    return folder.parent


@pytest.fixture
def cluster_test(certificates: Path) -> Callable[[RecordedApi], ClusterTest]:
    """Makes the test of the local overlay on a recorded API server."""

    def made(api: RecordedApi) -> ClusterTest:
        return ClusterTest(
            api=Api("127.0.0.1", api.port),
            objects=render(K8S / "overlays" / "local"),
            secrets={name: {"key": "value"} for name in SECRETS},
            certificates=certificates,
            image=IMAGE,
            image_before=BEFORE,
            optional=command.OBSERVATION,
        )

    return made


SECRETS = tuple(given(command.OVERLAY))


def test_all_steps_pass_on_a_recorded_cluster(
    cluster_test: Callable[[RecordedApi], ClusterTest], capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded_api() as api:
        test = cluster_test(api)
        exit_code = command.run(test, keep=False)
    lines = capsys.readouterr().out.splitlines()
    assert api.wrong == []
    assert [line.split(" s  ", 1)[1].partition(" (")[0] for line in lines if not line.startswith("FAILED")] == [
        *STEPS,
        "take down",
    ]
    assert test.found == RESTARTED and exit_code == 1
    deleted = [path for method, path in api.asked if method == "DELETE"]
    assert NAMESPACE in deleted and sum("priorityclasses" in path for path in deleted) == 3


RESTARTED = [
    "registry-6cbf7c566c-tcqxr: 1 times, last Completed code 0",
    "registry-764647f7c6-lx8hf: 1 times, last Error code 139",
]
"""What the recorded run found, on a machine with a load average of 43."""


def changed(method: str, path: str, status: int, body: Any) -> Change:
    """Another answer for a request."""
    return lambda answer: answer._replace(status=status, body=body) if answer[:2] == (method, path) else answer


def pods(edit: Callable[[dict[str, Any]], None]) -> Change:
    """Changed pods in each list of pods."""

    def change(answer: Answer) -> Answer:
        if answer[:2] != ("GET", f"{NAMESPACE}/pods") or not answer.body["items"]:
            return answer
        body = json.loads(json.dumps(answer.body))
        for pod in body["items"]:
            edit(pod)
        return answer._replace(body=body)

    return change


def without_image(pod: dict[str, Any]) -> None:
    if pod["metadata"]["name"].startswith("nats-"):
        pod["status"]["containerStatuses"] = [
            {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}
        ]


def differing(answer: Answer) -> Answer:
    if "cluster-test-alerts" in answer.path and answer.path.endswith("/log"):
        return answer._replace(body='{"stored": 58, "folded": 57, "same": false, "not_reached": 0}\n')
    return answer


def unwarned(answer: Answer) -> Answer:
    if "cluster-test-alerts" in answer.path and answer.path.endswith("/log"):
        return answer._replace(body='{"stored": 58, "folded": 58, "same": true, "not_reached": 2}\n')
    return answer


def failing_demo(answer: Answer) -> Answer:
    if answer[:2] == ("GET", f"{NAMESPACE}/pods/cluster-test-demo-1"):
        return answer._replace(body={"status": {"phase": "Failed"}})
    return answer


BROKEN: dict[str, tuple[Change, str, bool]] = {
    "an old server": (
        changed("GET", "/version", HTTPStatus.OK, {"gitVersion": "v1.29.4"}),
        "the server is v1.29.4; the manifests need 1.30 or newer",
        False,
    ),
    "no default storage": (
        changed("GET", "/apis/storage.k8s.io/v1/storageclasses", HTTPStatus.OK, {"items": []}),
        "no StorageClass is the default",
        False,
    ),
    "the namespace is used": (
        changed("GET", NAMESPACE, HTTPStatus.OK, {"metadata": {"name": "tandem"}}),
        "the namespace tandem exists, and the test would delete it",
        False,
    ),
    "an object is refused": (
        changed(
            "PATCH",
            "/apis/apps/v1/namespaces/tandem/statefulsets/nats?dryRun",
            HTTPStatus.UNPROCESSABLE_ENTITY,
            {"message": 'unknown field "spec.replica"'},
        ),
        'PATCH /apis/apps/v1/namespaces/tandem/statefulsets/nats: 422: unknown field "spec.replica"',
        True,
    ),
    "a Job fails": (
        changed(
            "GET",
            "/apis/batch/v1/namespaces/tandem/jobs/streams",
            HTTPStatus.OK,
            {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}},
        ),
        "Job streams: BackoffLimitExceeded",
        True,
    ),
    "an image isn't in the nodes": (pods(without_image), "load its image into the nodes", True),
    "the demo fails": (failing_demo, "FAILED: demo by mutual TLS (", True),
    "the alerts differ": (differing, "58 alerts are stored, an offline fold gives 57", True),
    "nobody was warned": (unwarned, "2 warnings reached nobody", True),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_cluster_fails_the_test_and_is_cleared(
    name: str, cluster_test: Callable[[RecordedApi], ClusterTest], capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected, is_deleted = BROKEN[name]
    with recorded_api(change) as api:
        assert command.run(cluster_test(api), keep=False) == 1
    output = capsys.readouterr().out
    assert expected in output and "FAILED: " in output, output
    assert api.wrong == []
    assert (("DELETE", NAMESPACE) in api.asked) == is_deleted


def test_keep_deletes_nothing_that_was_applied(cluster_test: Callable[[RecordedApi], ClusterTest]) -> None:
    with recorded_api(failing_demo) as api:
        assert command.run(cluster_test(api), keep=True) == 1
    assert not any(method == "DELETE" and "/pods/" not in path for method, path in api.asked)


def test_a_second_eviction_below_the_budget_is_a_fault(cluster_test: Callable[[RecordedApi], ClusterTest]) -> None:
    def generous(answer: Answer) -> Answer:
        if (
            answer.method == "POST"
            and answer.path.endswith("/eviction")
            and answer.status == HTTPStatus.TOO_MANY_REQUESTS
        ):
            return answer._replace(status=HTTPStatus.OK)
        return answer

    with recorded_api(generous) as api:
        test = cluster_test(api)
        command.run(test, keep=True)
    assert any("a second pod was evicted while the first was missing" in line for line in test.found)


def test_a_container_that_ended_by_itself_is_a_fault(
    cluster_test: Callable[[RecordedApi], ClusterTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    pod = {"metadata": {"name": "ingest-1"}, "status": {"containerStatuses": [{"restartCount": 2, "lastState": last}]}}
    with recorded_api() as api:
        test = cluster_test(api)
        monkeypatch.setattr(test.state, "pods", lambda: [pod])
        test.note_restarts()
    assert test.found == ["ingest-1: 2 times, last OOMKilled code 137"]


@pytest.mark.parametrize("overlay", ["local", "production"])
def test_the_upgrade_replaces_each_workload_of_tandem(overlay: str) -> None:
    names = {
        name_of(obj)
        for obj in render(K8S / "overlays" / overlay)
        if pod_of(obj) and obj["kind"] != "Job" and any("tandem" in each["image"] for each in containers(obj))
    }
    replaced = tuple(part for parts in ORDER for part in parts)
    assert len(names) > 7 and {name for name in names if not name.startswith(replaced)} == set()


def test_an_image_option_needs_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.arguments(["--image", "localhost/tandem:next"])
    assert "must be NAME=IMAGE" in capsys.readouterr().err

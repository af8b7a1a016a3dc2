"""What a real cluster showed of the manifests: rights of volumes, the oldest version, and a Job that waits for its database."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from services.cli.commands.mesh import streams
from services.cli.failure import CommandFailed
from services.common.rpc.errors import Unavailable
from services.common.storage import db
from tools.kube import policies
from tools.kube.__main__ import K8S, KUBERNETES, OVERLAYS, ROOT, schema_findings
from tools.kube.render import Object, pod_of, render


def named(overlay: str, kind: str, name: str) -> Object:
    (found,) = (
        one for one in render(K8S / "overlays" / overlay) if (one["kind"], one["metadata"]["name"]) == (kind, name)
    )
    return found


def test_a_pod_that_comes_back_finds_its_database_with_the_rights_that_postgresql_demands() -> None:
    pod = pod_of(named("local", "StatefulSet", "postgres"))
    assert pod is not None
    assert pod["spec"]["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


@pytest.mark.parametrize("name", ["postgres", "nats", "geofence"])
def test_a_volume_whose_rights_each_start_changes_is_found(name: str) -> None:
    one = json.loads(json.dumps(named("local", "StatefulSet", name)))
    del one["spec"]["template"]["spec"]["securityContext"]["fsGroupChangePolicy"]
    assert any("fsGroupChangePolicy" in line for line in policies.findings([one]))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_oldest_version_that_the_document_names_takes_what_is_rendered(overlay: str) -> None:
    oldest = KUBERNETES[0]
    assert f"Kubernetes {oldest} or newer" in (ROOT / "docs" / "kubernetes.md").read_text()
    assert schema_findings(render(K8S / "overlays" / overlay)) == []


def test_a_field_that_the_oldest_version_lacks_is_found() -> None:
    pod = named("local", "Deployment", "registry")
    with pytest.raises(kubernetes_validate.ValidationError, match="sleep"):
        kubernetes_validate.validate(pod, "1.28", strict=True)
    newer = json.loads(json.dumps(pod))
    newer["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["stopSignal"] = "SIGINT"  # since 1.33
    assert any("stopSignal" in line and "1.30" in line for line in schema_findings([newer]))


def test_the_job_of_migrations_may_wait_as_long_as_the_program_does() -> None:
    job = named("local", "Job", "migrations")
    assert job["spec"]["activeDeadlineSeconds"] > streams.MIGRATE_WITHIN_S + 60


async def test_migrations_wait_for_their_database_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = "postgresql://registry@127.0.0.1:9/registry"
    with pytest.raises(CommandFailed, match="the database didn't answer for 1 s"):
        await streams._migrate(nobody, 1.0)
    assert "not yet: the database doesn't answer; asked again in 1 s" in capsys.readouterr().err


async def test_migrations_are_done_once_the_database_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RETRY_DELAY_S", 0.01)
    opened, tries = db.open_database, 0

    def refused_twice(*arguments: Any) -> AbstractAsyncContextManager[db.Database]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unavailable("the database doesn't answer", retry_after_s=1.0)
        return opened(*arguments)

    monkeypatch.setattr(db, "open_database", refused_twice)
    await streams._migrate(tmp_path / "registry.sqlite3", 60.0)
    assert tries == 3 and (tmp_path / "registry.sqlite3").exists()

"""Faults of the manifests that only a real cluster showed: volume permissions, the oldest version, and a Job that waits for its
database."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from services.cli.commands import machine
from services.common.errors import Unavailable
from services.common.failure import CommandFailed
from services.common.retrying import Backoff
from services.common.storage import db
from tools.kube import policies, schemas
from tools.kube.__main__ import ROOT
from tools.kube.render import K8S, OVERLAYS, Object, pod_of, render


def named(overlay: str, kind: str, name: str) -> Object:
    (found,) = (
        manifest
        for manifest in render(K8S / "overlays" / overlay)
        if (manifest["kind"], manifest["metadata"]["name"]) == (kind, name)
    )
    return found


def test_a_restarted_postgres_pod_keeps_the_required_permissions_of_its_volume() -> None:
    pod = pod_of(named("local", "StatefulSet", "postgres"))
    assert pod is not None
    assert pod["spec"]["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


@pytest.mark.parametrize("name", ["postgres", "nats", "geofence"])
def test_a_volume_whose_permissions_change_at_each_start_is_found(name: str) -> None:
    stateful_set = json.loads(json.dumps(named("local", "StatefulSet", name)))
    del stateful_set["spec"]["template"]["spec"]["securityContext"]["fsGroupChangePolicy"]
    assert any("fsGroupChangePolicy" in line for line in policies.findings([stateful_set]))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid_for_the_oldest_documented_kubernetes(overlay: str) -> None:
    oldest = schemas.KUBERNETES[0]
    assert f"Kubernetes {oldest} or newer" in (ROOT / "docs" / "reference" / "kubernetes.md").read_text()
    assert schemas.findings(render(K8S / "overlays" / overlay)) == []


def test_a_field_that_the_oldest_version_lacks_is_found() -> None:
    pod = named("local", "Deployment", "registry")
    with pytest.raises(kubernetes_validate.ValidationError, match="sleep"):
        kubernetes_validate.validate(pod, "1.28", strict=True)
    newer = json.loads(json.dumps(pod))
    newer["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["stopSignal"] = "SIGINT"  # since 1.33
    assert any("stopSignal" in line and "1.30" in line for line in schemas.findings([newer]))


def test_the_deadline_of_the_migrations_job_exceeds_that_of_its_program() -> None:
    job = named("local", "Job", "migrations")
    assert job["spec"]["activeDeadlineSeconds"] > db.MIGRATE_WITHIN_S + 60


async def test_migrations_wait_for_their_database_and_print_it(capsys: pytest.CaptureFixture[str]) -> None:
    no_server = "postgresql://registry@127.0.0.1:9/registry"
    with pytest.raises(CommandFailed, match="the database didn't answer for 1 s"):
        await machine._migrate(no_server, 1.0)
    assert "not yet: the database doesn't answer; asked again in 1 s" in capsys.readouterr().err


async def test_migrations_run_once_the_database_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RETRY", Backoff(0.01, 0.01))
    opened, tries = db.open_database, 0

    def refused_twice(*arguments: Any) -> AbstractAsyncContextManager[db.Database]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unavailable("the database doesn't answer", retry_after_s=1.0)
        return opened(*arguments)

    monkeypatch.setattr(db, "open_database", refused_twice)
    await machine._migrate(tmp_path / "registry.sqlite3", 60.0)
    assert tries == 3 and (tmp_path / "registry.sqlite3").exists()

"""checkov finds each of many seeded faults, passes both overlays, and demands digests of an operator's overlay."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.kube import checkov
from tools.kube.__main__ import check
from tools.kube.render import K8S, OVERLAYS, containers, render

NAMES = ("base", "overlays", "observability")


@pytest.fixture
def _checkov_is_installed() -> None:
    if not checkov.PROGRAM.exists():
        pytest.skip("checkov isn't installed: run `make .venv-checkov/.ready`")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy of k8s/ for seeding faults."""
    for name in NAMES:
        shutil.copytree(K8S / name, tmp_path / name)
    return tmp_path


@pytest.mark.usefixtures("_checkov_is_installed")
def test_the_overlays_pass_checkov() -> None:
    assert checkov.findings({name: render(K8S / "overlays" / name) for name in OVERLAYS}) == []


def seed(file: Path, good: str, bad: str) -> None:
    text = file.read_text()
    assert good in text
    file.write_text(text.replace(good, bad, 1))


FAULTS_FOR_CHECKOV: dict[str, tuple[str, str, str, str]] = {
    "root": (
        "base/registry.yaml",
        "runAsNonRoot: true, runAsUser: 10001",
        "runAsUser: 0",
        "Deployment/registry: CKV_K8S_23",
    ),
    "a writable image": (
        "base/dispatch.yaml",
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        "Deployment/dispatch-probation: CKV_K8S_22",
    ),
    "an image isn't pinned": (
        "base/kustomization.yaml",
        "newTag: 0.1.0",
        "newTag: latest",
        "Deployment/registry: CKV_K8S_14",
    ),
    "a token of the API": (
        "base/geofence.yaml",
        "      automountServiceAccountToken: false\n",
        "",
        "StatefulSet/geofence: CKV_K8S_38",
    ),
    "no seccomp profile": (
        "base/ingest.yaml",
        ", seccompProfile: {type: RuntimeDefault}",
        "",
        "Deployment/ingest: CKV_K8S_31",
    ),
    "more privileges": (
        "base/nats.yaml",
        "allowPrivilegeEscalation: false",
        "allowPrivilegeEscalation: true",
        "StatefulSet/nats: CKV_K8S_20",
    ),
    "a capability": (
        "observability/traces.yaml",
        "capabilities: {drop: [ALL]}",
        "capabilities: {drop: [ALL], add: [NET_ADMIN]}",
        "Deployment/otel-collector: CKV_K8S_25",
    ),
    "the node's network": (
        "observability/metrics.yaml",
        "      serviceAccountName: prometheus\n",
        "      serviceAccountName: prometheus\n      hostNetwork: true\n",
        "Deployment/prometheus: CKV_K8S_19",
    ),
    "no limit on memory": (
        "observability/metrics.yaml",
        "            limits: {memory: 512Mi}\n",
        "",
        "Deployment/grafana: CKV_K8S_13",
    ),
    "no probe of readiness": (
        "overlays/local/postgres.yaml",
        "          readinessProbe: {exec: {command: [pg_isready, -h, 127.0.0.1, -U, registry]}, periodSeconds: 5, timeoutSeconds: 5}\n",
        "",
        "StatefulSet/postgres: CKV_K8S_9",
    ),
    "a secret in the environment": (
        "base/jobs.yaml",
        "            - {name: TANDEM_SECRETS_DIR, value: /secrets}\n",
        "            - {name: TANDEM_SECRETS_DIR, value: /secrets}\n"
        "            - {name: TANDEM_REGISTRY_KEY, valueFrom: {secretKeyRef: {name: registry-keys, key: registry-key}}}\n",
        "Job/migrations: CKV_K8S_35",
    ),
}
"""File, its correct text, the faulty text, and a part of the expected finding."""


@pytest.mark.usefixtures("_checkov_is_installed")
def test_checkov_finds_each_seeded_fault(copy: Path) -> None:
    for name, good, bad, _ in FAULTS_FOR_CHECKOV.values():
        seed(copy / name, good, bad)
    found = checkov.findings({"local": render(copy / "overlays" / "local")})
    missed = [
        fault for fault, (*_, expected) in FAULTS_FOR_CHECKOV.items() if not any(expected in line for line in found)
    ]
    assert missed == [], found


DIGEST = "@sha256:" + "0123456789abcdef" * 4


@pytest.mark.usefixtures("_checkov_is_installed")
def test_an_operators_overlay_must_name_each_image_by_digest(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    overlay = tmp_path / "agency"
    overlay.mkdir()
    file = overlay / "kustomization.yaml"
    images = {
        container["image"].partition("@")[0].rpartition(":")[0]
        for manifest in render(K8S / "overlays" / "production")
        for container in containers(manifest)
    }
    content: dict[str, list[Any]] = {
        "resources": ["../k8s/overlays/production"],
        "images": [{"name": image, "newName": image, "digest": DIGEST[1:]} for image in sorted(images)],
    }
    file.write_text(yaml.safe_dump(content))
    assert check([overlay]) == []

    content["images"] = content["images"][:-1]
    file.write_text(yaml.safe_dump(content))
    found = check([overlay])
    assert found and all("CKV_K8S_43" in line for line in found)

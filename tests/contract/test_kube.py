"""Kubernetes manifests: each overlay passes the checks, and the checks find each of many seeded faults."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from tools.kube.__main__ import K8S, OVERLAYS, ROOT, containerfile_findings, findings, schema_findings, users
from tools.kube.render import RenderError, render

NAMES = ("base", "overlays", "observability")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy of k8s/ for seeding faults."""
    for name in NAMES:
        shutil.copytree(K8S / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_passes_all_checks(overlay: str) -> None:
    assert findings(K8S / "overlays" / overlay) == []


def test_the_nats_users_of_the_manifests_match_the_flow_table() -> None:
    assert (K8S / "base" / "nats" / "users.conf").read_text() == users()


# ── seeded faults ────────────────────────────────────────────────────────────────────────────────────────────────────

Fault = tuple[str, str, str, str]
"""File, its correct text, the faulty text, and a part of the expected finding."""

FAULTS: dict[str, Fault] = {
    "a field is misspelt": ("base/ingest.yaml", "readinessProbe:", "readynessProbe:", "readynessProbe"),
    "a number is a word": ("base/geofence.yaml", "replicas: 2", "replicas: two", "replicas"),
    "an API version is gone": ("base/ingest.yaml", "autoscaling/v2\n", "autoscaling/v2beta2\n", "no schema"),
    "a key is there twice": ("base/nats.yaml", "  replicas: 3", "  replicas: 3\n  replicas: 1", "twice"),
    "a Service selects no pod": (
        "base/registry.yaml",
        "  selector: {app.kubernetes.io/name: registry}\n  ports",
        "  selector: {app.kubernetes.io/name: registrar}\n  ports",
        "selects no pod",
    ),
    "a port has no name": ("base/geofence.yaml", "targetPort: grpc", "targetPort: rpc", "targetPort rpc"),
    "a probe has a wrong port": (
        "base/dispatch.yaml",
        "path: /readyz, port: observe",
        "path: /readyz, port: http",
        "port http",
    ),
    "a Secret is missing": ("base/registry.yaml", "name: registry-database", "name: registry-databse", "no Secret"),
    "a key of a Secret is missing": ("base/registry.yaml", "key: registry-key}", "key: registrykey}", "registrykey"),
    "a volume isn't declared": ("base/geofence.yaml", "{name: tmp, mountPath", "{name: temp, mountPath", "mounts temp"),
    "a selector misses its pods": (
        "base/nats.yaml",
        "  selector: {matchLabels: {app.kubernetes.io/name: nats}}\n  template",
        "  selector: {matchLabels: {app.kubernetes.io/name: nats2}}\n  template",
        "doesn't match its own pods",
    ),
    "the autoscaler scales nothing": (
        "base/ingest.yaml",
        "kind: Deployment, name: ingest}",
        "kind: Deployment, name: in}",
        "scales",
    ),
    "a quantity is malformed": ("base/ingest.yaml", "memory: 192Mi", "memory: 192MB", "no quantity"),
    "root": ("base/registry.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "root"),
    "a writable image": (
        "base/dispatch.yaml",
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        "write to its image",
    ),
    "no drain": (
        "base/ingest.yaml",
        "terminationGracePeriodSeconds: 30",
        "terminationGracePeriodSeconds: 10",
        "killed before",
    ),
    "ingress is open": (
        "base/network.yaml",
        "policyTypes: [Ingress, Egress]",
        "policyTypes: [Ingress]",
        "closes all ways",
    ),
    "an image isn't pinned": ("base/kustomization.yaml", "newTag: 0.1.0", "newTag: latest", "isn't pinned"),
    "the log isn't synchronous": ("base/nats/nats.conf", "sync_interval: always", "sync_interval: 2m", "sync_interval"),
    "passwordless strangers": ("base/nats/nats.conf", "verify_and_map: true", "verify: true", "verify_and_map"),
    "more copies than servers": ("base/nats.yaml", "  replicas: 3", "  replicas: 1", "more than there are servers"),
    "evaluators disagree on their number": ("base/geofence.yaml", "replicas: 2", "replicas: 3", "TANDEM_REPLICAS"),
    "a setting that no service has": (
        "base/kustomization.yaml",
        "TANDEM_NATS_MONITOR_URL",
        "TANDEM_NATS_MONITORING_URL",
        "no setting",
    ),
    "a setting of another service": (
        "base/registry.yaml",
        "TANDEM_LEDGER_KEY",
        "TANDEM_REPLICA",
        "no setting of registry",
    ),
    "probes on a wrong port": (
        "base/kustomization.yaml",
        "TANDEM_METRICS_PORT=8080",
        "TANDEM_METRICS_PORT=8081",
        "its port observe 8080",
    ),
    "a program without metrics": (
        "base/registry.yaml",
        'args: ["-m", "services.registry"]',
        'args: ["-m", "services.nothing"]',
        "shows nothing of itself",
    ),
    "a process that may hang for long": (
        "base/geofence.yaml",
        "failureThreshold: 3, terminationGracePeriodSeconds: 1}",
        "failureThreshold: 3}",
        "may stand still for longer than 5 s",
    ),
    "a busy process is killed": (
        "base/ingest.yaml",
        "timeoutSeconds: 1, failureThreshold: 3, terminationGracePeriodSeconds: 1}",
        "timeoutSeconds: 1, failureThreshold: 1, terminationGracePeriodSeconds: 1}",
        "may only be busy",
    ),
    "servers that elect a leader are killed": (
        "base/nats.yaml",
        '/healthz?js-enabled-only=true", port: monitor}, periodSeconds: 1',
        '/healthz?js-server-only=true", port: monitor}, periodSeconds: 1',
        "elect a leader",
    ),
    "a development secret": (
        "base/kustomization.yaml",
        "TANDEM_METRICS_PORT=8080",
        "TANDEM_DEV_SECRET=abc",
        "doesn't belong",
    ),
    "no budget for disruptions": (
        "base/geofence.yaml",
        "kind: PodDisruptionBudget",
        "kind: PodDisruptionBudgets",
        "no schema",
    ),
    "a patch of nothing": ("overlays/local/small.yaml", "metadata: {name: nats}", "metadata: {name: nast}", "patch"),
    "an unknown field of kustomize": (
        "overlays/local/kustomization.yaml",
        "namespace: tandem",
        "namePrefix: x-",
        "namePrefix",
    ),
    "a console of another agency than its certificate": (
        "base/console.yaml",
        "TANDEM_CONSOLE_ROLE, value: police",
        "TANDEM_CONSOLE_ROLE, value: probation",
        "is a console of probation, and proves itself with tls-console-police",
    ),
    "a console that may not ask its leg": (
        "base/console.yaml",
        "app.kubernetes.io/name: dispatch-police",
        "app.kubernetes.io/name: dispatch-warning",
        "no way leads out to dispatch-police:7405",
    ),
    "a collector with a wrong port": (
        "base/registry.yaml",
        "https://otel-collector:4317",
        "https://otel-collector:4318",
        "asks otel-collector:4318, which is no Service",
    ),
    "a collector without an ingress rule": (
        "observability/traces.yaml",
        "app.kubernetes.io/name: registry}}}]\n      ports: [{port: 4317}]",
        "app.kubernetes.io/name: ingest}}}]\n      ports: [{port: 4317}]",
        "no way leads into otel-collector:4317",
    ),
    "a wrong service name in the Prometheus configuration": (
        "observability/config/prometheus.yaml",
        "console-police-observed",
        "console-police-observer",
        "asks console-police-observer:8080",
    ),
    "a missing dashboard": (
        "observability/kustomization.yaml",
        "dashboards/tandem-review.json",
        "dashboards/tandem-reviews.json",
        "tandem-reviews.json",
    ),
    "a pod without a priority": (
        "base/dispatch.yaml",
        "      priorityClassName: tandem-response\n",
        "",
        "has no priority",
    ),
    "a priority that is declared nowhere": (
        "base/registry.yaml",
        "priorityClassName: tandem-record",
        "priorityClassName: tandem-records",
        "PriorityClass tandem-records",
    ),
    "records as heavy as the response": (
        "base/registry.yaml",
        "requests: {cpu: 100m",
        "requests: {cpu: 300m",
        "requests 300m of cpu, as much as",
    ),
    "a port that differs from its setting": ("base/registry.yaml", 'value: "7401"', 'value: "7402"', "TANDEM_PORT"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(copy: Path, fault: str) -> None:
    name, good, bad, expected = FAULTS[fault]
    file = copy / name
    text = file.read_text()
    assert good in text
    file.write_text(text.replace(good, bad, 1))
    found = findings(copy / "overlays" / "local")
    assert any(expected in line for line in found), found


def test_a_certificate_of_another_service_is_found(copy: Path) -> None:
    file = copy / "overlays" / "production" / "certificates.yaml"
    file.write_text(file.read_text().replace("spiffe://tandem/service/ingest", "spiffe://tandem/service/registry"))
    assert findings(copy / "overlays" / "production") == [
        "Certificate/ingest: isn't for the one SPIFFE id of its service"
    ]


@pytest.mark.parametrize(
    ("good", "bad", "code"),
    [
        ("ARG BASE_IMAGE=python:3.13-slim", "ARG BASE_IMAGE=python:latest", "DL3007"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("WORKDIR /tmp", "WORKDIR tmp", "DL3000"),
    ],
)
def test_a_fault_of_the_containerfile_is_found(tmp_path: Path, good: str, bad: str, code: str) -> None:
    file, text = tmp_path / "Containerfile", (ROOT / "Containerfile").read_text()
    assert good in text
    if bad.endswith("latest"):
        text = text.replace("FROM ${BASE_IMAGE}\nARG", "FROM python:latest\nARG")
    file.write_text(text.replace(good, bad))
    found = containerfile_findings(file)
    if not found and not containerfile_findings_possible():
        pytest.skip("hadolint has no binary for this machine")
    assert any(code in line for line in found), found


def containerfile_findings_possible() -> bool:
    return (Path(sysconfig.get_path("scripts")) / "hadolint").exists()


# ── the renderer ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_renderer_gives_the_same_objects_as_kubectl(overlay: str) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl isn't installed, so its output can't be compared")
    folder = K8S / "overlays" / overlay
    rendered = subprocess.run(("kubectl", "kustomize", folder), capture_output=True, text=True, check=True).stdout

    def key(manifest: dict[str, dict[str, str]]) -> tuple[str, str]:
        return str(manifest["kind"]), manifest["metadata"]["name"]

    assert sorted(render(folder), key=key) == sorted(yaml.safe_load_all(rendered), key=key)


def test_objects_without_schema_or_exemption_are_refused() -> None:
    alien = {"apiVersion": "example/v1", "kind": "Thing", "metadata": {"name": "x"}}
    assert schema_findings([alien]) == ["Thing/x: example/v1 Thing has no schema and no exemption"]


def test_a_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nothing.yaml]\n")
    with pytest.raises(RenderError, match=r"nothing\.yaml"):
        render(tmp_path)

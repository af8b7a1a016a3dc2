"""Kubernetes manifests: each overlay passes the checks, and the checks find each of many seeded faults."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from tools.kube import schemas
from tools.kube.__main__ import ROOT, containerfile_findings, findings, generated, given
from tools.kube.render import K8S, OVERLAYS, RenderError, render

NAMES = ("base", "overlays", "observability")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy of k8s/ for seeding faults."""
    for name in NAMES:
        shutil.copytree(K8S / name, tmp_path / name)
    return tmp_path


def faults_of(overlay: Path) -> list[str]:
    """Faults of an overlay besides checkov's, or why it can't be rendered."""
    try:
        return findings(render(overlay), given(overlay))
    except RenderError as error:
        return [str(error)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_passes_all_checks(overlay: str) -> None:
    assert faults_of(K8S / "overlays" / overlay) == []


def test_the_generated_manifests_are_fresh() -> None:
    assert {name: (K8S / name).read_text() for name in generated()} == generated()


# ── seeded faults ────────────────────────────────────────────────────────────────────────────────────────────────────

Fault = tuple[str, str, str, str]
"""File, its correct text, the faulty text, and a part of the expected finding."""

FAULTS: dict[str, Fault] = {
    "a field is misspelt": ("base/ingest.yaml", "readinessProbe:", "readynessProbe:", "readynessProbe"),
    "a number is a word": ("base/geofence.yaml", "replicas: 2", "replicas: two", "replicas"),
    "an API version is gone": ("base/ingest.yaml", "autoscaling/v2\n", "autoscaling/v2beta2\n", "no schema"),
    "a key is there twice": ("base/nats.yaml", "  replicas: 3", "  replicas: 3\n  replicas: 1", "already defined"),
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
    "a key of a Secret is missing": ("base/registry.yaml", "key: registry-key,", "key: registrykey,", "registrykey"),
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
    "a quantity is malformed": (
        "base/ingest.yaml",
        "limits: {memory: 1Gi}",
        "limits: {memory: 1GB}",
        "no quantity",
    ),
    "no drain": (
        "base/ingest.yaml",
        "terminationGracePeriodSeconds: 30",
        "terminationGracePeriodSeconds: 10",
        "killed before",
    ),
    "ingress is open": (
        "base/network.yaml",
        "  podSelector: {}\n  policyTypes:\n  - Ingress\n  - Egress\n",
        "  podSelector: {}\n  policyTypes:\n  - Ingress\n",
        "closes all ways",
    ),
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
    "a patch of nothing": (
        "overlays/local/small.yaml",
        "metadata: {name: nats}",
        "metadata: {name: nast}",
        "no matches",
    ),
    "an unknown field of kustomize": (
        "overlays/local/kustomization.yaml",
        "namespace: tandem",
        "namePrefixes: x-",
        "namePrefixes",
    ),
    "a console of another agency than its certificate": (
        "base/console.yaml",
        "TANDEM_CONSOLE_ROLE, value: police",
        "TANDEM_CONSOLE_ROLE, value: probation",
        "is a console of probation, and proves itself with tls-console-police",
    ),
    "a console that may not ask its leg": (
        "base/network.yaml",
        "          app.kubernetes.io/name: dispatch-police\n    ports:\n    - port: 7405\n",
        "          app.kubernetes.io/name: dispatch-warning\n    ports:\n    - port: 7406\n",
        "keeps console-police from calling dispatch-police:7405",
    ),
    "a collector with a wrong port": (
        "base/registry.yaml",
        "https://otel-collector:4317",
        "https://otel-collector:4318",
        "asks otel-collector:4318, which is no Service",
    ),
    "a collector without an ingress rule": (
        "observability/network.yaml",
        "          app.kubernetes.io/name: registry\n    ports:\n    - port: 4317\n",
        "          app.kubernetes.io/name: ingest\n    ports:\n    - port: 4317\n",
        "keeps registry from calling otel-collector:4317",
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
        "overlays/local/small.yaml",
        "requests: {cpu: 30m",
        "requests: {cpu: 60m",
        "requests 60m of cpu, as much as",
    ),
    "a port that differs from its setting": ("base/registry.yaml", 'value: "7401"', 'value: "7402"', "TANDEM_PORT"),
    "a port for field that differs from its setting": (
        "base/ingest.yaml",
        "{name: field, containerPort: 7433}",
        "{name: field, containerPort: 7434}",
        "TANDEM_FIELD_PORT is 7433, its port field 7434",
    ),
    "a field that asks where strangers do": (
        "base/field.yaml",
        "https://ingest:7433",
        "https://ingest:7432",
        "asks ingest:7432, which the table of calls doesn't have",
    ),
}


FAULTS_OF_CLUSTERS: dict[str, Fault] = {
    "a volume whose file rights change at each start": (
        "overlays/local/postgres.yaml",
        "fsGroupChangePolicy: OnRootMismatch, ",
        "",
        "changes the file rights on its volume",
    ),
    "an alert that misses the first event": (
        "observability/rules.yaml",
        "          or (tandem_evaluators_differ_total > 0 unless tandem_evaluators_differ_total offset 10m)\n",
        "",
        "alert EvaluatorsDiffer: misses the first event of tandem_evaluators_differ_total",
    ),
    "a field that the oldest supported version lacks": (
        "base/registry.yaml",
        "lifecycle: {preStop: {sleep: {seconds: 5}}}",
        "lifecycle: {stopSignal: SIGINT, preStop: {sleep: {seconds: 5}}}",
        "(Kubernetes 1.30)",
    ),
    "an oldest version that isn't the one of the schemas": (
        "base/namespace.yaml",
        'minimum-kubernetes: "1.30"',
        'minimum-kubernetes: "1.20"',
        "tandem/minimum-kubernetes is 1.20",
    ),
    "a Job that ends before its database's image is pulled": (
        "base/jobs.yaml",
        "activeDeadlineSeconds: 1800",
        "activeDeadlineSeconds: 600",
        "its program waits 1500 s for the database",
    ),
    "a dashboard that asks a trace store that isn't there": (
        "observability/dashboards/tandem-review.json",
        '"type": "jaeger"',
        '"type": "tempo"',
        "asks a data source of type tempo",
    ),
    "exemplars that lead nowhere": (
        "observability/config/sources.yaml",
        "datasourceUid: jaeger",
        "datasourceUid: tempo",
        "its exemplars lead to tempo",
    ),
    "a service name where gRPC takes addresses": (
        "base/console.yaml",
        "dns:///registry:7401",
        "ipv4:registry:7401",
        "TANDEM_REGISTRY gives a name where gRPC takes addresses only",
    ),
}
"""Faults that only a real cluster had shown before."""

FAULTS_OF_CONNECTIONS: dict[str, Fault] = {
    "an address that the table of calls doesn't have": (
        "base/console.yaml",
        'TANDEM_DISPATCH_POLICE, value: "dns:///dispatch-police:7405"',
        'TANDEM_DISPATCH_POLICE, value: "dns:///dispatch-probation:7404"',
        "asks dispatch-probation:7404, which the table of calls doesn't have",
    ),
    "a connection that nobody needs": (
        "base/network.yaml",
        "          app.kubernetes.io/name: dispatch-police\n    ports:\n    - port: 7405\n",
        "          app.kubernetes.io/name: dispatch-police\n    ports:\n    - port: 7405\n"
        "  - to:\n    - podSelector: {matchLabels: {app.kubernetes.io/name: dispatch-probation}}\n    ports:\n    - port: 7404\n",
        "permits console-police to call dispatch-probation:7404, which the table of calls doesn't have",
    ),
    "a service that can't reach the log": (
        "base/network.yaml",
        "          app.kubernetes.io/name: dispatch-warning\n    ports:\n    - port: 4222\n",
        "          app.kubernetes.io/name: dispatch-warning\n    ports:\n    - port: 4223\n",
        "keeps dispatch-warning from calling nats:4222",
    ),
    "a secret file that no setting reads": (
        "base/registry.yaml",
        "path: TANDEM_REGISTRY_KEY}",
        "path: TANDEM_REGISTER_KEY}",
        "TANDEM_REGISTER_KEY is no setting of registry",
    ),
}


@pytest.mark.parametrize("fault", [*FAULTS, *FAULTS_OF_CLUSTERS, *FAULTS_OF_CONNECTIONS])
def test_a_seeded_fault_is_found(copy: Path, fault: str) -> None:
    name, good, bad, expected = (FAULTS | FAULTS_OF_CLUSTERS | FAULTS_OF_CONNECTIONS)[fault]
    seed(copy / name, good, bad)
    found = faults_of(copy / "overlays" / "local")
    assert any(expected in line for line in found), found


def seed(file: Path, good: str, bad: str) -> None:
    text = file.read_text()
    assert good in text
    file.write_text(text.replace(good, bad, 1))


def test_an_entrance_needs_a_name_that_is_in_the_certificate(copy: Path) -> None:
    file = copy / "overlays" / "production" / "entrances.yaml"
    seed(file, "ingest.tandem.example", "reports.agency.example")
    assert faults_of(copy / "overlays" / "production") == [
        "Service/ingest-entrance: callers know it as reports.agency.example, which isn't a name in the certificate of ingest"
    ]
    file.write_text(
        file.read_text().replace(
            "  annotations: {external-dns.alpha.kubernetes.io/hostname: registry.tandem.example}\n", ""
        )
    )
    assert any("callers know it by no name" in line for line in faults_of(copy / "overlays" / "production"))


def test_a_certificate_of_another_service_is_found(copy: Path) -> None:
    file = copy / "overlays" / "production" / "certificates.yaml"
    file.write_text(file.read_text().replace("spiffe://tandem/service/ingest", "spiffe://tandem/service/registry"))
    assert faults_of(copy / "overlays" / "production") == [
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


def test_objects_without_schema_or_exemption_are_refused() -> None:
    alien = {"apiVersion": "example/v1", "kind": "Thing", "metadata": {"name": "x"}}
    assert schemas.findings([alien]) == ["Thing/x: example/v1 Thing has no schema and no exemption"]


def test_a_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nothing.yaml]\n")
    with pytest.raises(RenderError, match=r"nothing\.yaml"):
        render(tmp_path)

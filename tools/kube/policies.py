"""Our own policies for rendered objects: weights, orderly ends and bounds of what a pod may use, which checkov doesn't check."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from services.common.storage.db import MIGRATE_WITHIN_S
from tools.kube.identities import identity_of
from tools.kube.render import Object, containers, pod_of

FORBIDDEN_SETTINGS = {"TANDEM_DEV_SECRET", "TANDEM_ALLOW_ASYNC_STORE", "TANDEM_CLOCK_RATE"}
"""Settings for development on loopback only."""
SECRET = re.compile(r"(PASSWORD|SECRET|TOKEN|_KEY|DATABASE_URL)$")
OURS = ("observe", "monitor")
"""Probed ports of our own services and of NATS."""
REPLACED_WITHIN_S = 5
"""Maximum time until a hanging process is killed, seconds."""
SILENT_S = 3
"""Minimum silence before a process is killed, seconds, since a busy process may answer late."""
RESPONSE_CLASS = "tandem-response"
"""PriorityClass of the pods on the way from a report to the offers and the warning."""
DRAIN_S = 10
"""Time that a service may take from SIGTERM to its end, seconds."""
PULL_S = 60
"""Minimum time that a Job has left to start, besides the time for which its program waits for the database, seconds."""


def findings(objects: list[Object]) -> list[str]:
    """All violations of the policies."""
    found = list(_cluster_findings(objects))
    for obj in objects:
        lines = [*_pod(obj), *_data(obj)]
        found += [f"{obj['kind']}/{obj['metadata']['name']}: {line}" for line in lines]
    return found


def _cluster_findings(objects: list[Object]) -> Iterator[str]:
    yield from _weights(objects)
    closed = {
        direction
        for obj in objects
        if obj["kind"] == "NetworkPolicy" and obj["spec"]["podSelector"] == {}
        for direction in obj["spec"]["policyTypes"]
        if direction.lower() not in obj["spec"]
    }
    if closed != {"Ingress", "Egress"}:
        yield "NetworkPolicy: nothing closes all ways in and out by default"
    budgets = [obj["spec"]["selector"]["matchLabels"] for obj in objects if obj["kind"] == "PodDisruptionBudget"]
    scaled = {obj["spec"]["scaleTargetRef"]["name"] for obj in objects if obj["kind"] == "HorizontalPodAutoscaler"}
    for obj in objects:
        if obj["kind"] in ("Deployment", "StatefulSet"):
            several = obj["spec"].get("replicas", 1) > 1 or obj["metadata"]["name"] in scaled
            labels = obj["spec"]["template"]["metadata"]["labels"]
            if several and not any(budget.items() <= labels.items() for budget in budgets):
                yield f"{obj['kind']}/{obj['metadata']['name']}: no PodDisruptionBudget"


def _weights(objects: list[Object]) -> Iterator[str]:
    """Pods of a lower class that get as large a share of a busy node's processor as the pods on the way to the offers.

    Jobs end, so their share doesn't matter.
    """
    requests: dict[str, dict[str, int]] = {}
    for obj in objects:
        pod = pod_of(obj)
        if pod and obj["kind"] != "Job":
            cpu_m = sum(milli_cpus(part.get("resources", {})) for part in containers(obj))
            requests.setdefault(pod["spec"].get("priorityClassName", ""), {})[obj["metadata"]["name"]] = cpu_m
    least_m = min(requests.pop(RESPONSE_CLASS, {}).values(), default=None)
    for by_name in requests.values():
        for name, cpu_m in by_name.items():
            if least_m is not None and cpu_m >= least_m:
                yield f"{name}: requests {cpu_m}m of cpu, as much as a pod on the way to the offers ({least_m}m)"


def milli_cpus(resources: Object) -> int:
    """CPU request in thousandths of a core; 0 without one or if it is malformed."""
    asked = str(resources.get("requests", {}).get("cpu", "0"))
    number = asked.removesuffix("m")
    return (int(number) if asked.endswith("m") else 1000 * int(number)) if number.isdigit() else 0


def _data(obj: Object) -> Iterator[str]:
    match obj["kind"]:
        case "Secret":
            yield "Secrets must not be in files"
        case "Namespace":
            labels = obj["metadata"].get("labels", {})
            if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
                yield "doesn't enforce Pod Security restricted"
        case "ConfigMap":
            yield from _config(obj["data"])
        case "Certificate":
            yield from _certificate(obj)


def _config(data: Mapping[str, str]) -> Iterator[str]:
    for name, value in data.items():
        if name in FORBIDDEN_SETTINGS or (SECRET.search(name) and "/" not in value):
            yield f"{name} doesn't belong in a ConfigMap"
    if "nats.conf" in data:
        for needed in ("sync_interval: always", "verify_and_map: true", 'include "users.conf"'):
            if needed not in data["nats.conf"]:
                yield f"nats.conf lacks {needed}"


def _certificate(obj: Object) -> Iterator[str]:
    spec = obj["spec"]
    if spec.get("uris") != [identity_of(obj["metadata"]["name"])]:
        yield "isn't for the one SPIFFE id of its service"
    if not {"secretName", "issuerRef", "duration", "renewBefore"} <= spec.keys():
        yield "lacks secretName, issuerRef, duration or renewBefore"


def _pod(obj: Object) -> Iterator[str]:
    pod = pod_of(obj)
    if pod is None:
        return
    spec = pod["spec"]
    if _keeps(obj, spec) and spec.get("securityContext", {}).get("fsGroupChangePolicy") != "OnRootMismatch":
        # By default the kubelet widens the rights of all files at each start, and PostgreSQL refuses a folder writable by its group.
        yield "changes the file rights on its volume at each start: set fsGroupChangePolicy: OnRootMismatch"
    if "priorityClassName" not in spec:
        yield "has no priority: set priorityClassName, so that what saves lives goes first"
    for volume in spec.get("volumes", ()):
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"volume {volume['name']} may fill the node's disk: set emptyDir.sizeLimit"
    for container in containers(obj):
        lines = [line for variable in container.get("env", ()) for line in _variable(variable)]
        if obj["kind"] == "Job":
            lines += _waits(container, obj["spec"])
        else:
            lines += _shutdown(container, spec.get("terminationGracePeriodSeconds") or 30)
        yield from (f"{container['name']}: {line}" for line in lines)


def _keeps(obj: Object, spec: Object) -> bool:
    """Whether a pod has a persistent volume."""
    return "volumeClaimTemplates" in obj["spec"] or any(
        "persistentVolumeClaim" in volume for volume in spec.get("volumes", ())
    )


def _variable(variable: Object) -> Iterator[str]:
    name = variable["name"]
    if name in FORBIDDEN_SETTINGS:
        yield f"sets {name}"
    if SECRET.search(name) and "/" not in variable.get("value", "/"):
        yield f"{name} is a secret in plain text: mount it as a file"


def _waits(container: Object, job: Object) -> Iterator[str]:
    """A Job that Kubernetes ends, or gives up, before its program has waited for the database."""
    arguments = container.get("args", ())
    if "migrate" in arguments:
        within_s = float(arguments[arguments.index("--within") + 1]) if "--within" in arguments else MIGRATE_WITHIN_S
        if job.get("activeDeadlineSeconds", within_s + PULL_S) < within_s + PULL_S:
            yield f"is ended after {job['activeDeadlineSeconds']} s, but its program waits {within_s:.0f} s for the database"
        if within_s < MIGRATE_WITHIN_S:
            yield f"waits {within_s:.0f} s for the database, less than the first pull of its image may take: {MIGRATE_WITHIN_S:.0f} s"


def _shutdown(container: Object, grace_s: int) -> Iterator[str]:
    """Violations of the policies of probes and orderly ends, for a container that stays."""
    if "startupProbe" not in container:
        yield "lacks a startupProbe"
    yield from _liveness(container)
    before = container.get("lifecycle", {}).get("preStop")
    if before is None:
        yield "has no preStop"
    elif grace_s < before.get("sleep", {}).get("seconds", 0) + DRAIN_S:
        yield "is killed before it has ended"


def _liveness(container: Object) -> Iterator[str]:
    """Violations of the liveness policy. A stopped process ignores SIGTERM, so it must be killed soon after its detection."""
    probe = container.get("livenessProbe", {})
    if probe.get("httpGet", {}).get("port") not in OURS:
        return
    period_s, timeout_s, failures = (
        probe.get(key, 0) for key in ("periodSeconds", "timeoutSeconds", "failureThreshold")
    )
    silent_s = max(period_s, timeout_s) * failures
    if silent_s < SILENT_S:
        yield f"is killed after {silent_s} s of silence, although it may only be busy"
    if period_s + silent_s + probe.get("terminationGracePeriodSeconds", 30) > REPLACED_WITHIN_S:
        yield f"may stand still for longer than {REPLACED_WITHIN_S} s"
    if "js-server-only" in probe["httpGet"]["path"]:
        yield "is killed while servers elect a leader"

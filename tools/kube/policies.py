"""What we demand of rendered objects beyond that they work: the least rights, bounded resources, an orderly end."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.kube.identities import identity_of
from tools.kube.render import Object, containers, pod_of

FORBIDDEN_SETTINGS = {"TANDEM_DEV_SECRET", "TANDEM_ALLOW_ASYNC_STORE", "TANDEM_CLOCK_RATE"}
"""For development on loopback."""
SECRET = re.compile(r"(PASSWORD|SECRET|TOKEN|_KEY|DATABASE_URL)$")
OURS = ("observe", "monitor")
"""Ports of our own services and of NATS, which are probed."""
REPLACED_WITHIN_S = 5
"""How long a process that stands still may stay: noticed after three seconds' silence, since one that is busy may answer late."""
SILENT_S = 3
DRAIN_S = 10
"""What a service may take from SIGTERM to its end."""


def findings(objects: list[Object]) -> list[str]:
    """What is wrong."""
    found = list(_of_all(objects))
    for one in objects:
        lines = [*_pod(one), *_data(one)]
        found += [f"{one['kind']}/{one['metadata']['name']}: {line}" for line in lines]
    return found


def _of_all(objects: list[Object]) -> Iterator[str]:
    closed = {
        way
        for one in objects
        if one["kind"] == "NetworkPolicy" and one["spec"]["podSelector"] == {}
        for way in one["spec"]["policyTypes"]
        if way.lower() not in one["spec"]
    }
    if closed != {"Ingress", "Egress"}:
        yield "NetworkPolicy: nothing closes all ways in and out by default"
    budgets = [one["spec"]["selector"]["matchLabels"] for one in objects if one["kind"] == "PodDisruptionBudget"]
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in objects if one["kind"] == "HorizontalPodAutoscaler"}
    for one in objects:
        if one["kind"] in ("Deployment", "StatefulSet"):
            several = one["spec"].get("replicas", 1) > 1 or one["metadata"]["name"] in scaled
            labels = one["spec"]["template"]["metadata"]["labels"]
            if several and not any(budget.items() <= labels.items() for budget in budgets):
                yield f"{one['kind']}/{one['metadata']['name']}: no PodDisruptionBudget"


def _data(one: Object) -> Iterator[str]:
    if one["kind"] == "Secret":
        yield "secrets don't belong into files"
    labels = one["metadata"].get("labels", {})
    if one["kind"] == "Namespace" and labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "doesn't enforce Pod Security restricted"
    if one["kind"] == "ConfigMap":
        for name, value in one["data"].items():
            if name in FORBIDDEN_SETTINGS or (SECRET.search(name) and "/" not in value):
                yield f"{name} doesn't belong here"
        config = one["data"].get("nats.conf")
        if config is not None:
            for needed in ("sync_interval: always", "verify_and_map: true", 'include "users.conf"'):
                if needed not in config:
                    yield f"nats.conf lacks {needed}"
    if one["kind"] == "Certificate":
        spec = one["spec"]
        if spec.get("uris") != [identity_of(one["metadata"]["name"])]:
            yield "isn't for the one SPIFFE id of its service"
        if not {"secretName", "issuerRef", "duration", "renewBefore"} <= spec.keys():
            yield "lacks secretName, issuerRef, duration or renewBefore"


def _pod(one: Object) -> Iterator[str]:
    pod = pod_of(one)
    if pod is None:
        return
    spec = pod["spec"]
    if spec.get("automountServiceAccountToken") is not False:
        yield "has the token of its ServiceAccount"
    security = spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) < 1:
        yield "may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    if _keeps(one, spec) and security.get("fsGroupChangePolicy") != "OnRootMismatch":
        # Of itself the kubelet widens the rights of all files at each start: PostgreSQL refuses a folder that its group may write.
        yield "changes the rights of what its volume keeps: fsGroupChangePolicy isn't OnRootMismatch"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"uses {field}"
    for volume in spec.get("volumes", ()):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a path of the host"
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"volume {volume['name']} may fill the node's disk"
    for container in containers(one):
        for line in _container(
            container, stays=one["kind"] != "Job", grace_s=spec.get("terminationGracePeriodSeconds")
        ):
            yield f"{container['name']}: {line}"


def _keeps(one: Object, spec: Object) -> bool:
    """Whether a pod has a volume that outlives it."""
    return "volumeClaimTemplates" in one["spec"] or any(
        "persistentVolumeClaim" in volume for volume in spec.get("volumes", ())
    )


def _container(container: Object, *, stays: bool, grace_s: int | None) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain privileges"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "may write to its image"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    name, _, tag = container["image"].rpartition("/")[2].partition(":")
    if "@" not in name and (not tag or tag == "latest"):
        yield f"image {container['image']} isn't pinned"
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= resources.get("requests", {}).keys() or "memory" not in resources.get("limits", {}):
        yield "lacks requests, or a limit on memory"
    for variable in container.get("env", ()):
        if variable["name"] in FORBIDDEN_SETTINGS:
            yield f"sets {variable['name']}"
        if SECRET.search(variable["name"]) and "/" not in variable.get("value", "/"):
            yield f"{variable['name']} is written down"
    if stays:
        if not {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys():
            yield "lacks a probe"
        yield from _liveness(container)
        before = container.get("lifecycle", {}).get("preStop")
        if before is None:
            yield "has no preStop"
        elif (grace_s or 30) < before.get("sleep", {}).get("seconds", 0) + DRAIN_S:
            yield "is killed before it has ended"


def _liveness(container: Object) -> Iterator[str]:
    """A process that was stopped answers nobody and obeys no SIGTERM, so it must be killed soon after it is noticed."""
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

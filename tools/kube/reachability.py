"""Check that NetworkPolicies permit each configured connection, out of the caller's pod and into the target's pod."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from tools.kube.render import Object, containers, pod_of

ADDRESS = re.compile(r"(?:dns:///|https://)([a-z0-9-]+):(\d+)")
Pods = Sequence[tuple[Object, Object]]
"""Workloads, each with its pod template."""


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches a pod with these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        labels.get(expression["key"]) in expression["values"] for expression in selector.get("matchExpressions", ())
    )


def findings(workload: Object, objects: Mapping[str, Object], pods: Pods) -> Iterator[str]:
    """Connections that a workload can't make: addresses in its variables, and targets of a Prometheus configuration."""
    pod = pod_of(workload)
    if pod is None:
        return
    for container in containers(workload):
        for variable in container.get("env", ()):
            if address := ADDRESS.fullmatch(str(variable.get("value", ""))):
                yield from _connection(pod, address[1], int(address[2]), objects=objects, pods=pods)
    for volume in pod["spec"].get("volumes", ()):
        config = objects.get(f"ConfigMap/{volume.get('configMap', {}).get('name')}", {}).get("data", {})
        for job in yaml.safe_load(config.get("prometheus.yaml", "{}")).get("scrape_configs", ()):
            for discovery in job["dns_sd_configs"]:
                for name in discovery["names"]:
                    yield from _connection(pod, name, discovery["port"], objects=objects, pods=pods)


def _connection(pod: Object, host: str, port: int, *, objects: Mapping[str, Object], pods: Pods) -> Iterator[str]:
    service = objects.get(f"Service/{host}")
    targets = [
        port_["targetPort"] for port_ in (service or {"spec": {"ports": []}})["spec"]["ports"] if port_["port"] == port
    ]
    if service is None or not targets:
        yield f"asks {host}:{port}, which is no Service"
        return
    policies = [each["spec"] for each in objects.values() if each["kind"] == "NetworkPolicy"]
    for workload, template in pods:
        labels = template["metadata"]["labels"]
        if matches({"matchLabels": service["spec"]["selector"]}, labels):
            numbers = {each["name"]: each["containerPort"] for part in containers(workload) for each in part["ports"]}
            ends = {targets[0], numbers.get(targets[0])}
            if not _open(policies, "egress", "to", own=pod["metadata"]["labels"], other=labels, ends=ends):
                yield f"no way leads out to {host}:{port}"
            if not _open(policies, "ingress", "from", own=labels, other=pod["metadata"]["labels"], ends=ends):
                yield f"no way leads into {host}:{port}"


def _open(
    policies: list[Object],
    direction: str,
    peers: str,
    *,
    own: Mapping[str, str],
    other: Mapping[str, str],
    ends: set[Any],
) -> bool:
    """Whether a policy of the pod with labels `own` permits this direction from or to the `other` pod, at a port in `ends`."""
    return any(
        any(port["port"] in ends for port in rule.get("ports", ()))
        and any(
            matches(peer["podSelector"], other)
            for peer in rule.get(peers, ({"podSelector": {}},))
            if "podSelector" in peer
        )
        for policy in policies
        if matches(policy["podSelector"], own)
        for rule in policy.get(direction, ())
    )

"""Whether whoever is told to ask somebody has a way there through the NetworkPolicies, and that somebody one in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from tools.kube.render import Object, containers, pod_of

ADDRESS = re.compile(r"(?:dns:///|https://)([a-z0-9-]+):(\d+)")
Pods = Sequence[tuple[Object, Object]]
"""Workloads with their pod templates."""


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a selector takes a pod with these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ()))


def findings(one: Object, objects: Mapping[str, Object], pods: Pods) -> Iterator[str]:
    """What a workload is told to ask by its variables, and a Prometheus by its file, and can't."""
    pod = pod_of(one)
    if pod is None:
        return
    for container in containers(one):
        for variable in container.get("env", ()):
            if found := ADDRESS.fullmatch(str(variable.get("value", ""))):
                yield from _way(pod, found[1], int(found[2]), objects, pods)
    for volume in pod["spec"].get("volumes", ()):
        config = objects.get(f"ConfigMap/{volume.get('configMap', {}).get('name')}", {}).get("data", {})
        for job in yaml.safe_load(config.get("prometheus.yaml", "{}")).get("scrape_configs", ()):
            for way in job["dns_sd_configs"]:
                for name in way["names"]:
                    yield from _way(pod, name, way["port"], objects, pods)


def _way(pod: Object, host: str, port: int, objects: Mapping[str, Object], pods: Pods) -> Iterator[str]:
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
            if not _open(policies, "egress", "to", pod["metadata"]["labels"], labels, ends):
                yield f"no way leads out to {host}:{port}"
            if not _open(policies, "ingress", "from", labels, pod["metadata"]["labels"], ends):
                yield f"no way leads into {host}:{port}"


def _open(
    policies: list[Object], way: str, peers: str, own: Mapping[str, str], other: Mapping[str, str], ends: set[Any]
) -> bool:
    """Whether a policy of the one with the labels `own` opens this way between it and the other, at one of `ends`."""
    return any(
        any(each["port"] in ends for each in rule.get("ports", ()))
        and any(
            matches(peer["podSelector"], other)
            for peer in rule.get(peers, ({"podSelector": {}},))
            if "podSelector" in peer
        )
        for policy in policies
        if matches(policy["podSelector"], own)
        for rule in policy.get(way, ())
    )

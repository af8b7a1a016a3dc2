"""The connections between pods: one table, the NetworkPolicies generated from it, and the comparison with an overlay's policies.

Who uses the log comes from the flow table. `CALLS` has all other connections. Everything else is closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import yaml

from services.common.messaging import flow
from tools.kube.render import Object, Pods, containers, matches, ports_of

SETUP_JOB = "streams"
"""Job that runs as the NATS user `setup`."""
NATS = "nats"
CLIENT = 4222
MONITOR = 8222
ROUTE = 6222
"""nats-server's ports: for clients, for the check at a service's start that the store is synchronous, and for the other servers."""
OBSERVE = 8080
SQL = 5432
OTLP = 4317
GRPC = {
    "registry": 7401,
    "ingest": 7402,
    "geofence": 7403,
    "dispatch-probation": 7404,
    "dispatch-police": 7405,
    "dispatch-warning": 7406,
}
"""gRPC port of each service. Agencies, vendors, desks and gateways call from anywhere, and authenticate by certificate."""
PAGES = {"ingest": 7432, "console-police": 7408, "console-probation": 7408, "field": 7409}
"""HTTPS port of each service that phones or browsers call from anywhere."""
FOR_FIELD = 7433
"""Ingest's port for the reports that field brings. Nobody else reaches it."""
OBSERVED = (*GRPC, "console-police", "console-probation", "field")
OUTSIDE = {"field": 443}
"""HTTPS port at which each of these services calls the public internet: the push services of phones."""
PRIVATE = ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
"""Networks that are no public internet, to which no such call goes."""


class Call(NamedTuple):
    """A permitted connection from one pod to another. Names are those of the workloads."""

    caller: str
    callee: str
    port: int


CALLS = (
    # A leg asks where its targets are and which match reviews nobody decided, and has ingest send commands to tags. The warning leg
    # asks nobody.
    *(
        Call(leg, callee, GRPC[callee])
        for leg in ("dispatch-probation", "dispatch-police")
        for callee in ("geofence", "ingest", "registry")
    ),
    # A console reaches the leg of its own agency alone.
    *(
        Call(f"console-{desk}", callee, GRPC[callee])
        for desk in ("police", "probation")
        for callee in ("registry", "ingest", "geofence", f"dispatch-{desk}")
    ),
    # Field faces the internet, so it reaches no more than it needs: enrolment, notices, offers, her map, and the port that ingest has
    # for it alone.
    Call("field", "registry", GRPC["registry"]),
    *(Call("field", f"dispatch-{leg}", GRPC[f"dispatch-{leg}"]) for leg in flow.LEGS),
    Call("field", "geofence", GRPC["geofence"]),
    Call("field", "ingest", FOR_FIELD),
    # Only the registry makes spans.
    Call("registry", "otel-collector", OTLP),
    Call("otel-collector", "jaeger", OTLP),
    *(Call("prometheus", service, OBSERVE) for service in OBSERVED),
    Call("grafana", "prometheus", 9090),
    Call("grafana", "jaeger", 16686),
    Call("registry", "postgres", SQL),
    Call("migrations", "postgres", SQL),
)  # fmt: skip


def _log_users() -> Iterator[str]:
    """Workloads that connect to NATS: the flow table's users that run as pods, which have the user's name."""
    users = {user for row in (*flow.FLOWS, flow.ROUTES) for user in (*row.publishers, *row.readers)}
    yield from sorted(users & GRPC.keys())
    yield SETUP_JOB


def calls() -> tuple[Call, ...]:
    """All permitted connections between pods."""
    log = (Call(user, NATS, port) for user in _log_users() for port in (CLIENT, MONITOR))
    return (*log, Call(NATS, NATS, ROUTE), *CALLS)


def open_ports() -> set[tuple[str, int]]:
    """Workloads and ports that may be called from anywhere, also from outside of the cluster."""
    return {*GRPC.items(), *PAGES.items()}


# ── generation ───────────────────────────────────────────────────────────────────────────────────────────────────────

HEAD = "# Generated from tools/kube/network.py and the flow table by `make kube`.\n"
PARTS: Mapping[str, tuple[str, ...]] = {
    "observability": ("otel-collector", "jaeger", "prometheus", "grafana"),
    "overlays/local": ("postgres",),
}
"""Workloads of each folder of k8s/ that has policies, besides base, which has all others."""


def policies() -> dict[str, str]:
    """Content of network.yaml in each folder of k8s/ that has one, by folder.

    A connection is in the folder of its later part: a base without observation permits nothing to it.
    """
    folder_of = {name: folder for folder, names in PARTS.items() for name in names}
    made: dict[str, list[Object]] = {"base": [*_for_all_pods()], **{folder: [] for folder in PARTS}}
    workloads = sorted({name for call in calls() for name in call[:2]} | {name for name, _ in open_ports()})
    for folder, policies in made.items():
        for name in workloads:
            own = [
                call
                for call in calls()
                if name in call[:2]
                and folder == next((folder_of[each] for each in call[:2] if each in folder_of), "base")
            ]
            anywhere = sorted(port for service, port in open_ports() if service == name and folder == "base")
            if own or anywhere:
                outside = OUTSIDE.get(name) if folder == "base" else None
                suffix = "" if folder_of.get(name, "base") == folder else folder
                policies.append(_policy(name, own, anywhere, outside=outside, suffix=suffix))
    return {folder: HEAD + yaml.safe_dump_all(policies, sort_keys=False) for folder, policies in made.items()}


def _named(policy: str, selector: Object, **rules: Sequence[Object]) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": policy},
        "spec": {"podSelector": selector, "policyTypes": [direction.capitalize() for direction in rules]}
        | {direction: list(rule) for direction, rule in rules.items() if rule},
    }


def _for_all_pods() -> Iterator[Object]:
    yield _named("default-deny", {}, ingress=(), egress=())
    names = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    yield _named("names", {}, egress=[{"to": [_namespace("kube-system")], "ports": names}])
    # A Prometheus of the cluster, in the namespace `monitoring`.
    yield _named("metrics", {}, ingress=[{"from": [_namespace("monitoring")], "ports": _ports(OBSERVE, MONITOR)}])


def _policy(name: str, own: Sequence[Call], anywhere: Sequence[int], *, outside: int | None, suffix: str) -> Object:
    into = [
        {"from": [_pods(caller)], "ports": _ports(*ports)}
        for caller in _unique(call.caller for call in own if call.callee == name)
        if (ports := [call.port for call in own if call == (caller, name, call.port)])
    ]
    out = [
        {"to": [_pods(callee)], "ports": _ports(*ports)}
        for callee in _unique(call.callee for call in own if call.caller == name)
        if (ports := [call.port for call in own if call == (name, callee, call.port)])
    ]
    if anywhere:
        into.append({"ports": _ports(*anywhere)})
    if outside:
        out.append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": list(PRIVATE)}}], "ports": _ports(outside)})
    given = {"ingress": into, "egress": out}
    label = {"matchLabels": {"app.kubernetes.io/name": name}}
    policy = f"{name}-{suffix.rpartition('/')[2]}" if suffix else name
    return _named(policy, label, **{direction: rules for direction, rules in given.items() if rules})


def _unique(names: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _ports(*ports: int) -> list[Object]:
    return [{"port": port} for port in ports]


def _pods(name: str) -> Object:
    return {"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


# ── comparison ───────────────────────────────────────────────────────────────────────────────────────────────────────

ADDRESS = re.compile(r"(?:dns:///|https://)([a-z0-9-]+):(\d+)")


def findings(objects: Sequence[Object], pods: Pods) -> Iterator[str]:
    """Differences between the table, the connections that an overlay's policies permit, and the addresses that its pods ask."""
    present = {workload["metadata"]["name"] for workload, _ in pods}
    wanted = {call for call in calls() if {call.caller, call.callee} <= present}
    permitted = set(_permitted([obj["spec"] for obj in objects if obj["kind"] == "NetworkPolicy"], pods))
    for call in sorted(permitted - wanted):
        yield f"NetworkPolicy: permits {call.caller} to call {call.callee}:{call.port}, which the table of calls doesn't have"
    for call in sorted(wanted - permitted):
        yield f"NetworkPolicy: keeps {call.caller} from calling {call.callee}:{call.port}, which the table of calls has"
    by_name = {f"{obj['kind']}/{obj['metadata']['name']}": obj for obj in objects}
    for workload, pod in pods:
        caller = workload["metadata"]["name"]
        for host, port in _addresses(workload, pod, by_name):
            asked = set(_asked(caller, by_name.get(f"Service/{host}"), port, pods=pods))
            if not asked:
                yield f"{workload['kind']}/{caller}: asks {host}:{port}, which is no Service"
            elif asked - wanted:
                yield f"{workload['kind']}/{caller}: asks {host}:{port}, which the table of calls doesn't have"


def _addresses(workload: Object, pod: Object, objects: Mapping[str, Object]) -> Iterator[tuple[str, int]]:
    """Hosts and ports in a workload's variables and in its Prometheus configuration."""
    for container in containers(workload):
        for variable in container.get("env", ()):
            if address := ADDRESS.fullmatch(str(variable.get("value", ""))):
                yield address[1], int(address[2])
    for volume in pod["spec"].get("volumes", ()):
        config = objects.get(f"ConfigMap/{volume.get('configMap', {}).get('name')}", {}).get("data", {})
        for job in yaml.safe_load(config.get("prometheus.yaml", "{}")).get("scrape_configs", ()):
            for discovery in job["dns_sd_configs"]:
                yield from ((name, discovery["port"]) for name in discovery["names"])


def _asked(caller: str, service: Object | None, port: int, *, pods: Pods) -> Iterator[Call]:
    """Connections that a caller makes by a port of a Service; none if there is no such port."""
    if service is None:
        return
    selector = {"matchLabels": service["spec"]["selector"]}
    for target in (given["targetPort"] for given in service["spec"]["ports"] if given["port"] == port):
        for callee, pod in pods:
            if matches(selector, pod["metadata"]["labels"]):
                yield Call(caller, callee["metadata"]["name"], ports_of(pod).get(target, target))


def _permitted(policies: Sequence[Object], pods: Pods) -> Iterator[Call]:
    """Connections that both sides' policies permit, to ports that the callee's containers declare."""
    for callee, template in pods:
        named = ports_of(template)
        for caller, other in pods:
            ports = [
                {
                    named.get(port["port"], port["port"])
                    for policy in policies
                    if matches(policy["podSelector"], own["metadata"]["labels"])
                    for rule in policy.get(direction, ())
                    if _admits(rule.get(peers), peer["metadata"]["labels"])
                    for port in rule.get("ports", ({"port": number} for number in named.values()))
                }
                for direction, peers, own, peer in (
                    ("egress", "to", other, template),
                    ("ingress", "from", template, other),
                )
            ]
            for port in set.intersection(*ports) & set(named.values()):
                yield Call(caller["metadata"]["name"], callee["metadata"]["name"], port)


def _admits(peers: Sequence[Object] | None, labels: Mapping[str, str]) -> bool:
    """Whether a rule's peers include a pod of this namespace; a rule without peers includes all."""
    return peers is None or any(
        matches(peer["podSelector"], labels)
        for peer in peers
        if "podSelector" in peer and "namespaceSelector" not in peer
    )

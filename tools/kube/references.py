"""Check references between rendered objects, and values that must agree in two places, which schemas can't express."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from services.common.settings import SECRETS_DIR, CommonSettings
from services.console.settings import ConsoleSettings
from services.dispatch.settings import DispatchSettings
from services.field.settings import FieldSettings
from services.geofence.settings import GeofenceSettings
from services.ingest.settings import IngestSettings as IngestSettings
from services.registry.settings import RegistrySettings
from tools.kube import identities, network
from tools.kube.render import Object, containers, matches, pod_of

WORKLOADS = ("Deployment", "StatefulSet")
QUANTITY = re.compile(r"(\d+(\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
SERVICES: dict[str, type[CommonSettings]] = {
    "services.registry": RegistrySettings,
    "services.ingest": IngestSettings,
    "services.geofence": GeofenceSettings,
    "services.dispatch": DispatchSettings,
    "services.console": ConsoleSettings,
    "services.field": FieldSettings,
    "services.cli": RegistrySettings,
}
"""Settings class of each started package. The Jobs run `services.cli` with the registry's settings."""
SETTINGS = {
    package: {SECRETS_DIR, *(f"TANDEM_{name.upper()}" for name in kind.model_fields)}
    for package, kind in SERVICES.items()
}
HOSTNAME = "external-dns.alpha.kubernetes.io/hostname"
"""Annotation of an entrance with the DNS name under which callers from outside know it."""
NAMED_IPV4 = re.compile(r"ipv4:[^,]*[a-z]")


def findings(objects: list[Object], given: Mapping[str, set[str]]) -> list[str]:
    """All broken references. `given` are the Secrets that operators create by hand, with their keys."""
    checker = _Checker(objects, given)
    found = [line for obj in objects for line in checker.check(obj)]
    found += network.findings(objects, checker.pods)
    names = [_name(obj) for obj in objects]
    return found + [f"{name}: is there twice" for name in sorted({name for name in names if names.count(name) > 1})]


def _name(obj: Object) -> str:
    return f"{obj['kind']}/{obj['metadata']['name']}"


class _Checker:
    def __init__(self, objects: list[Object], given: Mapping[str, set[str]]) -> None:
        self._objects = {_name(obj): obj for obj in objects}
        self.pods = [(obj, pod) for obj in objects if (pod := pod_of(obj))]
        self._secrets = dict(given)
        for obj in objects:
            if obj["kind"] == "Certificate":
                self._secrets[obj["spec"]["secretName"]] = {"tls.crt", "tls.key", "ca.crt"}

    def check(self, obj: Object) -> Iterator[str]:
        lines: list[str] = []
        lines += self._quantities(obj)
        match obj["kind"]:
            case "Service":
                lines += self._service(obj)
            case "HorizontalPodAutoscaler":
                target = obj["spec"]["scaleTargetRef"]
                scaled = self._objects.get(f"{target['kind']}/{target['name']}")
                if not scaled:
                    lines.append(f"scales {target['kind']}/{target['name']}, which isn't there")
                elif "replicas" in scaled["spec"]:
                    lines.append(f"scales {target['name']}, which sets replicas itself")
            case "PodDisruptionBudget":
                if not self._selected(obj["spec"]["selector"]):
                    lines.append("selects no pod")
            case "NetworkPolicy":
                lines += self._network(obj["spec"])
        if pod := pod_of(obj):
            lines += self._pod(obj, pod)
        return iter([f"{_name(obj)}: {line}" for line in lines])

    # ── pods ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _pod(self, obj: Object, pod: Object) -> Iterator[str]:
        labels, spec = pod["metadata"]["labels"], pod["spec"]
        if obj["kind"] in WORKLOADS and not obj["spec"]["selector"]["matchLabels"].items() <= labels.items():
            yield "its selector doesn't match its own pods"
        if obj["kind"] == "StatefulSet" and f"Service/{obj['spec']['serviceName']}" not in self._objects:
            yield f"serviceName: no Service {obj['spec']['serviceName']}"
        for kind, named in (("ServiceAccount", "serviceAccountName"), ("PriorityClass", "priorityClassName")):
            if f"{kind}/{spec.get(named)}" not in self._objects:
                yield f"no {kind} {spec.get(named)}"
        spread = (limit["labelSelector"]["matchLabels"] for limit in spec.get("topologySpreadConstraints", ()))
        if not all(selected.items() <= labels.items() for selected in spread):
            yield "topologySpreadConstraints select other pods than its own"
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        volumes |= {claim["metadata"]["name"] for claim in obj["spec"].get("volumeClaimTemplates", ())}
        for volume in spec.get("volumes", ()):
            yield from self._volume(volume)
        for container in containers(obj):
            for mount in container.get("volumeMounts", ()):
                if mount["name"] not in volumes:
                    yield f"{container['name']}: mounts {mount['name']}, which is no volume"
            yield from self._environment(obj, container)
            yield from self._probes(container)
        yield from self._agreements(obj)

    def _volume(self, volume: Object) -> Iterator[str]:
        name = volume["name"]
        if (claim := volume.get("persistentVolumeClaim")) and (
            f"PersistentVolumeClaim/{claim['claimName']}" not in self._objects
        ):
            yield f"volume {name}: no PersistentVolumeClaim {claim['claimName']}"
        if (config := volume.get("configMap")) and f"ConfigMap/{config['name']}" not in self._objects:
            yield f"volume {name}: no ConfigMap {config['name']}"
        for source in volume.get("projected", {}).get("sources", ()):
            secret = source["secret"]
            yield from self._secret(secret["name"], {item["key"] for item in secret["items"]}, f"volume {name}")
        if secret := volume.get("secret"):
            keys = {item["key"] for item in secret.get("items", ())}
            yield from self._secret(secret["secretName"], keys, f"volume {name}")
            holder = secret["secretName"].removeprefix(identities.PREFIX)
            if holder not in (secret["secretName"], "phones") and not identities.identity_of(holder):
                yield f"volume {name}: {holder} isn't a known identity"

    def _secret(self, name: str, keys: set[str], where: str) -> Iterator[str]:
        if name not in self._secrets:
            yield f"{where}: no Secret {name}"
        elif missing := keys - self._secrets[name]:
            yield f"{where}: Secret {name} has no {', '.join(sorted(missing))}"

    def _environment(self, obj: Object, container: Object) -> Iterator[str]:
        for source in container.get("envFrom", ()):
            config = self._objects.get(f"ConfigMap/{source['configMapRef']['name']}")
            if not config:
                yield f"{container['name']}: no ConfigMap {source['configMapRef']['name']}"
                continue
            for name in config["data"]:
                if name.startswith("TANDEM_") and not any(name in names for names in SETTINGS.values()):
                    yield f"{name} is no setting of any service"
            yield from self._observed(container, config["data"])
        own = next((SETTINGS[argument] for argument in container.get("args", ()) if argument in SETTINGS), set())
        for variable in container.get("env", ()):
            name = variable["name"]
            if name.startswith("TANDEM_") and name not in own:
                yield f"{name} is no setting of {container['name']}"
            if ref := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield from self._secret(ref["name"], {ref["key"]}, f"env {name}")
            if NAMED_IPV4.match(variable.get("value", "")):
                yield f"{name} gives a name where gRPC takes addresses only: write dns:/// instead of ipv4:"
            if name == SECRETS_DIR:
                yield from self._secret_settings(obj, container, folder=variable["value"], own=own)
            yield from self._mismatch(obj, container, variable)

    def _secret_settings(self, obj: Object, container: Object, *, folder: str, own: set[str]) -> Iterator[str]:
        """Files in the folder of secret settings that the service doesn't read."""
        mounted = [mount["name"] for mount in container.get("volumeMounts", ()) if mount["mountPath"] == folder]
        if not mounted:
            yield f"{SECRETS_DIR} is {folder}, where nothing is mounted"
        for volume in obj["spec"]["template"]["spec"].get("volumes", ()):
            sources = [
                volume.get("secret", {}),
                *(part["secret"] for part in volume.get("projected", {}).get("sources", ())),
            ]
            files = {item["path"] for source in sources for item in source.get("items", ())}
            if volume["name"] in mounted and (unknown := files - own):
                yield f"volume {volume['name']}: {', '.join(sorted(unknown))} is no setting of {container['name']}"

    def _mismatch(self, obj: Object, container: Object, variable: Object) -> Iterator[str]:
        """Difference between a variable and the part of its pod that must agree with it."""
        match variable["name"]:
            case "TANDEM_PORT":
                ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                own_port = ports.get("grpc", ports.get("https"))
                if str(own_port) != variable["value"]:
                    yield f"TANDEM_PORT is {variable['value']}, its port {own_port}"
            case "TANDEM_FIELD_PORT":
                ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                if str(ports.get("field")) != variable["value"]:
                    yield f"TANDEM_FIELD_PORT is {variable['value']}, its port field {ports.get('field')}"
            case "TANDEM_CONSOLE_ROLE":
                mounted = {volume["name"]: volume for volume in obj["spec"]["template"]["spec"]["volumes"]}
                secret = mounted.get("tls", {}).get("secret", {}).get("secretName", "")
                if not identities.serves(secret, variable["value"]):
                    yield f"is a console of {variable['value']}, and proves itself with {secret or 'nothing'}"
            case "TANDEM_REPLICAS" if variable["value"] != str(obj["spec"]["replicas"]):
                yield f"TANDEM_REPLICAS is {variable['value']}, replicas {obj['spec']['replicas']}"

    def _observed(self, container: Object, settings: Mapping[str, str]) -> Iterator[str]:
        """Mismatches between a container's port for health and metrics, and its settings."""
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
        if "observe" in ports:
            package = next((argument for argument in container["args"] if argument in SERVICES), "")
            if "TANDEM_METRICS_PORT" not in SETTINGS.get(package, ()):
                yield f"{container['name']}: {package or 'nothing'} shows nothing of itself on a port"
            if str(ports["observe"]) != settings.get("TANDEM_METRICS_PORT"):
                yield f"TANDEM_METRICS_PORT is {settings.get('TANDEM_METRICS_PORT')}, its port observe {ports['observe']}"

    def _probes(self, container: Object) -> Iterator[str]:
        ports = {port["name"] for port in container.get("ports", ())}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            for probe in container.get(kind, {}).values():
                port = probe.get("port") if isinstance(probe, dict) else None
                if isinstance(port, str) and port not in ports:
                    yield f"{container['name']}: {kind} asks port {port}, which isn't there"

    def _agreements(self, obj: Object) -> Iterator[str]:
        """Numbers that differ between two places."""
        if _name(obj) == "Job/streams":
            arguments = containers(obj)[0]["args"]
            copies = int(arguments[arguments.index("--replicas") + 1])
            if copies > self._objects["StatefulSet/nats"]["spec"]["replicas"]:
                yield f"wants {copies} copies of each stream, more than there are servers"
        if _name(obj) == "StatefulSet/nats":
            config = next(
                (
                    text
                    for name, config in self._objects.items()
                    if name.startswith("ConfigMap/nats")
                    for text in [config["data"].get("nats.conf", "")]
                ),
                "",
            )
            if config.count("nats://") != obj["spec"]["replicas"]:
                yield f"has {obj['spec']['replicas']} servers, its nats.conf names {config.count('nats://')}"

    # ── selectors ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _entrance(self, obj: Object) -> Iterator[str]:
        """An entrance without a DNS name for its callers, or with a name that the certificate of its pods doesn't have."""
        name = obj["metadata"].get("annotations", {}).get(HOSTNAME)
        if not name:
            yield f"callers know it by no name: set the annotation {HOSTNAME}"
        for workload in self._selected({"matchLabels": obj["spec"]["selector"]}):
            certificate = self._objects.get(f"Certificate/{workload['metadata']['name']}")
            # Phones and browsers see the certificate of the pages, which is no one of the mesh.
            by_mesh = any(port["name"] == "grpc" for port in obj["spec"]["ports"])
            if name and by_mesh and certificate and name not in certificate["spec"].get("dnsNames", ()):
                yield f"callers know it as {name}, which isn't a name in the certificate of {workload['metadata']['name']}"

    def _service(self, obj: Object) -> Iterator[str]:
        if obj["spec"].get("type") == "LoadBalancer":
            yield from self._entrance(obj)
        selected = self._selected({"matchLabels": obj["spec"]["selector"]})
        if not selected:
            yield "selects no pod"
        for port in obj["spec"]["ports"]:
            wanted = port.get("targetPort", port["port"])
            for workload in selected:
                ports = [each for container in containers(workload) for each in container.get("ports", ())]
                if wanted not in {value for each in ports for value in (each["name"], each["containerPort"])}:
                    yield f"targetPort {wanted} isn't a port of {_name(workload)}"

    def _network(self, spec: Object) -> Iterator[str]:
        if spec["podSelector"] and not self._selected(spec["podSelector"]):
            yield "selects no pod"
        for direction, rules in (("from", spec.get("ingress", ())), ("to", spec.get("egress", ()))):
            for rule in rules:
                for peer in rule.get(direction, ()):
                    if "podSelector" in peer and not self._selected(peer["podSelector"]):
                        yield f"permits traffic {direction} pods that aren't there"

    def _selected(self, selector: Object) -> list[Object]:
        return [workload for workload, pod in self.pods if matches(selector, pod["metadata"]["labels"])]

    def _quantities(self, node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from self._quantities(item)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key in ("requests", "limits"):
                    for what, amount in value.items():
                        if not QUANTITY.fullmatch(str(amount)):
                            yield f"{what}: {amount} is no quantity"
                else:
                    yield from self._quantities(value)

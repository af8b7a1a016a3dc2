"""The steps of the cluster test, in their order. Each returns what it found, or raises StepFailed or ApiError."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

from tools.kube import schemas
from tools.kube.cluster.api import Api, path_of
from tools.kube.cluster.workloads import NAME, Namespace, StepFailed, name_of, until, with_images
from tools.kube.render import Object, load, pod_of

TEMPLATE = Path(__file__).with_name("client.yaml")
PROGRAM = Path(__file__).with_name("client.py")
READY_WITHIN_S = 600.0
JOB_WITHIN_S = 1_800.0
ENDED_WITHIN_S = 300.0
TOGETHER = 4
"""Number of pods that are deleted at the same time."""
ORDER = (("geofence",), ("registry",), ("ingest",), ("dispatch",), ("field", "console"))
"""Order in which an upgrade replaces services, after the Jobs: docs/reference/kubernetes.md, "Changing the version"."""


@dataclass
class ClusterTest:
    """A cluster, the rendered overlay, and what the steps have found."""

    api: Api
    objects: list[Object]
    secrets: Mapping[str, Mapping[str, str]]
    certificates: Path
    """Folder with the certificates of the demo's callers."""
    image: str
    """Tandem's image."""
    image_before: str = ""
    """Tandem's image before the upgrade; empty to skip the upgrade."""
    optional: frozenset[str] = frozenset()
    """Workloads that are left out if their image can't be had."""
    namespace: str = "tandem"
    found: list[str] = field(default_factory=list)
    """Things that went wrong without ending a step."""
    _demos: int = 0

    def __post_init__(self) -> None:
        self.state = Namespace(self.api, self.namespace)

    def steps(self) -> tuple[tuple[str, Callable[[], str]], ...]:
        """Names and functions of all steps, in their order."""
        return (
            ("the cluster", self.cluster),
            ("server-side dry run", self.dry_run),
            ("apply", self.apply),
            ("wait", self.wait),
            ("demo by mutual TLS", self.demo),
            ("roll every workload", self.roll),
            ("evict", self.evict),
            (f"delete pods, {TOGETHER} at a time", self.delete),
            ("upgrade", self.upgrade),
            ("alerts", self.alerts),
        )

    def cluster(self) -> str:
        """Checks the version, the default StorageClass and that the namespace is free."""
        version = self.api.get("/version")
        number = [int(part) for part in re.findall(r"\d+", version["gitVersion"])[:2]]
        if number < [int(part) for part in schemas.KUBERNETES[0].split(".")]:
            raise StepFailed(
                f"the server is {version['gitVersion']}; the manifests need {schemas.KUBERNETES[0]} or newer"
            )
        default = "storageclass.kubernetes.io/is-default-class"
        classes = self.api.items("StorageClass", "storage.k8s.io/v1")
        if not any(each["metadata"].get("annotations", {}).get(default) == "true" for each in classes):
            raise StepFailed("no StorageClass is the default, so no volume would be made")
        if self.api.exists(f"/api/v1/namespaces/{self.namespace}"):
            raise StepFailed(
                f"the namespace {self.namespace} exists, and the test would delete it: delete it, or use another cluster"
            )
        metrics = self.api.exists("/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io")
        return f"{version['gitVersion']}; metrics-server: {'yes' if metrics else 'no, so the autoscaler never acts'}"

    def dry_run(self) -> str:
        """Has the server check all objects without storing them, besides the namespace that they need."""
        self._create([obj for obj in self.objects if obj["kind"] == "Namespace"])
        for obj in self.objects:
            self.api.apply(obj, dry_run=True)
        return f"{len(self.objects)} objects accepted"

    def apply(self) -> str:
        """Creates the Secrets, all objects, and what the demo's pods need. Before an upgrade, with the image before."""
        for name, values in self.secrets.items():
            self._create([self._object("Secret", name, stringData=dict(values))])
        with_images(self.objects, {"tandem": self.image_before or self.image})
        self._create(sorted(self.objects, key=lambda obj: obj["kind"] == "Job"))
        files = sorted(path for path in self.certificates.rglob("*") if path.suffix in (".crt", ".key"))
        names = {str(path.relative_to(self.certificates)): path.read_text() for path in files if path.name != "ca.key"}
        self._create(
            [
                self._object("Secret", "cluster-test", stringData={_key(name): text for name, text in names.items()}),
                self._object("ConfigMap", "cluster-test", data={PROGRAM.name: PROGRAM.read_text()}),
                *(obj for obj in load(TEMPLATE) if obj["kind"] == "NetworkPolicy"),
            ]
        )
        (self._template,) = (obj for obj in load(TEMPLATE) if obj["kind"] == "Pod")
        self._template["spec"]["containers"][0]["image"] = self.image_before or self.image
        self._template["spec"]["volumes"][1]["secret"]["items"] = [{"key": _key(name), "path": name} for name in names]
        return f"{len(self.secrets)} Secrets and {len(self.objects)} objects"

    def wait(self) -> str:
        """Waits for both Jobs and all pods."""
        for job in self._jobs():
            self.state.wait_for_job(job, JOB_WITHIN_S)
        self.state.wait_until_ready(READY_WITHIN_S, set(self.optional))
        left_out = ", ".join(sorted(self.state.left_out))
        return f"{len(self.state.pods())} pods are ready" + (
            f"; without image, not run: {left_out}" if left_out else ""
        )

    def demo(self) -> str:
        """Runs the demo in a pod, by the Services' names. Raises StepFailed unless both legs of each incident are acknowledged."""
        self._demos += 1
        began = time.monotonic()
        self._in_a_pod("demo")
        return f"both legs acknowledged after {time.monotonic() - began:.0f} s"

    def roll(self) -> str:
        """Restarts each workload in turn, with a demo during each restart of a service."""
        names = []
        for workload in self.state.workloads():
            now = {"kubectl.kubernetes.io/restartedAt": f"{time.time():.0f}"}
            self.api.patch(workload, {"spec": {"template": {"metadata": {"annotations": now}}}})
            self._demo_and_wait(name_of(workload))
            names.append(name_of(workload))
        return f"{', '.join(names)}: the demo came through each time"

    def evict(self) -> str:
        """Evicts one pod of each workload with a budget. A second pod must be refused while the first is missing."""
        refused = []
        by_workload = groupby(sorted(self.state.pods(), key=_workload), key=_workload)
        pods_of = {name: sorted(pods, key=name_of) for name, pods in by_workload}
        for name, pods in pods_of.items():
            if len(pods) < 2:
                continue
            until(f"{name} may lose a pod", partial(self._evicted, pods[0]), ENDED_WITHIN_S)
            if self.api.evict(pods[1]):
                self.found.append(f"{name}: a second pod was evicted while the first was missing")
            else:
                refused.append(name)
            self.state.wait_until_ready(READY_WITHIN_S)
        return f"one pod each, the second refused: {', '.join(refused)}"

    def delete(self) -> str:
        """Kills pods in groups, each pod once, with a demo at once after each group."""
        pods = sorted(self.state.pods(), key=lambda pod: (name_of(pod).rpartition("-")[2], name_of(pod)))
        groups = [pods[start : start + TOGETHER] for start in range(0, len(pods), TOGETHER)]
        for group in groups:
            for pod in group:
                self.api.delete({**pod, "kind": "Pod", "apiVersion": "v1"}, grace_s=0)
            self._demo_and_wait(", ".join(map(name_of, group)))
        return f"{len(pods)} pods in {len(groups)} groups; the demo came through after each"

    def upgrade(self) -> str:
        """Replaces the image before by the tested one, in the documented order, with a demo between the steps."""
        if not self.image_before:
            return "not tried: no --image-before"
        with_images(self.objects, {"tandem": self.image})
        for job in self._jobs():
            self.api.delete(job)
            until(f"Job {name_of(job)} is gone", partial(self._gone, job), ENDED_WITHIN_S)
            self._create([job])
            self.state.wait_for_job(job, JOB_WITHIN_S)
        for parts in ORDER:
            self._create(
                [obj for obj in self.objects if pod_of(obj) and obj["kind"] != "Job" and name_of(obj).startswith(parts)]
            )
            self._demo_and_wait(f"the upgrade of {', '.join(parts)}")
        self._template["spec"]["containers"][0]["image"] = self.image
        images = {container["image"] for pod in self.state.pods() for container in pod["spec"]["containers"]}
        if self.image_before in images:
            raise StepFailed(f"some pod still runs {self.image_before}")
        order = ", then ".join(" and ".join(parts) for parts in ORDER)
        return f"{self.image_before} to {self.image}: Jobs, then {order}; the demo came through each time"

    def alerts(self) -> str:
        """Compares the stored alerts with an offline fold. Nobody may have gone unwarned in any demo."""
        outcome = json.loads(self._in_a_pod("alerts").strip().splitlines()[-1])
        if not outcome["stored"] or not outcome["same"]:
            raise StepFailed(
                f"{outcome['stored']} alerts are stored, an offline fold gives {outcome['folded']}, and they differ"
            )
        if outcome["not_reached"]:
            raise StepFailed(f"{outcome['not_reached']} warnings reached nobody, which pages somebody")
        return f"{outcome['stored']} stored, the same by an offline fold; nobody went unwarned"

    def take_down(self) -> str:
        """Deletes the namespace and the PriorityClasses, and waits until they are gone."""
        wide = [obj for obj in self.objects if obj["kind"] in ("Namespace", "PriorityClass")]
        for obj in wide:
            self.api.delete(obj)
        until("all is gone", partial(self._gone, *wide), ENDED_WITHIN_S)
        return "the namespace and the PriorityClasses are gone"

    def note_restarts(self) -> None:
        """Notes containers that ended by themselves. The test kills by deleting pods, so each restart is a fault."""
        for line in self.state.restarts():
            if line not in self.found:
                self.found.append(line)

    # ── parts of steps ───────────────────────────────────────────────────────────────────────────────────────────────

    def _demo_and_wait(self, what: str) -> None:
        try:
            self.demo()
            self.state.wait_until_ready(READY_WITHIN_S)
        except StepFailed as error:
            raise StepFailed(f"after {what}: {error}") from None
        self.note_restarts()

    def _in_a_pod(self, command: str) -> str:
        """Runs a command of client.py in a pod of its own. Returns its output. Raises StepFailed if it fails."""
        pod: Object = json.loads(json.dumps(self._template))
        pod["metadata"]["name"] = f"cluster-test-{command}-{self._demos}"
        pod["spec"]["containers"][0]["args"] = [f"/client/{PROGRAM.name}", command]
        self._create([pod])

        def ended() -> str | None:
            phase = self.api.get(path_of(pod))["status"].get("phase")
            return str(phase) if phase in ("Succeeded", "Failed") else None

        phase = until(f"the pod {name_of(pod)} ends", ended, READY_WITHIN_S)
        output = self.api.text(f"{path_of(pod)}/log")
        self.api.delete(pod)
        if phase == "Failed":
            raise StepFailed(f"{command}: {output.strip()[-1500:]}")
        return output

    def _evicted(self, pod: Object) -> bool | None:
        return self.api.evict(pod) or None

    def _gone(self, *objects: Object) -> bool | None:
        return None if any(self.api.exists(path_of(obj)) for obj in objects) else True

    def _create(self, objects: list[Object]) -> None:
        for obj in objects:
            self.api.apply(obj)

    def _jobs(self) -> list[Object]:
        return [obj for obj in self.objects if obj["kind"] == "Job"]

    def _object(self, kind: str, name: str, **content: Mapping[str, str]) -> Object:
        return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": self.namespace}, **content}


def _key(path: str) -> str:
    """The key of a Secret for a file's path, which may have no slash."""
    return path.replace("/", ".")


def _workload(pod: Object) -> str:
    return str(pod["metadata"]["labels"][NAME])

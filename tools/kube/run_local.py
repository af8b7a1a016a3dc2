"""Run rendered pods with podman on one machine, as a kubelet would start them.

The manifests give images, arguments, settings, Secrets, ConfigMaps, volumes, users, read-only roots, memory limits, readiness probes
and the names of Services, which resolve to the running pods. There is no scheduler, kube-proxy, NetworkPolicy, admission or
controller. A pod that ends isn't restarted, as a kubelet would do, and `ended` reports it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.kube.render import Object, containers, pod_of

NETWORK = "tandem-play"
SUBNET = "10.89.77"
FIRST_IP = 10
READY_WITHIN_S = 180.0
JOB_WITHIN_S = 120.0
MEMORY = {"Mi": "m", "Gi": "g"}


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a workload. Our pods have one container each."""

    name: str
    """Name of the pod and of its container."""
    index: int
    ip: str
    workload: Object
    aliases: tuple[str, ...]
    """DNS names of the pod, from Services and StatefulSets."""

    @property
    def container(self) -> Object:
        """The container of the pod."""
        (container,) = containers(self.workload)
        return container

    @property
    def mac(self) -> str:
        """MAC address of the pod: locally administered, and as unique as its IP."""
        return f"02:74:6d:00:00:{int(self.ip.rpartition('.')[2]):02x}"

    @property
    def port(self) -> int:
        """The gRPC port of the pod."""
        return next(int(port["containerPort"]) for port in self.container["ports"] if port["name"] == "grpc")


class LocalPods:
    """The pods of an overlay, run with podman."""

    def __init__(
        self,
        objects: list[Object],
        folder: Path,
        secrets: Mapping[str, Mapping[str, str]],
        *,
        images: Mapping[str, str],
    ) -> None:
        self._objects, self._folder, self._images = objects, folder, images
        self._config = {obj["metadata"]["name"]: obj["data"] for obj in objects if obj["kind"] == "ConfigMap"}
        self.secrets = secrets
        """Keys and values of each Secret, by name. Set it before `up`."""
        self.pods = list(self._pods(("StatefulSet", "Deployment")))
        self.jobs = list(self._pods(("Job",), FIRST_IP + len(self.pods)))
        self._killed: set[str] = set()

    def _pods(self, kinds: tuple[str, ...], first: int = FIRST_IP) -> Iterator[Pod]:
        ip = first
        least = {
            obj["spec"]["scaleTargetRef"]["name"]: obj["spec"]["minReplicas"]
            for obj in self._objects
            if obj["kind"] == "HorizontalPodAutoscaler"
        }
        for workload in (obj for kind in kinds for obj in self._objects if obj["kind"] == kind):
            name = workload["metadata"]["name"]
            for index in range(workload["spec"].get("replicas", least.get(name, 1))):
                pod = f"{name}-{index}"
                aliases = [pod]
                for service in self._selecting(workload):
                    aliases.append(service)
                    if workload["kind"] == "StatefulSet":
                        aliases.append(f"{pod}.{service}")
                yield Pod(name=pod, index=index, ip=f"{SUBNET}.{ip}", workload=workload, aliases=tuple(aliases))
                ip += 1

    def _selecting(self, workload: Object) -> Iterator[str]:
        pod = pod_of(workload)
        labels = pod["metadata"]["labels"] if pod else {}
        for obj in self._objects:
            if obj["kind"] == "Service" and obj["spec"]["selector"].items() <= labels.items():
                yield obj["metadata"]["name"]

    # ── operations ───────────────────────────────────────────────────────────────────────────────────────────────────

    def up(self) -> None:
        """Starts all pods, runs the Jobs to their end, and returns when all pods are ready."""
        podman("network", "create", "--subnet", f"{SUBNET}.0/24", NETWORK)
        for pod in self.pods:
            podman(*self._command(pod, "--detach"))
        for job in self.jobs:
            self._run_job(job)
        for pod in self.pods:
            self.wait_until_ready(pod)

    def down(self) -> None:
        """Removes all pods and the network. Ctrl-C takes effect only afterwards. Raises RuntimeError if something remains."""
        names = [pod.name for pod in (*self.pods, *self.jobs)]
        with unbroken():
            try:
                podman("rm", "--force", "--time", "1", "--volumes", "--ignore", *names)
            finally:
                podman("network", "rm", "--force", NETWORK)

    def kill(self, name: str) -> Pod:
        """Kills a pod with SIGKILL."""
        self._killed.add(name)
        podman("kill", name)
        return next(pod for pod in self.pods if pod.name == name)

    def start(self, pod: Pod) -> None:
        """Restarts a pod with its old volumes, as a kubelet would."""
        podman("start", pod.name)
        self._killed.discard(pod.name)

    def ended(self, *pods: Pod) -> dict[str, str]:
        """How each of the pods (default: all) ended that doesn't run and wasn't killed, by name."""
        names = [pod.name for pod in pods or self.pods if pod.name not in self._killed]
        state = "{{.Name}} {{.State.Running}} code {{.State.ExitCode}}, out of memory: {{.State.OOMKilled}}"
        lines = podman("inspect", "--format", state, *names).splitlines() if names else []
        states = {name: (running == "true", how) for name, running, how in (line.split(" ", 2) for line in lines)}
        return {name: how for name, (runs, how) in states.items() if not runs}

    def wait_until_ready(self, pod: Pod) -> None:
        """Returns when the readiness probe of a pod succeeds. Raises RuntimeError with the end of its log otherwise."""
        until = time.monotonic() + READY_WITHIN_S
        while not self._is_ready(pod):
            how = self.ended(pod).get(pod.name)
            if how or time.monotonic() > until:
                last = "\n".join(self.log_of(pod).splitlines()[-15:])
                why = f"has ended: {how}" if how else f"isn't ready after {READY_WITHIN_S:.0f} s"
                raise RuntimeError(f"{pod.name} {why}:\n{last}")
            time.sleep(0.5)

    def keep_logs(self) -> Path:
        """Writes the logs of all pods into a new folder, and returns the folder."""
        folder = Path(tempfile.mkdtemp(prefix=f"{NETWORK}-"))
        for pod in self.pods:
            (folder / f"{pod.name}.log").write_text(self.log_of(pod))
        return folder

    def log_of(self, pod: Pod) -> str:
        """The whole log of a pod."""
        done = subprocess.run(("podman", "logs", pod.name), capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def _is_ready(self, pod: Pod) -> bool:
        probe = pod.container["readinessProbe"]
        if "exec" in probe:
            return not subprocess.run(
                ("podman", "exec", pod.name, *probe["exec"]["command"]), capture_output=True, check=False
            ).returncode
        ports = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
        request = probe["httpGet"]
        try:
            with urllib.request.urlopen(
                f"http://{pod.ip}:{ports[request['port']]}{request['path']}", timeout=2
            ) as answer:
                return bool(answer.status < 400)
        except (urllib.error.URLError, OSError):
            return False

    def _run_job(self, pod: Pod) -> None:
        command, error = self._full(self._command(pod, "--rm")), ""
        for _ in range(int(pod.workload["spec"]["backoffLimit"])):
            done = subprocess.run(command, capture_output=True, text=True, timeout=JOB_WITHIN_S, check=False)
            if done.returncode == 0:
                return
            error = done.stderr[-500:]
            time.sleep(2)
        raise RuntimeError(f"the Job {pod.name} fails: {error}")

    # ── from manifest to command ─────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def _full(command: tuple[str, ...]) -> tuple[str, ...]:
        return ("podman", *command)

    def _command(self, pod: Pod, *how: str) -> tuple[str, ...]:
        template = pod_of(pod.workload) or {}
        spec, container = template["spec"], pod.container
        context, limits = {**spec["securityContext"], **container["securityContext"]}, container["resources"]["limits"]
        owner = f"{context['runAsUser']}:{context['runAsGroup']}"
        command = ["run", *how, "--name", pod.name, "--hostname", pod.name, "--user", owner, "--pull", "never"]
        # A restarted container keeps its MAC address, as under Kubernetes, where the pod stays. Otherwise peers would send to the old
        # address for a minute.
        interface = (f"ip={pod.ip}", f"mac={pod.mac}", *(f"alias={alias}" for alias in pod.aliases))
        command += ["--network", f"{NETWORK}:{','.join(interface)}"]
        command += ["--read-only-tmpfs=false", *(["--read-only"] if context["readOnlyRootFilesystem"] else [])]
        command += [part for capability in context["capabilities"]["drop"] for part in ("--cap-drop", capability)]
        command += [] if context["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]
        command += ["--memory", re.sub("[MG]i$", lambda unit: MEMORY[unit[0]], limits["memory"])]
        command += [part for name, value in self._environment(pod).items() for part in ("--env", f"{name}={value}")]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        for mount in container.get("volumeMounts", ()):
            command += self._mount(pod, mount, volumes.get(mount["name"], {}), context=context)
        return (*command, self._images[image_name(container)], *container.get("args", ()))

    def _environment(self, pod: Pod) -> dict[str, str]:
        environment: dict[str, str] = {}
        for source in pod.container.get("envFrom", ()):
            environment |= self._config[source["configMapRef"]["name"]]
        for variable in pod.container.get("env", ()):
            source = variable.get("valueFrom", {})
            if ref := source.get("secretKeyRef"):
                environment[variable["name"]] = self.secrets[ref["name"]][ref["key"]]
            elif ref := source.get("fieldRef"):
                environment[variable["name"]] = pod.name if ref["fieldPath"] == "metadata.name" else str(pod.index)
            else:
                environment[variable["name"]] = variable["value"]
        return environment

    def _mount(self, pod: Pod, mount: Object, volume: Object, *, context: Object) -> list[str]:
        if "emptyDir" in volume:
            size = re.sub("[MG]i$", lambda unit: MEMORY[unit[0]], volume["emptyDir"]["sizeLimit"])
            return ["--mount", f"type=tmpfs,destination={mount['mountPath']},tmpfs-size={size},tmpfs-mode=1777"]
        if "secret" in volume:
            source = self._files(
                volume["secret"]["secretName"], self.secrets[volume["secret"]["secretName"]], volume["secret"]
            )
        elif "configMap" in volume:
            source = self._files(
                volume["configMap"]["name"], self._config[volume["configMap"]["name"]], volume["configMap"]
            )
        else:
            source = self._folder / "claims" / f"{pod.name}-{mount['name']}"
            source.mkdir(parents=True, exist_ok=True)
            os.chown(source, context["runAsUser"], context["fsGroup"])
        return ["--volume", f"{source}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}"]

    def _files(self, name: str, data: Mapping[str, str], volume: Object) -> Path:
        paths = {item["key"]: item["path"] for item in volume.get("items", ())} or {key: key for key in data}
        folder = self._folder / "files" / f"{name}-{'-'.join(sorted(paths.values()))}"
        folder.mkdir(parents=True, exist_ok=True)
        for key, path in paths.items():
            (folder / path).write_text(data[key])
            (folder / path).chmod(0o444)  # fsGroup lets the pod's user read, too
        return folder


def image_name(container: Object) -> str:
    """The image of a container without tag and digest."""
    return str(container["image"]).partition("@")[0].partition(":")[0]


def podman(*arguments: str) -> str:
    """Runs podman. Returns its output. Raises RuntimeError if it fails."""
    with unbroken():
        command = ("podman", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode:
        raise RuntimeError(f"podman {arguments[0]}: {done.stderr[-500:]}")
    return done.stdout


@contextmanager
def unbroken() -> Iterator[None]:
    """Defers Ctrl-C until the end of the block, as an interrupted podman leaves half a pod behind."""
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)

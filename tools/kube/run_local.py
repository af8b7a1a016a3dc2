"""Plays rendered pods with podman on one machine: what a kubelet would start, by the same objects, and no more than that.

From the manifests come images, arguments, settings, Secrets, ConfigMaps, volumes, users, read-only roots, limits of memory, probes of
readiness and the names of Services, which lead to the pods that run. There is no scheduler, no kube-proxy, no NetworkPolicy, no
admission and no controller: a pod that ends stays away until somebody starts it, which a kubelet would do, and `ended` tells of it.
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
    """One pod of a workload; ours have one container each."""

    name: str
    """Of the container, too."""
    index: int
    ip: str
    workload: Object
    aliases: tuple[str, ...]
    """Names under which Services and StatefulSets make it known."""

    @property
    def container(self) -> Object:
        """Its one container."""
        (one,) = containers(self.workload)
        return one

    @property
    def mac(self) -> str:
        """Address of its network card: local, and as unique as its IP."""
        return f"02:74:6d:00:00:{int(self.ip.rpartition('.')[2]):02x}"

    @property
    def port(self) -> int:
        """Its port of gRPC."""
        return next(int(one["containerPort"]) for one in self.container["ports"] if one["name"] == "grpc")


class Player:
    """The pods of an overlay."""

    def __init__(
        self, objects: list[Object], folder: Path, secrets: Mapping[str, Mapping[str, str]], images: Mapping[str, str]
    ) -> None:
        self._objects, self._folder, self._images = objects, folder, images
        self._config = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
        self.secrets = secrets
        """By name: their keys and values. Needed from `up` on."""
        self.pods = list(self._pods(("StatefulSet", "Deployment")))
        self.jobs = list(self._pods(("Job",), FIRST_IP + len(self.pods)))
        self._killed: set[str] = set()

    def _pods(self, kinds: tuple[str, ...], first: int = FIRST_IP) -> Iterator[Pod]:
        ip = first
        least = {
            one["spec"]["scaleTargetRef"]["name"]: one["spec"]["minReplicas"]
            for one in self._objects
            if one["kind"] == "HorizontalPodAutoscaler"
        }
        for one in (each for kind in kinds for each in self._objects if each["kind"] == kind):
            name = one["metadata"]["name"]
            for index in range(one["spec"].get("replicas", least.get(name, 1))):
                pod = f"{name}-{index}"
                aliases = [pod]
                for service in self._selecting(one):
                    aliases.append(service)
                    if one["kind"] == "StatefulSet":
                        aliases.append(f"{pod}.{service}")
                yield Pod(pod, index, f"{SUBNET}.{ip}", one, tuple(aliases))
                ip += 1

    def _selecting(self, workload: Object) -> Iterator[str]:
        pod = pod_of(workload)
        labels = pod["metadata"]["labels"] if pod else {}
        for one in self._objects:
            if one["kind"] == "Service" and one["spec"]["selector"].items() <= labels.items():
                yield one["metadata"]["name"]

    # ── what is done ─────────────────────────────────────────────────────────────────────────────────────────────────

    def up(self) -> None:
        """Starts all pods at once, runs the Jobs to their end, and returns when all are ready."""
        podman("network", "create", "--subnet", f"{SUBNET}.0/24", NETWORK)
        for pod in self.pods:
            podman(*self._command(pod, "--detach"))
        for job in self.jobs:
            self._run_job(job)
        for pod in self.pods:
            self.wait_until_ready(pod)

    def down(self) -> None:
        """Takes all away, however far it came; Ctrl-C waits until that is done. Raises RuntimeError where something stays."""
        names = [pod.name for pod in (*self.pods, *self.jobs)]
        with unbroken():
            try:
                podman("rm", "--force", "--time", "1", "--volumes", "--ignore", *names)
            finally:
                podman("network", "rm", "--force", NETWORK)

    def kill(self, name: str) -> Pod:
        """SIGKILL."""
        self._killed.add(name)
        podman("kill", name)
        return next(pod for pod in self.pods if pod.name == name)

    def start(self, pod: Pod) -> None:
        """Starts it again on what it has kept, as a kubelet would."""
        podman("start", pod.name)
        self._killed.discard(pod.name)

    def ended(self, *pods: Pod) -> dict[str, str]:
        """Those of the pods (all, where none is named) that don't run though nobody has killed them: how each ended."""
        names = [pod.name for pod in pods or self.pods if pod.name not in self._killed]
        state = "{{.Name}} {{.State.Running}} code {{.State.ExitCode}}, out of memory: {{.State.OOMKilled}}"
        lines = podman("inspect", "--format", state, *names).splitlines() if names else []
        states = {name: (running == "true", how) for name, running, how in (line.split(" ", 2) for line in lines)}
        return {name: how for name, (runs, how) in states.items() if not runs}

    def wait_until_ready(self, pod: Pod) -> None:
        """Returns when its probe of readiness is content; raises RuntimeError with its last lines otherwise."""
        until = time.monotonic() + READY_WITHIN_S
        while not self._is_ready(pod):
            how = self.ended(pod).get(pod.name)
            if how or time.monotonic() > until:
                last = "\n".join(self.said(pod).splitlines()[-15:])
                why = f"has ended: {how}" if how else f"isn't ready after {READY_WITHIN_S:.0f} s"
                raise RuntimeError(f"{pod.name} {why}:\n{last}")
            time.sleep(0.5)

    def keep_logs(self) -> Path:
        """The logs of all pods, in a folder that stays."""
        folder = Path(tempfile.mkdtemp(prefix=f"{NETWORK}-"))
        for pod in self.pods:
            (folder / f"{pod.name}.log").write_text(self.said(pod))
        return folder

    def said(self, pod: Pod) -> str:
        """Its whole log."""
        done = subprocess.run(("podman", "logs", pod.name), capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def _is_ready(self, pod: Pod) -> bool:
        probe = pod.container["readinessProbe"]
        if "exec" in probe:
            return not subprocess.run(
                ("podman", "exec", pod.name, *probe["exec"]["command"]), capture_output=True, check=False
            ).returncode
        ports = {one["name"]: one["containerPort"] for one in pod.container["ports"]}
        asked = probe["httpGet"]
        try:
            with urllib.request.urlopen(f"http://{pod.ip}:{ports[asked['port']]}{asked['path']}", timeout=2) as answer:
                return bool(answer.status < 400)
        except (urllib.error.URLError, OSError):
            return False

    def _run_job(self, pod: Pod) -> None:
        command, said = self._full(self._command(pod, "--rm")), ""
        for _ in range(int(pod.workload["spec"]["backoffLimit"])):
            done = subprocess.run(command, capture_output=True, text=True, timeout=JOB_WITHIN_S, check=False)
            if done.returncode == 0:
                return
            said = done.stderr[-500:]
            time.sleep(2)
        raise RuntimeError(f"the Job {pod.name} fails: {said}")

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
        # The same address of the card after a start, too, as a restarted container has it under Kubernetes, whose pod stays:
        # peers that remember the old one would send into nothing for a minute.
        interface = (f"ip={pod.ip}", f"mac={pod.mac}", *(f"alias={aliase}" for aliase in pod.aliases))
        command += ["--network", f"{NETWORK}:{','.join(interface)}"]
        command += ["--read-only-tmpfs=false", *(["--read-only"] if context["readOnlyRootFilesystem"] else [])]
        command += [part for one in context["capabilities"]["drop"] for part in ("--cap-drop", one)]
        command += [] if context["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]
        command += ["--memory", re.sub("[MG]i$", lambda unit: MEMORY[unit[0]], limits["memory"])]
        command += [part for name, value in self._environment(pod).items() for part in ("--env", f"{name}={value}")]
        volumes = {one["name"]: one for one in spec.get("volumes", ())}
        for mount in container.get("volumeMounts", ()):
            command += self._mount(pod, mount, volumes.get(mount["name"], {}), context)
        return (*command, self._images[image_name(container)], *container.get("args", ()))

    def _environment(self, pod: Pod) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in pod.container.get("envFrom", ()):
            found |= self._config[source["configMapRef"]["name"]]
        for one in pod.container.get("env", ()):
            source = one.get("valueFrom", {})
            if ref := source.get("secretKeyRef"):
                found[one["name"]] = self.secrets[ref["name"]][ref["key"]]
            elif ref := source.get("fieldRef"):
                found[one["name"]] = pod.name if ref["fieldPath"] == "metadata.name" else str(pod.index)
            else:
                found[one["name"]] = one["value"]
        return found

    def _mount(self, pod: Pod, mount: Object, volume: Object, context: Object) -> list[str]:
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
        paths = {one["key"]: one["path"] for one in volume.get("items", ())} or {key: key for key in data}
        folder = self._folder / "files" / f"{name}-{'-'.join(sorted(paths.values()))}"
        folder.mkdir(parents=True, exist_ok=True)
        for key, path in paths.items():
            (folder / path).write_text(data[key])
            (folder / path).chmod(0o444)  # as fsGroup lets the pod's user read
        return folder


def image_name(container: Object) -> str:
    """A container's image without tag and digest."""
    return str(container["image"]).partition("@")[0].partition(":")[0]


def podman(*arguments: str) -> str:
    """What it says. Raises RuntimeError where it refuses."""
    with unbroken():
        command = ("podman", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode:
        raise RuntimeError(f"podman {arguments[0]}: {done.stderr[-500:]}")
    return done.stdout


@contextmanager
def unbroken() -> Iterator[None]:
    """A block for whose end Ctrl-C waits: a podman that is stopped amid its work leaves half a pod behind."""
    told: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: told.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if told:
            signal.raise_signal(signal.SIGINT)

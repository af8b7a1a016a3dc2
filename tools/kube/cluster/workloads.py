"""Workloads and pods of the tested namespace: their state, and waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from tools.kube.cluster.api import Api, path_of
from tools.kube.render import Object, containers

POLL_S = 1.0
NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
"""Reasons of a waiting container whose image the node can't get."""
NAME = "app.kubernetes.io/name"
T = TypeVar("T")


class StepFailed(Exception):
    """A step of the test failed; the text says what the cluster showed instead."""


def until(what: str, check: Callable[[], T | None], within_s: float) -> T:
    """Polls until `check` gives a result. Raises StepFailed after `within_s` seconds."""
    give_up_at = time.monotonic() + within_s
    while (result := check()) is None:
        if time.monotonic() > give_up_at:
            raise StepFailed(f"not within {within_s:.0f} s: {what}")
        time.sleep(POLL_S)
    return result


def image_name(container: Object) -> str:
    """The image of a container without tag and digest."""
    return str(container["image"]).partition("@")[0].rpartition("/")[2].partition(":")[0]


def with_images(objects: list[Object], images: Mapping[str, str]) -> None:
    """Replaces images in place, by the last part of their names."""
    for obj in objects:
        for container in containers(obj):
            container["image"] = images.get(image_name(container), container["image"])


def name_of(obj: Object) -> str:
    """Name of an object."""
    return str(obj["metadata"]["name"])


def is_ready(pod: Object) -> bool:
    """Whether a pod is ready and isn't being deleted."""
    conditions = pod["status"].get("conditions", ())
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def problem(pod: Object) -> str:
    """Why a pod isn't ready, in the words of the kubelet or the scheduler; empty if nothing is known."""
    for status in pod["status"].get("containerStatuses", ()):
        for state in ("waiting", "terminated"):
            if reason := status["state"].get(state, {}).get("reason"):
                return f"{reason}: {status['state'][state].get('message', '')}"
    return next(
        (
            f"{condition.get('reason', condition['type'])}: {condition.get('message', '')}"
            for condition in pod["status"].get("conditions", ())
            if condition["status"] == "False"
        ),
        "",
    )


def lacks_image(pod: Object) -> bool:
    """Whether the node can't get the image of a pod."""
    return any(
        status["state"].get("waiting", {}).get("reason") in NO_IMAGE
        for status in pod["status"].get("containerStatuses", ())
    )


class Namespace:
    """The tested namespace."""

    def __init__(self, api: Api, name: str) -> None:
        self._api, self._name = api, name
        self.left_out: set[str] = set()
        """Workloads that don't run since their image can't be had."""

    def pods(self) -> list[Object]:
        """Pods of all workloads that aren't left out, without those of Jobs and of the test itself."""
        workloads = {name_of(workload) for workload in self.workloads()}
        return [
            pod for pod in self._api.items("Pod", "v1", self._name) if pod["metadata"]["labels"].get(NAME) in workloads
        ]

    def workloads(self) -> list[Object]:
        """All Deployments and StatefulSets that aren't left out."""
        found = []
        for kind in ("StatefulSet", "Deployment"):
            for workload in self._api.items(kind, "apps/v1", self._name):
                found.append({**workload, "kind": kind, "apiVersion": "apps/v1"})
        return [workload for workload in found if name_of(workload) not in self.left_out]

    def leave_out_without_image(self, optional: set[str]) -> None:
        """Leaves out optional workloads whose image can't be pulled. Raises StepFailed if another workload's can't."""
        for pod in self.pods():
            if lacks_image(pod):
                name = pod["metadata"]["labels"][NAME]
                if name not in optional:
                    raise StepFailed(
                        f"{name_of(pod)}: {problem(pod)}; load its image into the nodes, or name another by --image"
                    )
                self.left_out.add(name)

    def wait_until_ready(self, within_s: float, optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Returns when all workloads have rolled out and all their pods are ready. Raises StepFailed."""

        def ready() -> bool | None:
            self.leave_out_without_image(optional)
            if any(_unfinished(workload) for workload in self.workloads()):
                return None
            return True if all(is_ready(pod) for pod in self.pods()) else None

        try:
            until("all pods are ready", ready, within_s)
        except StepFailed as error:
            waiting = [f"{name_of(pod)} ({problem(pod)})" for pod in self.pods() if not is_ready(pod)]
            raise StepFailed(f"{error}; still waiting: {', '.join(waiting) or 'the rollout'}") from None

    def wait_for_job(self, job: Object, within_s: float) -> None:
        """Returns when a Job is complete. Raises StepFailed if it fails or takes too long."""

        def complete() -> bool | None:
            for condition in self._api.get(path_of(job))["status"].get("conditions", ()):
                if condition["type"] == "Failed" and condition["status"] == "True":
                    raise StepFailed(f"Job {name_of(job)}: {condition.get('reason')}: {condition.get('message')}")
                if condition["type"] == "Complete" and condition["status"] == "True":
                    return True
            return None

        until(f"Job {name_of(job)} is complete", complete, within_s)

    def restarts(self) -> Iterator[str]:
        """Containers that ended by themselves and were restarted, with the reason."""
        for pod in self.pods():
            for status in pod["status"].get("containerStatuses", ()):
                if status.get("restartCount"):
                    last = status.get("lastState", {}).get("terminated", {})
                    yield f"{name_of(pod)}: {status['restartCount']} times, last {last.get('reason')} code {last.get('exitCode')}"


def _unfinished(workload: Object) -> bool:
    """Whether a workload's controller hasn't yet replaced all pods by those of its newest template."""
    spec, status = workload["spec"], workload["status"]
    wanted = spec.get("replicas", 1)
    return bool(
        status.get("observedGeneration", 0) < workload["metadata"].get("generation", 0)
        or status.get("updatedReplicas", 0) < wanted
        or status.get("readyReplicas", 0) < wanted
        or status.get("replicas", 0) != wanted
    )

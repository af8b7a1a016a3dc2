"""Render an overlay with kubectl's kustomize, and find the pods in the result."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parents[2] / "k8s"
"""Folder of the manifests."""
OVERLAYS = ("local", "production")
"""Names of the overlays in k8s/overlays."""
Object = dict[str, Any]
Pods = Sequence[tuple[Object, Object]]
"""Workloads, each with its pod template."""


class RenderError(Exception):
    """An overlay can't be rendered; the text is kubectl's, with the file and the reason."""


def kubectl() -> str:
    """Path of kubectl: the pinned one of this environment, or else PATH's. Raises RenderError if there is none."""
    pinned = Path(sysconfig.get_path("scripts")) / "kubectl"
    program = str(pinned) if pinned.exists() else shutil.which("kubectl")
    if program is None:
        raise RenderError("kubectl isn't installed: run `make setup`, or install it for this system")
    return program


def render(folder: Path) -> list[Object]:
    """Renders all objects of the kustomization in a folder. Raises RenderError."""
    done = subprocess.run((kubectl(), "kustomize", folder), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderError(done.stderr.strip())
    return [obj for obj in yaml.load_all(done.stdout, yaml.CSafeLoader) if obj]


def load(file: Path) -> list[Object]:
    """The objects of a YAML file."""
    return [obj for obj in yaml.load_all(file.read_text(), yaml.CSafeLoader) if obj]


def pod_of(obj: Object) -> Object | None:
    """The pod template of a workload; None for other objects."""
    spec = obj.get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    return template if isinstance(template, dict) and "spec" in template else None


def containers(obj: Object) -> list[Object]:
    """All containers of a workload, including initContainers."""
    pod = pod_of(obj)
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]] if pod else []


def ports_of(pod: Object) -> dict[str, int]:
    """Numbers of the ports that a pod template's containers declare, by name."""
    return {port["name"]: port["containerPort"] for part in pod["spec"]["containers"] for port in part.get("ports", ())}


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches a pod with these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        labels.get(expression["key"]) in expression["values"] for expression in selector.get("matchExpressions", ())
    )

"""Validate rendered objects against the API's schemas, for the oldest and the newest supported version of Kubernetes."""

from __future__ import annotations

import json
from functools import cache

import kubernetes_validate

from tools.kube.render import Object

KUBERNETES = ("1.30", "1.34")
"""The oldest and the newest version whose schemas must accept the manifests. The schemas come with kubernetes-validate, which the lock
file pins.

Versions before 1.30 lack `preStop.sleep`. Versions before 1.28 lack the label `apps.kubernetes.io/pod-index`, without which no
evaluator starts.
"""
STATED = "tandem/minimum-kubernetes"
"""Annotation of the Namespace with the oldest version, for operators who only have the rendered manifests."""
NO_SCHEMA = {("cert-manager.io/v1", "Certificate")}
"""Custom resources without a Kubernetes schema. policies.py checks the fields that we use."""


def findings(objects: list[Object]) -> list[str]:
    """Faults for which the API would refuse the objects, unknown fields included."""
    known = [obj for obj in objects if (obj["apiVersion"], obj["kind"]) not in NO_SCHEMA]
    found = [line for obj in known if (line := _finding(json.dumps(obj)))]
    for obj in objects:
        stated = obj["metadata"].get("annotations", {}).get(STATED)
        if obj["kind"] == "Namespace" and stated != KUBERNETES[0]:
            found.append(
                f"Namespace/{obj['metadata']['name']}: {STATED} is {stated}, the manifests are for {KUBERNETES[0]}"
            )
    return found


@cache  # overlays share most of their objects
def _finding(text: str) -> str:
    obj = json.loads(text)
    name = f"{obj['kind']}/{obj['metadata']['name']}"
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(obj, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return f"{name}: {'.'.join(map(str, error.path))}: {error.message[:200]} (Kubernetes {version})"
        except kubernetes_validate.SchemaNotFoundError:
            return f"{name}: {obj['apiVersion']} {obj['kind']} has no schema and no exemption"
    return ""

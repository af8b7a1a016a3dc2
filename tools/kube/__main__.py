"""`python -m tools.kube`: writes the generated files under k8s/. With --check it checks them and every overlay instead.

The check renders each overlay, validates it strictly against the API's schemas, and checks its references and our policies. It lints
the Containerfile if hadolint has a binary. With --render NAME it prints an overlay.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import kubernetes_validate
import yaml

from services.common.messaging import permissions
from tools.kube import policies, references
from tools.kube.render import Object, RenderError, render

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("local", "production")
PARTITIONS = 1
"""Number of partitions of the log; the permissions name each partition's stream."""
KUBERNETES = ("1.30", "1.34")
"""The oldest and the newest version whose schemas must accept the manifests. The schemas come with kubernetes-validate, which the lock
file pins.

Versions before 1.30 lack `preStop.sleep`. Versions before 1.28 lack the label `apps.kubernetes.io/pod-index`, without which no
evaluator starts.
"""
NO_SCHEMA = {("cert-manager.io/v1", "Certificate")}
"""Custom resources without a Kubernetes schema. policies.py checks the fields that we use."""


def users() -> str:
    """The content of k8s/base/nats/users.conf: the users of the NATS server."""
    head = "# Generated from services/common/messaging/flow.py by `make kube`.\n"
    return head + permissions.accounts(permissions.users(PARTITIONS), {})


def given(overlay: Path) -> dict[str, set[str]]:
    """Secrets that operators create by hand, with their keys, from an overlay's given.txt."""
    lines = [line.split() for line in (overlay / "given.txt").read_text().splitlines()]
    return {name: set(keys) for name, *keys in (line for line in lines if line and line[0] != "#")}


def schema_findings(objects: list[Object]) -> list[str]:
    """Faults for which the API would refuse the objects, unknown fields included."""
    known = [obj for obj in objects if (obj["apiVersion"], obj["kind"]) not in NO_SCHEMA]
    return [line for obj in known if (line := _schema_finding(json.dumps(obj)))]


@cache  # overlays share most of their objects
def _schema_finding(text: str) -> str:
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


def findings(overlay: Path) -> list[str]:
    """All faults of an overlay."""
    try:
        objects = render(overlay)
    except RenderError as error:
        return [str(error)]
    if found := schema_findings(objects):
        return found  # the other checks rely on a valid schema
    return references.findings(objects, given(overlay)) + policies.findings(objects)


def containerfile_findings(file: Path) -> list[str]:
    """Findings of hadolint in a Containerfile; empty if hadolint has no binary for this machine."""
    binary = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not binary.exists():
        print("hadolint has no binary for this machine: the Containerfile isn't linted", file=sys.stderr)
        return []
    output = subprocess.run((binary, "--format", "json", file), capture_output=True, text=True, check=False).stdout
    return [f"{file.name}:{fault['line']}: {fault['code']} {fault['message']}" for fault in json.loads(output)]


def main(arguments: list[str]) -> int:
    """Runs the command line. Returns the exit code."""
    file = K8S / "base" / "nats" / "users.conf"
    if arguments[:1] == ["--render"]:
        print(yaml.safe_dump_all(render(K8S / "overlays" / arguments[1]), sort_keys=False), end="")
        return 0
    if arguments != ["--check"]:
        file.write_text(users())
        return 0
    found = [] if file.exists() and file.read_text() == users() else [f"{file}: is stale, run `make kube`"]
    for name in OVERLAYS:
        found += [f"{name}: {line}" for line in findings(K8S / "overlays" / name)]
    found += containerfile_findings(ROOT / "Containerfile")
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m tools.kube`: writes what is generated under k8s/. With --check it looks instead, at that and at every overlay.

Each overlay is rendered, validated strictly against the API's schemas, looked through for what it names and what we demand; the
Containerfile is linted where hadolint has a binary. With --render NAME it prints an overlay.
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
"""Of the log; the permissions name each partition's stream."""
KUBERNETES = ("1.30", "1.34")
"""The oldest and the newest version whose schemas must take the manifests; kubernetes-validate brings them, and the lock pins it.

Before 1.30 `preStop.sleep` isn't there, and before 1.28 the label `apps.kubernetes.io/pod-index`, without which no evaluator starts.
"""
NO_SCHEMA = {("cert-manager.io/v1", "Certificate")}
"""The named exemption: custom resources, whose schemas aren't Kubernetes' own. policies.py looks at the fields that we use."""


def users() -> str:
    """The users of the NATS server, as k8s/base/nats/users.conf has them."""
    head = "# Generated from services/common/messaging/flow.py by `make kube`.\n"
    return head + permissions.accounts(permissions.users(PARTITIONS), {})


def given(overlay: Path) -> dict[str, set[str]]:
    """Secrets that are put there by hand, with their keys."""
    lines = [line.split() for line in (overlay / "given.txt").read_text().splitlines()]
    return {name: set(keys) for name, *keys in (line for line in lines if line and line[0] != "#")}


def schema_findings(objects: list[Object]) -> list[str]:
    """What the API would refuse, unknown fields too."""
    known = [one for one in objects if (one["apiVersion"], one["kind"]) not in NO_SCHEMA]
    return [line for one in known if (line := _schema_finding(json.dumps(one)))]


@cache  # overlays share most of their objects
def _schema_finding(text: str) -> str:
    one = json.loads(text)
    name = f"{one['kind']}/{one['metadata']['name']}"
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return f"{name}: {'.'.join(map(str, error.path))}: {error.message[:200]} (Kubernetes {version})"
        except kubernetes_validate.SchemaNotFoundError:
            return f"{name}: {one['apiVersion']} {one['kind']} has no schema and no exemption"
    return ""


def findings(overlay: Path) -> list[str]:
    """All that is wrong with an overlay."""
    try:
        objects = render(overlay)
    except RenderError as error:
        return [str(error)]
    if found := schema_findings(objects):
        return found  # what comes next relies on the shape
    return references.findings(objects, given(overlay)) + policies.findings(objects)


def containerfile_findings(file: Path) -> list[str]:
    """What hadolint says of a Containerfile; nothing where it has no binary for this machine."""
    binary = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not binary.exists():
        print("hadolint has no binary here: the Containerfile isn't linted", file=sys.stderr)
        return []
    said = subprocess.run((binary, "--format", "json", file), capture_output=True, text=True, check=False).stdout
    return [f"{file.name}:{load['line']}: {load['code']} {load['message']}" for load in json.loads(said)]


def main(arguments: list[str]) -> int:
    """The exit code."""
    file = K8S / "base" / "nats" / "users.conf"
    if arguments[:1] == ["--render"]:
        print(yaml.safe_dump_all(render(K8S / "overlays" / arguments[1]), sort_keys=False), end="")
        return 0
    if arguments != ["--check"]:
        file.write_text(users())
        return 0
    found = [] if file.exists() and file.read_text() == users() else [f"{file}: isn't fresh, run `make kube`"]
    for name in OVERLAYS:
        found += [f"{name}: {line}" for line in findings(K8S / "overlays" / name)]
    found += containerfile_findings(ROOT / "Containerfile")
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

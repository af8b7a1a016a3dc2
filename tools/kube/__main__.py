"""`python -m tools.kube`: writes the generated files under k8s/. With `--check` it checks them and every overlay instead.

The check renders each overlay, validates it strictly against the API's schemas, runs checkov, and checks references, connections,
observation and our policies. It lints the Containerfile if hadolint has a binary. `--check FOLDER...` checks an operator's own
overlays, which must name each image by digest. `--render NAME` prints an overlay.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import yaml

from services.common.messaging import permissions
from tools.kube import checkov, network, observation, policies, references, schemas
from tools.kube.render import K8S, OVERLAYS, Object, RenderError, render

ROOT = Path(__file__).parents[2]
PARTITIONS = 1
"""Number of partitions of the log; the permissions name each partition's stream."""


def generated() -> dict[str, str]:
    """Content of the generated files, by path below k8s/: the users of the NATS server and the NetworkPolicies."""
    head = "# Generated from services/common/messaging/flow.py by `make kube`.\n"
    users = head + permissions.accounts(permissions.users(PARTITIONS), {})
    return {"base/nats/users.conf": users} | {f"{name}/network.yaml": text for name, text in network.policies().items()}


def given(overlay: Path) -> dict[str, set[str]]:
    """Secrets that operators create by hand, with their keys, from an overlay's given.txt."""
    lines = [line.split() for line in (overlay / "given.txt").read_text().splitlines()]
    return {name: set(keys) for name, *keys in (line for line in lines if line and line[0] != "#")}


def findings(objects: list[Object], secrets: dict[str, set[str]]) -> list[str]:
    """All faults of a rendered overlay besides checkov's. `secrets` are those that operators create, with their keys."""
    if found := schemas.findings(objects):
        return found  # the other checks rely on a valid schema
    return [*references.findings(objects, secrets), *observation.findings(objects), *policies.findings(objects)]


def containerfile_findings(file: Path) -> list[str]:
    """Findings of hadolint in a Containerfile; empty if hadolint has no binary for this machine."""
    binary = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not binary.exists():
        print("hadolint has no binary for this machine: the Containerfile isn't linted", file=sys.stderr)
        return []
    output = subprocess.run((binary, "--format", "json", file), capture_output=True, text=True, check=False).stdout
    return [f"{file.name}:{fault['line']}: {fault['code']} {fault['message']}" for fault in json.loads(output)]


def check(overlays: list[Path]) -> list[str]:
    """All faults of these overlays. Overlays outside of k8s/ are operators' and use the Secrets of production's given.txt."""
    found, rendered = [], {}
    for folder in overlays:
        shipped = folder.parent == K8S / "overlays"
        try:
            objects = rendered[folder.name if shipped else str(folder)] = render(folder)
            secrets = given(folder if (folder / "given.txt").exists() else K8S / "overlays" / "production")
        except RenderError as error:
            found.append(f"{folder.name}: {error}")
            continue
        found += [f"{folder.name}: {line}" for line in findings(objects, secrets)]
    try:
        found += checkov.findings(rendered)
        found += checkov.findings(
            {name: objects for name, objects in rendered.items() if "/" in name}, only=checkov.DIGEST
        )
    except checkov.CheckovMissing as error:
        found.append(str(error))
    return found


def main(arguments: list[str]) -> int:
    """Runs the command line. Returns the exit code."""
    match arguments:
        case ["--render", name]:
            print(yaml.safe_dump_all(render(K8S / "overlays" / name), sort_keys=False), end="")
            return 0
        case []:
            for name, text in generated().items():
                (K8S / name).write_text(text)
            return 0
        case ["--check"]:
            found = [
                f"k8s/{name}: is stale, run `make kube`"
                for name, text in generated().items()
                if not (K8S / name).exists() or (K8S / name).read_text() != text
            ]
            found += check([K8S / "overlays" / name for name in OVERLAYS])
            found += containerfile_findings(ROOT / "Containerfile")
        case ["--check", *folders]:
            found = check([Path(folder).resolve() for folder in folders])
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

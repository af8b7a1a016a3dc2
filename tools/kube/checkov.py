"""Run checkov on rendered overlays. Its exceptions are in k8s/checkov.yaml and in annotations of the manifests, with their reasons."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from tools.kube.render import K8S, OVERLAYS, Object, render

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / ".venv-checkov" / "bin" / "checkov"
"""checkov has an environment and a lock file of its own: its hundred packages pin others than ours."""
CONFIG = K8S / "checkov.yaml"
DIGEST = "CKV_K8S_43"
"""Check that each image is named by digest, which only an operator's overlay can do."""


class CheckovMissing(Exception):
    """checkov isn't installed; the text says how to install it."""


def findings(overlays: Mapping[str, list[Object]], *, only: str = "") -> list[str]:
    """Failed checks of all overlays, given with their names. `only` runs a single check, without the exceptions of k8s/checkov.yaml.

    Raises CheckovMissing, and RuntimeError if checkov itself fails.
    """
    return [
        f"{name}: {check['resource'].replace('.', '/', 1).replace('tandem.', '')}: {check['check_id']}: {check['check_name']}"
        for name, report in _reports(overlays, only).items()
        for check in report["results"]["failed_checks"]
    ]


def summary(overlays: Mapping[str, list[Object]]) -> Iterator[str]:
    """A line for each overlay with the numbers of checks, and a line for each exception of a workload with its reason."""
    for name, report in _reports(overlays, "").items():
        counts = report["summary"]
        yield f"{name}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
        for check in report["results"]["skipped_checks"]:
            yield f"{name}: {check['resource']}: {check['check_id']} skipped: {check['check_result']['suppress_comment']}"


def _reports(overlays: Mapping[str, list[Object]], only: str) -> dict[str, Object]:
    if not PROGRAM.exists():
        raise CheckovMissing(f"{PROGRAM} isn't there: run `make check`, which installs it")
    how = ("--check", only, "--framework", "kubernetes", "--skip-download") if only else ("--config-file", str(CONFIG))
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, objects in overlays.items():
            file = Path(folder) / f"{Path(name).name}.yaml"
            file.write_text(yaml.dump_all(objects, Dumper=yaml.CSafeDumper))
            command = (str(PROGRAM), "--file", str(file), "--output", "json", "--soft-fail", *how)
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
            try:
                reports[name] = json.loads(done.stdout)
                counts = reports[name]["summary"]
            except (ValueError, KeyError, TypeError):
                raise RuntimeError(f"checkov failed on {name}: {done.stdout[-300:]} {done.stderr[-500:]}") from None
            if counts["parsing_errors"] or not counts["resource_count"]:
                raise RuntimeError(f"checkov couldn't read all of {name}: {counts}")
    return reports


if __name__ == "__main__":
    print(*summary({name: render(K8S / "overlays" / name) for name in OVERLAYS}), sep="\n")
    sys.exit(0)

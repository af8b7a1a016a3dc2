"""`python -m tools.kube.cluster`: tests the local overlay on the cluster of the current kubeconfig context.

Prints each step with its time, and ends with 1 if a step fails or a container ended by itself. All is deleted at the end, unless
`--keep` is given. The namespace `tandem` must not exist before.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from tools.kube import secrets
from tools.kube.__main__ import given
from tools.kube.cluster.api import ApiError, proxied
from tools.kube.cluster.steps import ClusterTest
from tools.kube.cluster.workloads import StepFailed, name_of, with_images
from tools.kube.network import PARTS
from tools.kube.render import K8S, Object, RenderError, render

OVERLAY = K8S / "overlays" / "local"
OBSERVATION = frozenset(PARTS["observability"])


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.kube.cluster", description=__doc__)
    parser.add_argument("--context", default="", help="kubeconfig context (default: the current one)")
    parser.add_argument(
        "--image", action="append", default=[], metavar="NAME=IMAGE", help="image for tandem, nats, postgres, ..."
    )
    parser.add_argument(
        "--image-before", default="", help="Tandem's image before the upgrade (default: no upgrade is tried)"
    )
    parser.add_argument("--keep", action="store_true", help="delete nothing at the end")
    parsed = parser.parse_args(argv)
    if bad := [each for each in parsed.image if not all(each.partition("="))]:
        parser.error(f"--image {bad[0]}: must be NAME=IMAGE (example: nats=localhost/nats:play)")
    return parsed


def hosts(objects: list[Object]) -> tuple[str, ...]:
    """DNS names of all Services, and of the pods of StatefulSets."""
    services = [name_of(obj) for obj in objects if obj["kind"] == "Service"]
    pods = [
        f"{name_of(obj)}-{index}.{obj['spec']['serviceName']}"
        for obj in objects
        if obj["kind"] == "StatefulSet"
        for index in range(obj["spec"].get("replicas", 1))
    ]
    return (*services, *pods)


def run(test: ClusterTest, *, keep: bool) -> int:
    """Runs all steps and prints their times. Returns the exit code."""
    began, failed = time.monotonic(), False

    def report(name: str, detail: str, since: float) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {name} ({time.monotonic() - since:.1f} s): {detail}", flush=True)

    created = False
    name = ""
    since = began
    try:
        for name, step in test.steps():
            since = time.monotonic()
            created = created or step == test.dry_run
            report(name, step(), since)
            if step == test.wait:
                test.note_restarts()
    except (StepFailed, ApiError, OSError) as error:
        report(f"FAILED: {name}", str(error), since)
        failed = True
    finally:
        # What the first step found there isn't ours to delete.
        if created and not keep:
            since = time.monotonic()
            report("take down", test.take_down(), since)
    print(*(f"FAILED: {line}" for line in test.found), sep="\n", end="\n" if test.found else "")
    return 1 if failed or test.found else 0


def main(argv: list[str]) -> int:
    """Runs the command line. Returns the exit code."""
    # SIGTERM takes all down, like Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    given_arguments = arguments(argv)
    try:
        objects = render(OVERLAY)
    except RenderError as error:
        print(error, file=sys.stderr)
        return 1
    images = dict(each.split("=", 1) for each in given_arguments.image)
    with_images(objects, images)
    tandem = images.get("tandem") or next(
        container["image"] for obj in objects if name_of(obj) == "ingest" and obj["kind"] == "Deployment"
        for container in obj["spec"]["template"]["spec"]["containers"]
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, proxied(given_arguments.context) as api:
        test = ClusterTest(
            api=api,
            objects=objects,
            secrets=secrets.make(given(OVERLAY), Path(folder), hosts(objects)),
            certificates=Path(folder) / "certs",
            image=tandem,
            image_before=given_arguments.image_before,
            optional=OBSERVATION,
        )
        return run(test, keep=given_arguments.keep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

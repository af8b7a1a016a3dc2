"""`python -m tools.kube.stub_images`: builds stand-ins of the three official images, for a machine that can pull none: from Debian's
packages and the pinned nats-server. Needs root, podman and mmdebstrap.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from services.cli.stack.nats_server import binary

FILES = Path(__file__).with_name("stand_ins")
BASE_IMAGE, NATS_IMAGE, POSTGRES_IMAGE = "localhost/python-base:slim", "localhost/nats:play", "localhost/postgres:play"
SUITE = "trixie"
PYTHON = ("python3", "python3-venv", "python-is-python3", "ca-certificates")
POSTGRES = ("postgresql-17",)
POSTGRES_BASE = "localhost/tandem-stand-in-postgres-base"
"""Debian with the packages alone; postgres.Containerfile begins with it."""


def debian(image: str, *packages: str) -> None:
    """Makes an image of a small Debian with these packages."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "debian.tar"
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", SUITE, str(archive))
        run("podman", "import", "--quiet", str(archive), image)


def build(image: str, containerfile: str, folder: Path) -> None:
    """Builds an image in a folder."""
    run("podman", "build", "--quiet", "--tag", image, "--file", str(FILES / containerfile), str(folder))


def run(*command: str) -> None:
    """Raises CalledProcessError where it fails; what it says is seen."""
    subprocess.run(command, check=True)


def main() -> None:
    """Builds all three, and says how they are used."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(binary(), folder)
        build(NATS_IMAGE, "nats.Containerfile", Path(folder))
    debian(BASE_IMAGE, *PYTHON)
    debian(POSTGRES_BASE, *POSTGRES)
    build(POSTGRES_IMAGE, "postgres.Containerfile", FILES)
    print(f"make k8s-test BASE_IMAGE={BASE_IMAGE} NATS_IMAGE={NATS_IMAGE} POSTGRES_IMAGE={POSTGRES_IMAGE}")


if __name__ == "__main__":
    main()

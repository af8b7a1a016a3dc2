"""`python -m tools.kube.stub_images`: builds stub images for a machine that can't pull the three official images.

The stubs consist of Debian's packages and the pinned nats-server. Needs root, podman and mmdebstrap.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from services.local.nats_server import server_binary

FILES = Path(__file__).with_name("stub_images_files")
BASE_IMAGE = "localhost/python-base:slim"
NATS_IMAGE = "localhost/nats:play"
POSTGRES_IMAGE = "localhost/postgres:play"
SUITE = "trixie"
PYTHON = ("python3", "python3-venv", "python-is-python3", "ca-certificates")
POSTGRES = ("postgresql-17",)
POSTGRES_BASE = "localhost/tandem-stand-in-postgres-base"
"""Debian with PostgreSQL's packages, the base of postgres.Containerfile."""


def debian(image: str, *packages: str) -> None:
    """Builds an image of a minimal Debian with these packages."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "debian.tar"
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", SUITE, str(archive))
        run("podman", "import", "--quiet", str(archive), image)


def build(image: str, containerfile: str, folder: Path) -> None:
    """Builds an image from one of our Containerfiles, with a folder as context."""
    run("podman", "build", "--quiet", "--tag", image, "--file", str(FILES / containerfile), str(folder))


def run(*command: str) -> None:
    """Runs a command with visible output. Raises CalledProcessError if it fails."""
    subprocess.run(command, check=True)


def main() -> None:
    """Builds all three images, and prints how to use them."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(server_binary(), folder)
        build(NATS_IMAGE, "nats.Containerfile", Path(folder))
    debian(BASE_IMAGE, *PYTHON)
    debian(POSTGRES_BASE, *POSTGRES)
    build(POSTGRES_IMAGE, "postgres.Containerfile", FILES)
    print(f"make image-check BASE_IMAGE={BASE_IMAGE}")
    print(f"make cluster-test IMAGES='tandem=localhost/tandem:check nats={NATS_IMAGE} postgres={POSTGRES_IMAGE}'")


if __name__ == "__main__":
    main()

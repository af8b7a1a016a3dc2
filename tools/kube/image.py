"""`python -m tools.kube.image IMAGE`: checks an image under stricter limits than the manifests'. Needs podman.

The limits are an arbitrary user, a read-only root, no capabilities and no network. The checks: each service loads, the examples are
decided, a certificate is issued, only /tmp is writable, no file raises privileges, no installer is left, and the project's files
contain no secret.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools import secret_scan

ROOT = Path(__file__).parents[2]
USER = "54321:54321"
"""User and group that aren't in the image's /etc/passwd."""
LIMITS = (
    "--user",
    USER,
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--network",
    "none",
)
SCRATCH = "/tmp"  # noqa: S108  # the container's own
MOUNTS = ("--tmpfs", SCRATCH, "--volume", f"{ROOT / 'examples'}:/examples:ro")
WITHIN_S = 120
SERVICES = sorted(file.parent.name for file in (ROOT / "services").glob("*/__main__.py"))
PAGES = {
    str(file.relative_to(ROOT / "services"))
    for kind in ("static", "templates")
    for file in (ROOT / "services").glob(f"*/{kind}/*")
}
"""Files of the console's and field's pages, relative to services/."""
SEARCHES = {
    "writable files": "find / -xdev -writable ! -type l -not -path '/tmp*' -not -path '/dev/*' -not -path '/proc/*'",
    "files of the project that raise privileges": "find /opt/tandem -perm /6000",
    "installers or compilers": "command -v pip pip3 gcc cc make; find /opt/tandem -name 'pip' -type d",
}


def podman(image: str, entrypoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs an entrypoint of the image to its end, under the limits."""
    command = ("podman", "run", "--rm", *LIMITS, *MOUNTS, "--entrypoint", entrypoint, image, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)


def findings(image: str) -> Iterator[str]:
    """All faults of the image."""
    modules = "; ".join(f"import services.{service}.__main__" for service in SERVICES)
    loaded = podman(image, "python", "-c", f"import os; {modules}; print(os.getuid(), os.getgid())")
    if loaded.stdout.split() != USER.split(":"):
        yield f"its services don't load: {loaded.stderr[-500:]}"
    folded = podman(
        image,
        "python",
        "-m",
        "services.cli",
        "backtest",
        "--scenario",
        "/examples/scenario.json",
        "--reports",
        "/examples/reports.ndjson",
    )
    if folded.returncode or "RING_ENTERED" not in folded.stdout:
        yield f"the examples aren't decided: {folded.stderr[-500:]}"
    issued = podman(image, "python", "-m", "services.cli", "certs", "spiffe://vendor/acme", "--dir", f"{SCRATCH}/certs")
    if issued.returncode:
        yield f"no certificate is issued: {issued.stderr[-500:]}"
    for what, search in SEARCHES.items():
        seen = podman(image, "sh", "-c", f"{search} 2>/dev/null; true").stdout.split()
        if seen:
            yield f"{what}: {', '.join(seen[:5])}"
    if podman(image, "sh", "-c", "touch /opt/tandem/x").returncode == 0:
        yield "its root is writable"
    yield from (f"it lacks services/{name}" for name in sorted(PAGES - files_in(image, "services")))
    yield from secrets_in(image)


def files_in(image: str, folder: str) -> set[str]:
    """Paths of the project's files in the image below a folder, relative to the folder."""
    seen = podman(image, "sh", "-c", f"cd /opt/tandem/app/{folder} && find . -type f").stdout.split()
    return {name.removeprefix("./") for name in seen}


def secrets_in(image: str) -> Iterator[str]:
    """Secrets in the project's files in the image."""
    with tempfile.TemporaryDirectory() as folder:
        name = subprocess.run(("podman", "create", image), capture_output=True, text=True, check=True).stdout.strip()
        try:
            subprocess.run(("podman", "cp", f"{name}:/opt/tandem/app", folder), check=True)
        finally:
            subprocess.run(("podman", "rm", name), capture_output=True, check=True)
        for file in sorted(Path(folder).rglob("*.py*")):
            yield from (
                f"{file.relative_to(folder)}:{number}: {kind}"
                for number, kind in secret_scan.findings(file.read_text())
            )


def main(image: str) -> int:
    """Checks the image. Returns the exit code: 1 if it has faults."""
    found = list(findings(image))
    print(*found or [f"{image}: runs as {USER} with a read-only root"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""`python -m tools.kube.image IMAGE`: runs an image as the manifests do, and harder: a user that nobody has named, a read-only root,
no capabilities and no network. Needs podman.

Each service loads, the decision is made over the examples, a certificate is issued; nothing is writable but /tmp, nothing raises
rights, no installer is left, and no secret stands in the layers of the project's own files.
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
"""Not in the image's /etc/passwd."""
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
SERVICES = ("registry", "ingest", "geofence", "dispatch", "console", "cli")
CONSOLE = ROOT / "services" / "console"
PAGES = {str(one.relative_to(CONSOLE)) for kind in ("static", "templates") for one in (CONSOLE / kind).iterdir()}
LOOKS = {
    "a file that it can write to": "find / -xdev -writable ! -type l -not -path '/tmp*' -not -path '/dev/*' -not -path '/proc/*'",
    "a file that raises rights, of the project": "find /opt/tandem -perm /6000",
    "an installer or a compiler": "command -v pip pip3 gcc cc make; find /opt/tandem -name 'pip' -type d",
}


def podman(image: str, entrypoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    command = ("podman", "run", "--rm", *LIMITS, *MOUNTS, "--entrypoint", entrypoint, image, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)


def findings(image: str) -> Iterator[str]:
    """What is wrong with it."""
    modules = "; ".join(f"import services.{service}.__main__" for service in SERVICES)
    who = podman(image, "python", "-c", f"import os; {modules}; print(os.getuid(), os.getgid())")
    if who.stdout.split() != USER.split(":"):
        yield f"its services don't load: {who.stderr[-500:]}"
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
    for what, look in LOOKS.items():
        seen = podman(image, "sh", "-c", f"{look} 2>/dev/null; true").stdout.split()
        if seen:
            yield f"{what}: {', '.join(seen[:5])}"
    if podman(image, "sh", "-c", "touch /opt/tandem/x").returncode == 0:
        yield "its root can be written to"
    yield from (f"the console lacks {name}" for name in sorted(PAGES - files_in(image, "services/console")))
    yield from secrets_in(image)


def files_in(image: str, folder: str) -> set[str]:
    """Files of the project that the image holds below a folder, by their path there."""
    seen = podman(image, "sh", "-c", f"cd /opt/tandem/app/{folder} && find . -type f").stdout.split()
    return {name.removeprefix("./") for name in seen}


def secrets_in(image: str) -> Iterator[str]:
    """Secrets in the project's files of the image."""
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
    """The exit code: 1 where something is wrong."""
    found = list(findings(image))
    print(*found or [f"{image}: runs as {USER} with a read-only root"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

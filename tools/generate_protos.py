"""Generate protos/gen from protos/tandem; with --check, fail if protos/gen is stale, or buf finds lint or breaking changes."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = PROTOS / "gen"
SCRIPTS = Path(sysconfig.get_path("scripts"))

MAIN = "main"
"""Branch whose protos must not be broken, as callers build on them."""
BASELINE = "protos/baseline.txt"
"""File that names the baseline. Protos are compared only with protos of the same baseline."""


class GenerationError(Exception):
    """protoc refused a file. Its reason is on standard error."""


def generate(out: Path) -> None:
    """Write code, stubs and package files of all protos into the empty folder ``out``."""
    protos = sorted((PROTOS / "tandem").rglob("*.proto"))
    services = [proto for proto in protos if re.search(r"^service\s", proto.read_text("utf-8"), re.MULTILINE)]
    _protoc(protos, f"--python_out={out}", f"--mypy_out=quiet:{out}")
    # For a file without a service, the gRPC plugin would write an empty module.
    _protoc(services, f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet,only_async:{out}")

    # protoc writes no package files. Without them setuptools and mypy would need settings for namespace packages.
    (out / "tandem").mkdir(exist_ok=True)
    for folder in [out / "tandem", *(out / "tandem").rglob("*/")]:
        (folder / "__init__.py").touch()
    (out / "tandem" / "py.typed").touch()


def _protoc(protos: list[Path], *outputs: str) -> None:
    if not protos:
        return
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        f"--proto_path={PROTOS}",
        *(f"--plugin={name}={SCRIPTS / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
        *outputs,
        *(str(proto) for proto in protos),
    ]
    if subprocess.run(command, check=False).returncode != 0:
        raise GenerationError


def regenerate() -> None:
    """Replace protos/gen as a whole, only after protoc has accepted every file."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(folder, GENERATED)


def stale_files() -> list[str]:
    """Names of the files in protos/gen that a fresh run would add, change or remove."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, committed = _contents(Path(folder)), _contents(GENERATED)
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def check() -> bool:
    """Print the faults of the protos. Returns whether there are none."""
    stale = stale_files()
    if stale:
        print("protos/gen is stale. Run 'make protos' and commit:", file=sys.stderr)
        for name in stale:
            print(f"  protos/gen/{name}", file=sys.stderr)
    clean = _buf("lint", "protos")
    compatible = True
    if _main_has_this_baseline():
        compatible = _buf("breaking", "protos", "--against", f".git#branch={MAIN},subdir=protos")
    else:
        print(f"A branch '{MAIN}' with the same {BASELINE} isn't there to compare with, so 'buf breaking' is skipped.")
    return not stale and clean and compatible


def _buf(*arguments: str) -> bool:
    return subprocess.run([SCRIPTS / "buf", *arguments], cwd=ROOT, check=False).returncode == 0


def _main_has_this_baseline() -> bool:
    shown = subprocess.run(
        ["git", "show", f"refs/heads/{MAIN}:{BASELINE}"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    return shown.returncode == 0 and shown.stdout == (ROOT / BASELINE).read_text("utf-8")


def main() -> int:
    """Run the command line; the result is the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something is stale or broken")
    try:
        if parser.parse_args().check:
            return 0 if check() else 1
        regenerate()
    except GenerationError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

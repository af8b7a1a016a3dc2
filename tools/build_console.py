"""Build the front ends into services/*/static: the console's and the phones' app. With --check, compare the committed builds with fresh
ones.

Needs Node.js with npm. build_basemap.py makes the base map in the console's folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SERVICES = Path(__file__).resolve().parent.parent / "services"
NAMES = ("console", "field")
MAP = "korea.pmtiles"
LICENSES = "licenses.txt"


def build(frontend: Path, out: Path) -> None:
    """Builds everything except the base map into a folder."""
    lock = frontend / "node_modules" / ".package-lock.json"
    if not lock.exists() or lock.stat().st_mtime < (frontend / "package-lock.json").stat().st_mtime:
        _npm(frontend, "ci", "--no-audit", "--no-fund", "--silent")
    _npm(frontend, "run", "--silent", "check")
    for script in json.loads((frontend / "package.json").read_text())["scripts"]:
        if script.startswith("build"):
            _npm(frontend, "run", "--silent", script, "--", "--outDir", str(out), "--logLevel", "warn")
    if texts := licenses(frontend):
        (out / LICENSES).write_text(texts)


def licenses(frontend: Path) -> str:
    """The licence texts of all packages in the build, by package. Empty if it has none."""
    texts = []
    for path, package in sorted(json.loads((frontend / "package-lock.json").read_text())["packages"].items()):
        if not path or package.get("dev"):
            continue
        files = [file for file in (frontend / path).glob("*") if file.stem.upper() in ("LICENSE", "LICENCE", "COPYING")]
        text = files[0].read_text().strip() if files else package.get("license", "")
        texts.append(f"{path.rpartition('node_modules/')[2]} {package['version']}\n\n{text}\n")
    return "\n----\n\n".join(texts)


def differences(built: Path, static: Path) -> list[str]:
    """Names of the files that differ between a build and the committed files."""
    names = {file.name for folder in (built, static) for file in folder.iterdir()} - {MAP}
    return sorted(name for name in names if _content(built / name) != _content(static / name))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _npm(frontend: Path, *arguments: str) -> None:
    subprocess.run(("npm", *arguments), cwd=frontend, check=True)


def main() -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a committed build is stale")
    check = parser.parse_args().check
    if shutil.which("npm") is None:
        print("the front ends' builds weren't checked: npm isn't installed", file=sys.stderr)
        return 0 if check else 1
    failed = False
    for name in NAMES:
        static = SERVICES / name / "static"
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder)
            build(SERVICES / name / "frontend", built)
            if check:
                if stale := differences(built, static):
                    print(f"services/{name}/static is stale: {', '.join(stale)}; run `make console`", file=sys.stderr)
                    failed = True
                continue
            for file in static.glob("*"):
                if file.name != MAP:
                    file.unlink()
            for file in built.iterdir():
                shutil.copy(file, static / file.name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

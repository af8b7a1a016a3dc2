"""Build the console's front end into services/console/static; with --check, compare the committed build with a fresh one.

Needs Node.js with npm. build_basemap.py makes the base map in that folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONSOLE = Path(__file__).resolve().parent.parent / "services" / "console"
FRONTEND = CONSOLE / "frontend"
STATIC = CONSOLE / "static"
MAP = "korea.pmtiles"
LICENSES = "licenses.txt"


def build(out: Path) -> None:
    """Builds everything except the base map into a folder."""
    lock = FRONTEND / "node_modules" / ".package-lock.json"
    if not lock.exists() or lock.stat().st_mtime < (FRONTEND / "package-lock.json").stat().st_mtime:
        _npm("ci", "--no-audit", "--no-fund", "--silent")
    _npm("run", "--silent", "check")
    _npm("run", "--silent", "build", "--", "--outDir", str(out), "--logLevel", "warn")
    (out / LICENSES).write_text(licenses())


def licenses() -> str:
    """The licence texts of all packages in the build, by package."""
    texts = []
    for path, package in sorted(json.loads((FRONTEND / "package-lock.json").read_text())["packages"].items()):
        if not path or package.get("dev"):
            continue
        files = [file for file in (FRONTEND / path).glob("*") if file.stem.upper() in ("LICENSE", "LICENCE", "COPYING")]
        text = files[0].read_text().strip() if files else package.get("license", "")
        texts.append(f"{path.rpartition('node_modules/')[2]} {package['version']}\n\n{text}\n")
    return "\n----\n\n".join(texts)


def differences(built: Path) -> list[str]:
    """Names of the files that differ between a build and the committed files."""
    names = {file.name for folder in (built, STATIC) for file in folder.iterdir()} - {MAP}
    return sorted(name for name in names if _content(built / name) != _content(STATIC / name))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _npm(*arguments: str) -> None:
    subprocess.run(("npm", *arguments), cwd=FRONTEND, check=True)


def main() -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the committed build is stale")
    check = parser.parse_args().check
    if shutil.which("npm") is None:
        print("the console's build wasn't checked: npm isn't installed", file=sys.stderr)
        return 0 if check else 1
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder)
        build(built)
        if check:
            stale = differences(built)
            if stale:
                print(f"services/console/static is stale: {', '.join(stale)}; run `make console`", file=sys.stderr)
            return 1 if stale else 0
        for file in STATIC.glob("*"):
            if file.name != MAP:
                file.unlink()
        for file in built.iterdir():
            shutil.copy(file, STATIC / file.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

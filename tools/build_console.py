"""Build the console's front end into services/console/static; with --check, prove that what is committed is what the sources give.

Needs Node.js with npm. The base map there is made by build_basemap.py.
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
    """Builds everything but the base map into a folder."""
    lock = FRONTEND / "node_modules" / ".package-lock.json"
    if not lock.exists() or lock.stat().st_mtime < (FRONTEND / "package-lock.json").stat().st_mtime:
        _npm("ci", "--no-audit", "--no-fund", "--silent")
    _npm("run", "--silent", "check")
    _npm("run", "--silent", "build", "--", "--outDir", str(out), "--logLevel", "warn")
    (out / LICENSES).write_text(licenses())


def licenses() -> str:
    """What the packages that are in the build ask to be told, by package."""
    told = []
    for path, package in sorted(json.loads((FRONTEND / "package-lock.json").read_text())["packages"].items()):
        if not path or package.get("dev"):
            continue
        files = [one for one in (FRONTEND / path).glob("*") if one.stem.upper() in ("LICENSE", "LICENCE", "COPYING")]
        text = files[0].read_text().strip() if files else package.get("license", "")
        told.append(f"{path.rpartition('node_modules/')[2]} {package['version']}\n\n{text}\n")
    return "\n----\n\n".join(told)


def differences(built: Path) -> list[str]:
    """Names of files that aren't the same in both."""
    names = {one.name for folder in (built, STATIC) for one in folder.iterdir()} - {MAP}
    return sorted(name for name in names if _content(built / name) != _content(STATIC / name))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _npm(*arguments: str) -> None:
    subprocess.run(("npm", *arguments), cwd=FRONTEND, check=True)


def main() -> int:
    """Reads the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the build isn't fresh")
    check = parser.parse_args().check
    if shutil.which("npm") is None:
        print("the console's build wasn't looked at: npm isn't here", file=sys.stderr)
        return 0 if check else 1
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder)
        build(built)
        if check:
            found = differences(built)
            if found:
                print(f"services/console/static isn't fresh: {', '.join(found)}; run `make console`", file=sys.stderr)
            return 1 if found else 0
        for one in STATIC.glob("*"):
            if one.name != MAP:
                one.unlink()
        for one in built.iterdir():
            shutil.copy(one, STATIC / one.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Two versions of the services side by side: an earlier and a later one, and which of them each package runs.

The later version is a copy of the source with another fold, schema and protos, and the earlier one the source itself. Or the earlier
version is that of a commit, and the later one the source. The processes of a mesh import the version that a file names for their
package, at their start. So a mesh is upgraded like a cluster: the file changes, and each process is replaced in its turn.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.geofence.domain.entries import FOLD_VERSION
from tools import generate_protos

ROOT = Path(__file__).parents[3]
NEXT_VERSION = FOLD_VERSION + 1
MARK = "the next version"
"""Text that the seeded later version writes into the log in a field that the earlier one doesn't know."""
BOOT = """
import json, pathlib, sys
chosen = json.loads(pathlib.Path({choice!r}).read_text())
package = next((word for word in sys.orig_argv if word.startswith("services.")), "")
sys.path.insert(0, chosen.get(package, chosen[""]))
"""
MIGRATION = '''"""A table of the next version, which this version doesn't know."""

import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("of_the_next_version", sa.Column("id", sa.Integer, primary_key=True))
'''


class Versions:
    """An earlier and a later version of the services, and which of them each package runs."""

    def __init__(self, folder: Path, packages: Sequence[str], commit: str = "") -> None:
        """Without a commit the later version is made of this source, else this source is the later version."""
        self._choice = folder / "choice.json"
        self.earlier, self.later = folder / "earlier", folder / "later"
        self.mark = "" if commit else MARK
        """What the log holds once the later version has written into it; empty if it isn't known."""
        if commit:
            _check_out(commit, self.earlier)
            _copy(self.later)
            shutil.copytree(ROOT / "protos/gen/tandem", self.later / "tandem", ignore=_PYCACHE)
        else:
            for tree in (self.earlier, self.later):
                _copy(tree)
            shutil.copytree(ROOT / "protos/gen/tandem", self.earlier / "tandem", ignore=_PYCACHE)
            self._seed(folder / "protos")
        boot = folder / "boot"
        boot.mkdir()
        (boot / "sitecustomize.py").write_text(BOOT.format(choice=str(self._choice)))
        # The command that starts the processes is the later one: it makes the users and streams that both versions need.
        self.choose(self.later)
        self.choose(self.earlier, *(package for package in packages if self.has(package)))
        self.environment = {"PYTHONPATH": str(boot), "PYTHONSAFEPATH": "1"}
        """Variables with which a mesh runs these versions."""

    def choose(self, tree: Path, *packages: str) -> None:
        """Lets processes of these packages (default: all) run a version from their next start on."""
        chosen = json.loads(self._choice.read_text()) if packages else {}
        chosen |= {f"services.{package}": str(tree) for package in packages} or {"": str(tree)}
        self._choice.write_text(json.dumps(chosen))

    def has(self, package: str) -> bool:
        """Whether the earlier version has a package."""
        return (self.earlier / "services" / package).is_dir()

    def refusal_of(self, package: str) -> str:
        """Why the earlier version of a package can't follow the later one, as its log says it; empty if it can."""
        earlier, later = fold_version(self.earlier), fold_version(self.later)
        if package == "geofence" and earlier < later:
            return f"the log demands fold version {later}"
        folders = (self.later / "services" / package).rglob("migrations/versions")
        # A leg opens its own database always, and others only where something is set.
        for folder in sorted(folders, key=lambda folder: ("leg" not in folder.parts, folder)):
            known = {file.name for file in (self.earlier / folder.relative_to(self.later)).glob("*.py")}
            if new := sorted({file.name for file in folder.glob("*.py")} - known):
                return f"Can't locate revision identified by '{_revision(folder / new[-1])}'"
        return ""

    def _seed(self, protos: Path) -> None:
        """Makes the later version: it writes a new field into the log, has one more migration, and folds as this one does."""
        seed(
            self.later / "services/geofence/domain/entries.py",
            r"^FOLD_VERSION = \d+$",
            f"FOLD_VERSION = {NEXT_VERSION}",
        )
        migrations = self.later / "services/registry/migrations/versions"
        head = _revision(max(migrations.glob("0*.py")))
        (migrations / "next.py").write_text(MIGRATION.format(head=head))
        shutil.copytree(ROOT / "protos/tandem", protos / "tandem")
        seed(
            protos / "tandem/common/v1/log.proto",
            r"^  uint32 version = 1;$",
            "  uint32 version = 1;\n  string made_by = 2000;",
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generate_protos, "PROTOS", protos)
            generate_protos.generate(self.later)
        seed(
            self.later / "services/geofence/own_entries.py",
            r"FoldVersion\(version=FOLD_VERSION\)",
            f'FoldVersion(version=FOLD_VERSION, made_by="{MARK}")',
        )


_PYCACHE = shutil.ignore_patterns("__pycache__")


def _copy(tree: Path) -> None:
    """Copies the services of this source, with the files that they serve."""
    shutil.copytree(
        ROOT / "services", tree / "services", ignore=shutil.ignore_patterns("__pycache__", "node_modules", "static")
    )
    for name in ("console", "field"):
        shutil.copytree(ROOT / "services" / name / "static", tree / "services" / name / "static")


def _check_out(commit: str, tree: Path) -> None:
    """Puts the services and the generated code of a commit into a folder."""
    tree.mkdir()
    archive = subprocess.run(
        ("git", "archive", commit, "services", "protos/gen"), cwd=ROOT, capture_output=True, check=False
    )
    assert archive.returncode == 0, archive.stderr.decode()
    subprocess.run(("tar", "-x"), cwd=tree, input=archive.stdout, check=True)
    (tree / "protos/gen/tandem").rename(tree / "tandem")


def fold_version(tree: Path) -> int:
    """Version of the fold of a source tree."""
    found = re.search(
        r"^FOLD_VERSION = (\d+)$", (tree / "services/geofence/domain/entries.py").read_text(), re.MULTILINE
    )
    assert found is not None, tree
    return int(found[1])


def _revision(migration: Path) -> str:
    found = re.search(r'^revision = "(\w+)"', migration.read_text(), re.MULTILINE)
    assert found is not None, migration
    return found[1]


def seed(file: Path, pattern: str, text: str) -> None:
    """Replaces the only match of a pattern in a file."""
    changed, count = re.subn(pattern, lambda _: text, file.read_text(), flags=re.MULTILINE)
    assert count == 1, (file, pattern, count)
    file.write_text(changed)


def python(tree: Path, program: str, *arguments: str) -> tuple[str, ...]:
    """Command that runs a program text with the services of a version."""
    return sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tree)!r})\n{program}", *arguments

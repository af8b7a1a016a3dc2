"""Two versions of the services side by side: a copy of the source, and a next version with another fold, schema and protos.

The processes of a mesh import the version that a file names for their package, at their start. So a mesh is upgraded like a cluster:
the file changes, and each process is replaced in its turn.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from services.geofence.domain.version import VERSION
from tools import generate_protos

ROOT = Path(__file__).parents[3]
NEXT_VERSION = VERSION + 1
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
    """This version and the next one, and which of them each package runs."""

    def __init__(self, folder: Path) -> None:
        self._choice = folder / "choice.json"
        self.this, self.next = folder / "this", folder / "next"
        for tree in (self.this, self.next):
            ignored = shutil.ignore_patterns("__pycache__", "node_modules", "static")
            shutil.copytree(ROOT / "services", tree / "services", ignore=ignored)
            shutil.copytree(ROOT / "services/console/static", tree / "services/console/static")
        shutil.copytree(ROOT / "protos/gen/tandem", self.this / "tandem", ignore=shutil.ignore_patterns("__pycache__"))
        self._change(folder / "protos")
        boot = folder / "boot"
        boot.mkdir()
        (boot / "sitecustomize.py").write_text(BOOT.format(choice=str(self._choice)))
        self.choose(self.this)
        self.environment = {"PYTHONPATH": str(boot), "PYTHONSAFEPATH": "1"}
        """Variables with which a mesh runs these versions."""

    def choose(self, tree: Path, *packages: str) -> None:
        """Lets processes of these packages (default: all) run a version from their next start on."""
        chosen = json.loads(self._choice.read_text()) if packages else {}
        chosen |= {f"services.{package}": str(tree) for package in packages} or {"": str(tree)}
        self._choice.write_text(json.dumps(chosen))

    def _change(self, protos: Path) -> None:
        """Makes the next version: it writes a new field into the log, has one more migration, and folds as this one does."""
        seed(self.next / "services/geofence/domain/version.py", r"^VERSION = \d+$", f"VERSION = {NEXT_VERSION}")
        migrations = self.next / "services/registry/migrations/versions"
        head = re.search(r'^revision = "(\w+)"', max(migrations.glob("0*.py")).read_text(), re.MULTILINE)
        assert head is not None
        (migrations / "next.py").write_text(MIGRATION.format(head=head[1]))
        shutil.copytree(ROOT / "protos/tandem", protos / "tandem")
        seed(
            protos / "tandem/common/v1/log.proto",
            r"^  uint32 version = 1;$",
            "  uint32 version = 1;\n  string made_by = 2000;",
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generate_protos, "PROTOS", protos)
            generate_protos.generate(self.next)
        seed(
            self.next / "services/geofence/own_entries.py",
            r"FoldVersion\(version=VERSION\)",
            'FoldVersion(version=VERSION, made_by="the next version")',
        )


def seed(file: Path, pattern: str, text: str) -> None:
    """Replaces the only match of a pattern in a file."""
    changed, count = re.subn(pattern, lambda _: text, file.read_text(), flags=re.MULTILINE)
    assert count == 1, (file, pattern, count)
    file.write_text(changed)


def python(tree: Path, program: str, *arguments: str) -> tuple[str, ...]:
    """Command that runs a program text with the services of a version."""
    return sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tree)!r})\n{program}", *arguments

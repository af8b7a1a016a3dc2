"""Runs of a benchmark in several worktrees of this repository, in turn, so that drift of the machine weighs on all alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from services.common.failure import MISUSED, CommandFailed

HERE = Path(__file__).resolve().parents[2]


def in_pairs(pairs: int) -> Iterator[tuple[str, ...]]:
    """The order of the versions in each pair; which of the two runs first alternates."""
    for n in range(pairs):
        yield ("before", "after") if n % 2 == 0 else ("after", "before")


def run(tree: Path, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON object that a benchmark prints when it runs over a worktree's services, by the worktree's Python if it has a `.venv`.

    The worktree's own copy of the benchmark is run, if it has one, and otherwise this copy. Raises CommandFailed if it prints none.
    """
    if not (tree / "services").is_dir():
        raise CommandFailed(f"{tree} isn't a worktree of this repository: it has no folder `services`", MISUSED)
    python = tree / ".venv/bin/python"
    own = (tree / f"{module.replace('.', '/')}.py").exists()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        (Path(folder) / "bench").symlink_to((tree if own else HERE) / "bench")
        path = os.pathsep.join((folder, str(tree), str(tree / "protos/gen")))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        command = (str(python) if python.exists() else sys.executable, "-m", module, "--json", *arguments)
        ended = subprocess.run(command, stdout=subprocess.PIPE, cwd=tree, env=environment, text=True, check=False)
    try:
        printed = json.loads(ended.stdout)
    except ValueError:
        raise CommandFailed(f"{tree}: {module} ended with {ended.returncode} and printed no figures") from None
    if not isinstance(printed, dict):
        raise CommandFailed(f"{tree}: {module} printed {ended.stdout[:80]!r} in place of an object")
    return printed


def values(printed: dict[str, Any]) -> dict[str, float]:
    """The figures of a run, by name."""
    return {figure["name"]: figure["value"] for figure in printed["figures"] if figure["value"] is not None}

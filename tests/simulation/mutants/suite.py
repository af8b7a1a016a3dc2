"""Runs the tests of the suite that concern a mutant, with the mutant in the services, to see whether they find it too.

As a plugin of pytest (`-p tests.simulation.mutants.suite`) it puts the mutant of the environment into the testing process. Services
that a test starts as processes of their own stay whole.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.simulation.mutants import MUTANTS

MUTANT = "SIMULATION_MUTANT"
TESTS = Path("tests")
FOLDERS = ("unit", "scenarios", "mesh")
"""Folders of tests, in the order in which they are tried: those of the first with a fitting file are run."""
MAX_FILES = 25
TIMEOUT_S = 240


class Verdict(NamedTuple):
    """What the suite says of a mutant."""

    text: str
    """The first failed test, or why none failed."""
    is_found: bool


def pytest_configure() -> None:
    """Puts the mutant of the environment into this process."""
    if name := os.environ.get(MUTANT):
        MUTANTS[name]()


def verdict(mutant: str) -> Verdict:
    """Runs the tests that concern a mutant until one fails."""
    files = list(files_of(_modules(mutant)))
    if not files:
        return Verdict("no test imports the module", False)
    options = ["-x", "-q", "-p", "tests.simulation.mutants.suite", "-p", "no:cacheprovider", "--timeout", "60"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *map(str, files)],
            env={**os.environ, MUTANT: mutant},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Verdict(f"no failure in {TIMEOUT_S} s of {len(files)} files", False)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if failed:
        return Verdict(f"`{failed[1].removeprefix('tests/')}`", True)
    if done.returncode:
        raise RuntimeError(
            f"{mutant}: pytest ended with {done.returncode}: {done.stdout[-2_000:]}{done.stderr[-2_000:]}"
        )
    return Verdict(f"{len(files)} files pass", False)


def _modules(mutant: str) -> set[str]:
    """Modules in which a mutant replaces something. Asked of another process, because a mutant stays."""
    code = f"from tests.simulation.mutants import MUTANTS, replacing; MUTANTS[{mutant!r}](); print(*replacing.replaced)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def files_of(modules: Sequence[str] | set[str]) -> Iterator[Path]:
    """Test files that import one of the modules, of the first folder that has any."""
    patterns = [_imports(module) for module in sorted(modules)]
    for folder in FOLDERS:
        found = [
            path
            for path in sorted((TESTS / folder).rglob("test_*.py"))
            if any(pattern.search(path.read_text()) for pattern in patterns)
        ]
        if found:
            yield from found[:MAX_FILES]
            return


def _imports(module: str) -> re.Pattern[str]:
    package, _, name = module.rpartition(".")
    return re.compile(
        rf"^(?:from {re.escape(module)} import|from {re.escape(package)} import .*\b{name}\b)", re.MULTILINE
    )

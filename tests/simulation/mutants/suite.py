"""Runs the tests of the suite that concern a mutant, with the mutant in the services, to see whether they find it too.

As a plugin of pytest (`-p tests.simulation.mutants.suite`) it puts the mutant of the environment into the testing process. Services
that a test starts as processes of their own get it while their interpreters start.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.simulation.mutants import MUTANTS

MUTANT = "SIMULATION_MUTANT"
ROOT = Path(__file__).parents[3]
TESTS = ROOT / "tests"
FOLDERS = ("unit", "mesh", "faults", "contract")
"""Folders of the tests that are tried, the fastest first."""
TIMEOUT_S = 300.0
"""Longest run of the tests for a mutant, seconds."""
TEST_TIMEOUT_S = 45
"""Longest run of a test, seconds: with a mutant, what a test waits for may never come."""
TEARDOWN_S = 30.0
"""Time in which an interrupted run ends the processes that it has started, seconds."""
AT_START = """
import sys
if any(name.startswith(("services.", "tests.support.common.preloader")) for name in sys.orig_argv):
    from tests.simulation.mutants import suite
    suite.put_mutant()
    sys.modules.pop("services.dispatch.__main__")
"""
"""Program that Python runs while it starts (`sitecustomize`). It forgets the main module, which runs afterwards."""


class Verdict(NamedTuple):
    """What the suite says of a mutant."""

    text: str
    """The first failed test, or why none failed."""
    is_found: bool


class _Run(NamedTuple):
    """A run of pytest."""

    code: int | None
    """Exit code; None if the time was over."""
    output: str

    @property
    def failed(self) -> str:
        """Name of the first failed test; empty if none failed."""
        found = re.search(r"^(?:FAILED|ERROR) (\S+?\.py(?:::.+?)?)(?: - .*)?$", self.output, re.MULTILINE)
        return found[1] if found else ""

    @property
    def passed(self) -> int:
        """Number of tests that passed."""
        return len(re.findall(r"^\S+ PASSED", self.output, re.MULTILINE))


def put_mutant() -> None:
    """Puts the mutant of the environment into this process."""
    if name := os.environ.get(MUTANT):
        MUTANTS[name]()


pytest_configure = put_mutant


def verdict(mutant: str) -> Verdict:
    """Runs the tests that concern a mutant until one fails."""
    return verdict_of(mutant, list(files_of(_modules(mutant))))


def verdict_of(mutant: str, files: Sequence[Path]) -> Verdict:
    """Runs the tests of files with a mutant until one fails. A test that also fails without the mutant is left out."""
    if not files:
        return Verdict("no test concerns the modules", False)
    until = time.monotonic() + TIMEOUT_S
    left_out: list[str] = []
    while True:
        run = _pytest([*map(str, files), *(f"--deselect={test}" for test in left_out)], mutant, until)
        failed = run.failed
        if failed and not _pytest([failed], "", time.monotonic() + TIMEOUT_S).code:
            return Verdict(f"`{failed.removeprefix('tests/')}`", True)
        if failed and failed not in left_out:
            left_out.append(failed)
        elif run.code is None:
            return Verdict(f"no failure in {TIMEOUT_S:.0f} s: {run.passed} tests of {len(files)} files pass", False)
        elif run.code:
            raise RuntimeError(f"{mutant}: pytest ended with {run.code}: {run.output[-4_000:]}")
        else:
            return Verdict(f"{run.passed} tests of {len(files)} files pass", False)


def _pytest(arguments: Sequence[str], mutant: str, until: float) -> _Run:
    """Runs tests with a mutant, or without any if its name is empty, until the first failure or this time of the monotonic clock."""
    options = ["-x", "-v", "-p", "tests.simulation.mutants.suite", "-p", "no:cacheprovider"]
    limits = ["--hypothesis-profile=quick", f"--timeout={TEST_TIMEOUT_S}"]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        (Path(folder) / "sitecustomize.py").write_text(AT_START)
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *limits, *arguments],
            cwd=ROOT,
            # Mutants import gRPC before a service can set this.
            env={
                **os.environ,
                MUTANT: mutant,
                "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
                "GRPC_ENABLE_FORK_SUPPORT": "false",
            },
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        code = _code(process, until)
        output.seek(0)
        return _Run(code, output.read())


def _code(process: subprocess.Popen[bytes], until: float) -> int | None:
    """Waits for the end of a process until this time of the monotonic clock, then ends it with its children and returns None."""
    try:
        return process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(TEARDOWN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return None


def _modules(mutant: str) -> set[str]:
    """Modules in which a mutant replaces something. Asked of another process, because a mutant stays."""
    code = f"from tests.simulation.mutants import MUTANTS, replacing; MUTANTS[{mutant!r}](); print(*replacing.replaced)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def files_of(modules: Iterable[str]) -> Iterator[Path]:
    """Test files that concern modules, the nearest first: those that import them, those with helpers that do, and those whose
    folders and names have words of the modules' names. Of equally near files, those of the fastest folder come first."""
    nearness: dict[Path, int] = {}
    for module in modules:
        helpers = _helpers(module)
        for folder in FOLDERS:
            for path in sorted((TESTS / folder).rglob("test_*.py")):
                near = len(_words(module) & _words(".".join(path.relative_to(TESTS / folder).with_suffix("").parts)))
                near += 3 * _has_import(path, {module}) or 2 * _has_import(path, helpers)
                nearness[path] = nearness.get(path, 0) + near
    yield from sorted(
        (path for path, near in nearness.items() if near),
        key=lambda path: (-nearness[path], FOLDERS.index(path.relative_to(TESTS).parts[0]), path),
    )


def _helpers(module: str) -> set[str]:
    """Modules of `tests/support` that import a module, or import another helper that does."""
    supports = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (TESTS / "support").rglob("*.py")
    }
    found: set[str] = set()
    while more := {
        name for path, name in supports.items() if name not in found and _has_import(path, {module, *found})
    }:
        found |= more
    return found


def _words(name: str) -> set[str]:
    return set(re.split(r"[._]", name.lower())) - {"services", "test", "of", "the", "and", "a"}


def _has_import(path: Path, modules: Iterable[str]) -> bool:
    return any(_imports(module).search(_text(path)) for module in modules)


@cache
def _text(path: Path) -> str:
    return path.read_text()


@cache
def _imports(module: str) -> re.Pattern[str]:
    package, _, name = module.rpartition(".")
    return re.compile(
        rf"^(?:from {re.escape(module)} import|from {re.escape(package)} import .*\b{name}\b)", re.MULTILINE
    )

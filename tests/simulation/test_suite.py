"""The search for the tests that find a defect."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.mutants import suite

MUTANT = "a_report_counts_twice"
ALWAYS = """
def test_fails_always():
    assert False
"""
HERE = """
from services.geofence.domain.kinematics.track import Track

def test_fails_with_the_defect():
    assert Track.held.__qualname__ == "Track.held"
"""
IN_A_SERVICE = """
import subprocess, sys

PROGRAM = "from services.geofence.domain.kinematics.track import Track; print(Track.held.__qualname__)"

def test_fails_with_the_defect_in_a_service():
    process = (sys.executable, "-c", PROGRAM, "services.geofence")
    assert subprocess.run(process, capture_output=True, text=True, check=True).stdout == "Track.held\\n"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for test files, within the project: pytest names tests outside of it in another way."""
    build = suite.ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as made:
        (Path(made) / "conftest.py").write_text("import tests.conftest\n")
        yield Path(made)


@pytest.mark.parametrize(
    ("texts", "is_found", "said"),
    [
        ((ALWAYS, HERE), True, "test_1.py::test_fails_with_the_defect`"),
        ((IN_A_SERVICE,), True, "test_0.py::test_fails_with_the_defect_in_a_service`"),
        ((ALWAYS, "def test_of_another_thing():\n    pass\n"), False, "1 tests of 2 files pass"),
        ((), False, "no test concerns the modules"),
    ],
)
def test_a_failure_counts_that_the_defect_alone_causes(
    texts: tuple[str, ...], is_found: bool, said: str, folder: Path
) -> None:
    files = [folder / f"test_{number}.py" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    found = suite.verdict_of(MUTANT, files)
    assert (found.is_found, found.text[-len(said) :]) == (is_found, said)


def test_a_run_without_a_failure_ends_in_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "TIMEOUT_S", 10.0)
    file = folder / "test_without_end.py"
    file.write_text("import threading\n\ndef test_waits():\n    threading.Event().wait()\n")
    found = suite.verdict_of(MUTANT, [file])
    assert not found.is_found and found.text.startswith("no failure in 10 s: 0 tests of 1 files pass")


def test_the_nearest_tests_come_first() -> None:
    def names(module: str) -> list[str]:
        return [str(path.relative_to(suite.TESTS)) for path in suite.files_of({module})]

    assert names("services.geofence.publisher")[0] == "unit/geofence/test_publisher.py"
    of_warnings = names("services.dispatch.warning.channels")
    farther = of_warnings.index("unit/dispatch/leg/test_choosing.py")
    for nearer in ("test_channels.py", "test_failures.py"):
        assert of_warnings.index(f"mesh/dispatch/warning/{nearer}") < farther
    assert not [name for name in of_warnings if name.startswith(("unit/registry", "mesh/registry"))]

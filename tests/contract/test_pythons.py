"""What is installed and run is the same on each Python that the project names."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = sorted(
    re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE),
    key=lambda version: int(version.partition(".")[2]),
)
NO_TEST_TWICE = ("--last-failed", "--lf", "--reruns", "flaky")


def test_the_named_pythons_go_from_the_oldest_that_runs_without_a_gap() -> None:
    oldest = int(PROJECT["requires-python"].removeprefix(">=3."))
    assert [f"3.{minor}" for minor in range(oldest, oldest + len(PYTHONS))] == PYTHONS
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in PYTHONS


@pytest.mark.parametrize("python", PYTHONS)
def test_each_locked_package_has_a_wheel_for_each_named_python(python: str, tmp_path: Path) -> None:
    # Without one, `make setup` builds from source, which needs compilers and libraries that a fresh machine hasn't.
    command = (
        *(str(Path(sysconfig.get_path("scripts")) / "uv"), "pip", "install", "--dry-run", "--quiet"),
        *("--python-version", python, "--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:"),
        *("--require-hashes", "--target", str(tmp_path), "-r", str(ROOT / "requirements.lock")),
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the package registry doesn't answer")
    assert "no usable wheels" not in " ".join(done.stderr.split()), done.stderr
    if done.returncode != 0:
        pytest.skip(f"the package registry can't be asked: {done.stderr}")


def test_no_test_is_run_a_second_time() -> None:
    for file in ("Makefile", ".ci/run", "pyproject.toml"):
        text = (ROOT / file).read_text()
        assert not [word for word in NO_TEST_TWICE if word in text], file

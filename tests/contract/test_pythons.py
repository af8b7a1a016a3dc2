"""Supported Python versions: they have no gap, each has the same locked packages, and no test is run a second time."""

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
PURE_SOURCES = ("http-ece",)
"""Packages without a wheel that are pure Python, so that building them needs nothing but the registry."""
NO_TEST_TWICE = ("--last-failed", "--lf", "--reruns", "flaky")


def test_the_supported_pythons_have_no_gap() -> None:
    oldest = int(PROJECT["requires-python"].removeprefix(">=3."))
    assert [f"3.{minor}" for minor in range(oldest, oldest + len(PYTHONS))] == PYTHONS
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in PYTHONS


@pytest.mark.parametrize("python", PYTHONS)
def test_each_locked_package_has_a_wheel_for_each_supported_python(python: str, tmp_path: Path) -> None:
    # Without a wheel, `make setup` builds from source, which needs compilers and libraries that a fresh machine lacks.
    command = (
        *(str(Path(sysconfig.get_path("scripts")) / "uv"), "pip", "install", "--dry-run", "--quiet"),
        *("--python-version", python, "--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:"),
        *(part for name in PURE_SOURCES for part in ("--no-binary", name)),
        *("--require-hashes", "--target", str(tmp_path), "-r", str(ROOT / "requirements.lock")),
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the package registry doesn't answer")
    assert "no usable wheels" not in " ".join(done.stderr.split()), done.stderr
    if done.returncode != 0:
        pytest.skip(f"the package registry can't be queried: {done.stderr}")


def test_no_test_is_run_a_second_time() -> None:
    for file in ("Makefile", ".ci/run", "pyproject.toml"):
        text = (ROOT / file).read_text()
        assert not [word for word in NO_TEST_TWICE if word in text], file

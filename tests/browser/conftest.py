"""Chromium and the packages of drive.mjs, once for all tests, and a mesh for the tests that need no settings of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.browser.driver import CHROMIUM, HERE
from tests.support.common.mesh import RunningMesh, running_mesh


@pytest.fixture(scope="session")
def packages() -> None:
    """Installs what drive.mjs needs."""
    assert CHROMIUM, "needs Chromium"
    subprocess.run(("npm", "ci", "--silent", "--no-audit", "--no-fund"), cwd=HERE, check=True, timeout=120)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, packages: None) -> Iterator[RunningMesh]:
    """A mesh for the tests of one file."""
    with running_mesh(tmp_path_factory.mktemp("browser") / "mesh") as running:
        yield running

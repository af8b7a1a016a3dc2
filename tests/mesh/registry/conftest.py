"""Fixtures of the registry's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import ENGINES
from tests.support.registry.registry import RegistryMesh, running_registry


@pytest.fixture(scope="module", params=ENGINES)
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryMesh]:
    """One registry per database engine for the tests of a file. Each test uses different ids and numbers."""
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgres" else ""
    with running_registry(tmp_path_factory.mktemp("registry"), 1, url) as running:
        yield running

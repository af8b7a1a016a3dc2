"""Fixtures for tests against running services."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ingest.ingest import IngestMesh, ingest_on_its_own_server


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IngestMesh]:
    """An ingest process that the tests of a module share. Each test uses its own devices or report ids."""
    with ingest_on_its_own_server(tmp_path_factory.mktemp("ingest")) as running:
        yield running
        assert "Traceback" not in running.service.log() and "never retrieved" not in running.service.log()

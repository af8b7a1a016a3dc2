"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.common import bus as buses
from services.common import streams
from services.common.bus import Bus
from services.common.clock import MeshClock
from tests.support.nats import TestServer, running_server

STREAM_BYTES = 64 << 20


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[TestServer]:
    """A real nats-server with JetStream on disk."""
    with running_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def bus(nats: TestServer) -> AsyncIterator[Bus]:
    """A connection to a server that has the streams of the flow table, one partition."""
    async with buses.connect(nats.url, "test") as connection:
        await streams.create(connection, 1, MeshClock(), max_bytes=STREAM_BYTES)
        yield connection

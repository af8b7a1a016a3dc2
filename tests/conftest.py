"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

# As in the geofence service, but gRPC reads it at its first import, which here may be another test: with handlers of forks the child
# that writes a checkpoint may be aborted.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import streams
from services.common.messaging.bus import Bus
from tests.support.common import preloaded
from tests.support.common.nats import TestServer, running_server
from tests.support.common.postgres import PostgresServer, running_postgres

STREAM_BYTES = 64 << 20
ENGINES = ("sqlite", "postgres")

preloaded.turn_on()

# How long an example takes depends on what else the machine does. In CI the examples are the same in each run: a change is judged
# by itself, and new examples are tried where somebody can look at what they find.
hypothesis.settings.register_profile(
    "tandem",
    parent=hypothesis.settings(),
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tandem")


def pytest_collection_finish() -> None:
    """What three thousand tests are made of is there to stay: else each full collection of garbage in a test goes through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL for all tests of the run."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=ENGINES)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """A database that isn't made yet: a test that takes this runs on both engines."""
    if request.param == "sqlite":
        return tmp_path / "registry.sqlite3"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


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

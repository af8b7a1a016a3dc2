"""Fixtures for all tests: databases on both engines, a nats-server, and a connection to it."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

# The geofence service sets this too, because gRPC's fork handlers may abort the child that writes a checkpoint. gRPC reads the
# variable at its first import, which another test may do, so it is set here.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import streams
from services.common.messaging.bus import Bus
from tests.support.common import preloaded
from tests.support.common.nats import STREAM_BYTES, TestServer, running_server
from tests.support.common.postgres import PostgresServer, running_postgres

ENGINES = ("sqlite", "postgres")

preloaded.turn_on()

# There is no deadline, because the duration of an example depends on the load of the machine. In CI the examples are the same in
# each run, so that only the change under test can make a run fail. New examples are tried on developers' machines.
hypothesis.settings.register_profile(
    "tandem",
    parent=hypothesis.settings(),
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("quick", parent=hypothesis.settings.get_profile("tandem"), max_examples=10)
hypothesis.settings.load_profile("tandem")


def pytest_collection_finish() -> None:
    """Freezes the objects of the collected tests. Otherwise each full garbage collection in a test would visit them all."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_list_of_meshes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the meshes of this run out of the user's list, and the meshes of other runs out of the messages of this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL server, shared by all tests of the run."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=ENGINES)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Path or URL of a database that doesn't exist yet. A test with this fixture runs on both engines."""
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
    """A connection to a nats-server that has the streams of the flow table, with one partition."""
    async with buses.connect(nats.url, "test") as connection:
        await streams.create(connection, 1, MeshClock(), max_bytes=STREAM_BYTES)
        yield connection

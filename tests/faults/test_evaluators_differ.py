"""Two evaluators that differ: the digests reveal a wrong state, and an evaluator of an older version stops without harm."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from services.common.messaging import flow, streams
from services.common.service import CANNOT_RUN
from services.geofence import settings
from services.geofence.domain import codec, entries
from services.geofence.domain.entries import FOLD_VERSION
from services.geofence.store import CheckpointStore
from tandem.common.v1 import alert_pb2
from tests.support.common.preloaded import ROOT
from tests.support.geofence.evaluator_mesh import (
    CHECKPOINT_EVERY,
    PATIENCE_S,
    SECRET,
    EvaluatorMesh,
    connected,
    offline,
    stored_alerts,
    two_evaluators,
    under_load,
)

NEWER = """
import runpy
from services.geofence.domain import entries
entries.FOLD_VERSION += 1
runpy.run_module("services.geofence", run_name="__main__")
"""
"""Program of an evaluator whose fold version is one higher; the rest is the same."""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[EvaluatorMesh]:
    with two_evaluators(tmp_path) as running:
        yield running


def without_version(alert: bytes) -> alert_pb2.Alert:
    """An alert without its fold version."""
    message = alert_pb2.Alert.FromString(alert)
    message.fold_version = 0
    return message


async def counted(mesh: EvaluatorMesh, replica: int) -> float:
    """Number of differences from the other evaluator, by an evaluator's metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{mesh.metrics[replica]}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("tandem_evaluators_differ_total{"))


@pytest.mark.timeout(120)
async def test_a_wrong_state_with_a_valid_checkpoint_raises_an_alarm(mesh: EvaluatorMesh) -> None:
    async with connected(mesh) as bus, under_load(bus) as load:
        await load.more(4 * CHECKPOINT_EVERY)
        store = CheckpointStore(mesh.folder / "geofence-1", settings.state_keys_of_secret(SECRET))
        async with asyncio.timeout(PATIENCE_S):
            while not store.found(0):  # the evaluator may be behind the load
                await load.more(10)
        mesh.evaluators[1].kill()
        assert not mesh.logged(0, "evaluators_differ") and not mesh.logged(1, "evaluators_differ")
        newest = store.found(0)[0]
        state = store.read(newest, (await streams.read_log_meta(bus)).log_id)
        assert state
        for path in list(store.folder.glob("checkpoint-*.json")):
            path.unlink()
        state.tracks.popitem()  # the state lacks a device's track, but its checkpoint has a valid hash
        store.save(0, newest.footing, codec.encode(state))
        mesh.evaluators[1].start()
        await mesh.evaluators[1].ready(mesh.addresses[1])
        async with asyncio.timeout(PATIENCE_S):
            while not mesh.logged(0, "evaluators_differ") + mesh.logged(1, "evaluators_differ"):
                await load.more(10)

        def levels() -> list[object]:
            return [record["level"] for replica in range(2) for record in mesh.logged(replica, "evaluators_differ")]

        assert set(levels()) == {"critical"}
        async with asyncio.timeout(PATIENCE_S):  # more differences may be reported during the comparison
            while await counted(mesh, 0) + await counted(mesh, 1) != len(levels()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@pytest.mark.timeout(120)
async def test_the_older_of_two_versions_stops_and_the_alerts_are_those_of_the_newer(
    mesh: EvaluatorMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh.evaluators[1].kill()
    async with connected(mesh, replicas=(0,)) as bus, under_load(bus) as load:
        await load.more(2 * CHECKPOINT_EVERY)
        await mesh.applied(CHECKPOINT_EVERY, replicas=(0,))
        newer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", NEWER), cwd=ROOT, env=os.environ | mesh.env(1), stderr=asyncio.subprocess.DEVNULL
        )
        try:
            assert await asyncio.to_thread(mesh.evaluators[0].exit_code) == CANNOT_RUN
            assert (
                f"the log demands fold version {FOLD_VERSION + 1}, this is {FOLD_VERSION}" in mesh.evaluators[0].log()
            )
            await load.more(CHECKPOINT_EVERY)
            load.stopping = True
            last = (await bus.bounds_of(flow.log_stream(0))).last
            await mesh.applied(last, replicas=(1,))
            monkeypatch.setattr(entries, "FOLD_VERSION", FOLD_VERSION + 1)
            expected, _ = await offline(bus, last)
            stored = await stored_alerts(bus, len(expected), last)
        finally:
            newer.kill()
            await newer.wait()
    # Before, the older evaluator decided alone. Its alerts are the same except for the fold version.
    assert [without_version(alert) for alert in stored] == [without_version(alert) for alert in expected]

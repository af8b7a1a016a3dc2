"""I1 and I2 when the log goes back under running evaluators: a power cut tears its tail, or an older copy of its store is restored.

Acknowledged entries of the lost part stay lost. Both evaluators decide each entry that the log holds, even where another entry had its
sequence before.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.geofence import settings
from tandem.common.v1 import alert_pb2, log_pb2
from tests.support import torn
from tests.support.geofence.evaluator_mesh import (
    PATIENCE_S,
    SECRET,
    EvaluatorMesh,
    Load,
    connected,
    offline,
    two_evaluators,
    under_load,
)

LOG = flow.log_stream(0)
ENTRIES_BEFORE = (60, 200)
ENTRIES_AFTER = 40
POLL_S = 0.1


class Run(NamedTuple):
    """Result of one run with a torn tail."""

    variant: str
    seed: int
    lost: int
    """Acknowledged entries that the log lost."""
    reused: int
    """Sequences of lost entries that other entries now have."""
    alerts: int
    """Alerts of the offline fold."""
    of_lost: int
    """Published alerts of entries that are lost now."""
    caught_up_s: float
    """Time from the server's start until both evaluators decided all entries that the log held then, seconds."""


async def overwritten(mesh: EvaluatorMesh, rng: random.Random, load: Load) -> None:
    """Overwrites the last bytes of the log's newest block."""
    mesh.nats.kill()
    torn.overwrite_tail(mesh.folder / "nats", LOG, rng)


async def truncated(mesh: EvaluatorMesh, rng: random.Random, load: Load) -> None:
    """Cuts off the last bytes of the log's newest block."""
    mesh.nats.kill()
    torn.truncate_tail(mesh.folder / "nats", LOG, rng)


async def restored_backup(mesh: EvaluatorMesh, rng: random.Random, load: Load) -> None:
    """Restores a copy of the log that lacks its last 10 to 60 entries."""
    store, copy = mesh.folder / "nats", mesh.folder / "copy"
    mesh.nats.kill()
    torn.copy_of(store, LOG, copy)
    mesh.nats.start()
    await load.more(rng.randint(10, 60))
    mesh.nats.kill()
    torn.put_back(store, LOG, copy)


VARIANTS = {"overwritten": overwritten, "truncated": truncated, "older": restored_backup}


async def run(folder: Path, variant: str, seed: int) -> Run:
    """Tears the log's tail under load, and waits until both evaluators have decided all entries of the log."""
    rng = random.Random(f"{variant} {seed}")
    with two_evaluators(folder) as mesh:
        async with connected(mesh) as bus:
            async with under_load(bus) as load:
                await load.more(rng.randint(*ENTRIES_BEFORE))
                await VARIANTS[variant](mesh, rng, load)
                mesh.nats.start()
                began_s = time.monotonic()
                await load.more(1)
                end = (await bus.bounds_of(LOG)).last
                await decided(bus, end)
                caught_up_s = time.monotonic() - began_s
                await load.more(ENTRIES_AFTER)
                await checkpointed(mesh, load, after=end)
            last = (await bus.bounds_of(LOG)).last
            await mesh.applied(last)
            expected = await decided(bus, last)
            lost, reused = await compared(bus, load)
            await states_equal(mesh, bus, last)
            published = await alerts_of(bus, last)
        for replica in range(2):
            assert not mesh.logged(replica, "evaluators_differ")
            assert "Traceback" not in mesh.evaluators[replica].log()
    extra_alerts = [alert for alert in published if alert.SerializeToString() not in set(expected)]
    cut = min(lost, default=last + 1)
    assert [alert.sequence for alert in extra_alerts if alert.sequence < cut] == [], (
        "alerts of entries that the log never held"
    )
    return Run(variant, seed, len(lost), len(reused), len(expected), len(extra_alerts), caught_up_s)


async def decided(bus: Bus, last: int) -> list[bytes]:
    """Waits until ALERTS holds, byte for byte, all alerts of an offline fold of the stored log up to an entry."""
    expected, _ = await offline(bus, last)
    began_s = time.monotonic()
    while True:
        published = {alert.SerializeToString() for alert in await alerts_of(bus, last)}
        missing = [alert for alert in expected if alert not in published]
        if not missing:
            return expected
        if time.monotonic() - began_s > PATIENCE_S / 2:
            sequences = [alert_pb2.Alert.FromString(alert).sequence for alert in missing]
            raise AssertionError(f"entries {sequences} are in the log, but their alerts aren't published")
        await asyncio.sleep(POLL_S)


async def alerts_of(bus: Bus, last: int) -> list[alert_pb2.Alert]:
    """All stored alerts of entries up to `last`, in the order of the stream."""
    end = (await bus.bounds_of(flow.ALERTS.name)).last
    if not end:
        return []
    stored = [
        alert_pb2.Alert.FromString(message.data) async for message in pull.between(bus, flow.ALERTS.name, 1, last=end)
    ]
    return [alert for alert in stored if alert.sequence <= last]


async def compared(bus: Bus, load: Load) -> tuple[set[int], set[int]]:
    """Sequences of acknowledged entries that are lost, and those of them that other entries now have."""
    end = (await bus.bounds_of(LOG)).last
    stored = {message.sequence: message.data async for message in pull.between(bus, LOG, 1, last=end)}
    lost = {sequence for sequence, data in load.acknowledged if stored.get(sequence) != data}
    return lost, lost & stored.keys()


async def checkpointed(mesh: EvaluatorMesh, load: Load, after: int) -> None:
    """Returns once each evaluator has a checkpoint after an entry."""
    async with asyncio.timeout(PATIENCE_S):
        while not all(max(checkpoints(mesh, replica).values(), default=0) > after for replica in range(2)):
            await load.more(1)


def checkpoints(mesh: EvaluatorMesh, replica: int) -> dict[Path, int]:
    """Checkpoint files of an evaluator, and the sequence of each."""
    matches = {
        path: re.search(r"-s(\d+)-", path.name) for path in mesh.folder.glob(f"geofence-{replica}/checkpoint-*.json")
    }
    return {path: int(match[1]) for path, match in matches.items() if match}


async def states_equal(mesh: EvaluatorMesh, bus: Bus, last: int) -> None:
    """Asserts that both evaluators have the states of an offline fold byte for byte, by their checkpoints up to one after `last`."""
    tick = log_pb2.LogEntry(tick=log_pb2.Tick()).SerializeToString()
    async with asyncio.timeout(PATIENCE_S):
        while not all(max(checkpoints(mesh, replica).values(), default=0) > last for replica in range(2)):
            await bus.publish_until_stored(flow.log_subject(0, "tick"), tick)
    kept = checkpoints(mesh, 0) | checkpoints(mesh, 1)
    _, states = await offline(bus, max(kept.values()), set(kept.values()))
    for path, sequence in kept.items():
        assert settings.state_keys_of_secret(SECRET).checkpoint(states[sequence]) in path.name, (
            "the checkpoint isn't the state of the log"
        )


def table(runs: list[Run]) -> str:
    """Readable table of the runs."""
    head = f"{'variant':<12}{'seed':>5}{'lost':>6}{'reused':>8}{'alerts':>8}{'of lost':>9}{'all decided after':>19}"
    rows = [
        f"{run.variant:<12}{run.seed:>5}{run.lost:>6}{run.reused:>8}{run.alerts:>8}{run.of_lost:>9}{run.caught_up_s:>17.1f} s"
        for run in runs
    ]
    return "\n".join(["", head, *rows])


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("variant", "seed"), [("overwritten", 1), ("truncated", 2), ("older", 3)])
async def test_all_stored_entries_are_decided_after_the_log_went_back(tmp_path: Path, variant: str, seed: int) -> None:
    print(table([await run(tmp_path, variant, seed)]))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("variant", "count"), [("overwritten", 20), ("truncated", 5), ("older", 5)])
async def test_torn_tails(tmp_path: Path, variant: str, count: int) -> None:
    runs = [await run(tmp_path / str(seed), variant, seed) for seed in range(count)]
    print(table(runs))
    assert any(run.reused for run in runs), "in some runs another entry has the sequence of a lost one"

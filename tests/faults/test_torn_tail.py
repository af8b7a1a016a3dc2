"""I1 and I2 where the log goes back under live evaluators: a power cut tears its tail, or an older copy of its store is put in place.

Acknowledged entries of the lost part are lost. Each entry that the log holds is decided by both evaluators, whatever stood at its
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
from services.common.rpc import server
from services.geofence import state_keys
from services.geofence.domain import codec
from tandem.common.v1 import alert_pb2
from tandem.geofence.v1 import geofence_pb2, geofence_pb2_grpc
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
    """What came of one torn tail."""

    variant: str
    seed: int
    lost: int
    """Acknowledged entries that the log doesn't hold any more."""
    reused: int
    """Sequences of lost entries that other entries have now."""
    alerts: int
    """Alerts of the offline fold."""
    of_lost: int
    """Alerts that entries decided which are lost now; they stay published."""
    caught_up_s: float
    """From the server's start until all that the log held then was decided by both evaluators."""


async def overwritten(mesh: EvaluatorMesh, drawn: random.Random, load: Load) -> None:
    """The last bytes of the newest block are others."""
    mesh.nats.kill()
    torn.overwrite_tail(mesh.folder / "nats", LOG, drawn)


async def truncated(mesh: EvaluatorMesh, drawn: random.Random, load: Load) -> None:
    """The last bytes of the newest block are missing."""
    mesh.nats.kill()
    torn.truncate_tail(mesh.folder / "nats", LOG, drawn)


async def older(mesh: EvaluatorMesh, drawn: random.Random, load: Load) -> None:
    """A copy of the stream that was made some dozens of entries ago is put back."""
    store, copy = mesh.folder / "nats", mesh.folder / "copy"
    mesh.nats.kill()
    torn.copy_of(store, LOG, copy)
    mesh.nats.start()
    await load.more(drawn.randint(10, 60))
    mesh.nats.kill()
    torn.put_back(store, LOG, copy)


VARIANTS = {"overwritten": overwritten, "truncated": truncated, "older": older}


async def run(folder: Path, variant: str, seed: int) -> Run:
    """Tears the log's tail under load, and waits until both evaluators have decided what the log holds."""
    drawn = random.Random(f"{variant} {seed}")
    with two_evaluators(folder) as mesh:
        async with connected(mesh) as bus:
            async with under_load(bus) as load:
                await load.more(drawn.randint(*ENTRIES_BEFORE))
                await VARIANTS[variant](mesh, drawn, load)
                mesh.nats.start()
                began_s = time.monotonic()
                await load.more(1)
                end = (await bus.bounds_of(LOG)).last
                await decided(bus, end)
                caught_up_s = time.monotonic() - began_s
                await load.more(ENTRIES_AFTER)
                await checkpointed(mesh, load, after=end)
            last = (await bus.bounds_of(LOG)).last
            await mesh.applied(last, "case-0")
            expected = await decided(bus, last)
            lost, reused = await compared(bus, load)
            await states_equal(mesh, bus, last)
            found = await alerts_of(bus, last)
        for replica in range(2):
            assert not mesh.logged(replica, "evaluators_differ")
            assert "Traceback" not in mesh.evaluators[replica].log()
    extra = [alert for alert in found if alert.SerializeToString() not in set(expected)]
    cut = min(lost, default=last + 1)
    assert [alert.sequence for alert in extra if alert.sequence < cut] == [], "alerts of nothing that the log ever held"
    return Run(variant, seed, len(lost), len(reused), len(expected), len(extra), caught_up_s)


async def decided(bus: Bus, last: int) -> list[bytes]:
    """Waits until ALERTS holds, byte for byte, all that an offline fold of the stored log decides up to an entry."""
    expected, _ = await offline(bus, last)
    began_s = time.monotonic()
    while True:
        found = {alert.SerializeToString() for alert in await alerts_of(bus, last)}
        missing = [alert for alert in expected if alert not in found]
        if not missing:
            return expected
        if time.monotonic() - began_s > PATIENCE_S / 2:
            sequences = [alert_pb2.Alert.FromString(alert).sequence for alert in missing]
            raise AssertionError(f"in the log, and never decided: entries {sequences}")
        await asyncio.sleep(POLL_S)


async def alerts_of(bus: Bus, last: int) -> list[alert_pb2.Alert]:
    """All alerts of entries up to `last`, as they are stored."""
    end = (await bus.bounds_of(flow.ALERTS.name)).last
    if not end:
        return []
    every = [alert_pb2.Alert.FromString(one.data) async for one in pull.between(bus, flow.ALERTS.name, 1, end)]
    return [alert for alert in every if alert.sequence <= last]


async def compared(bus: Bus, load: Load) -> tuple[set[int], set[int]]:
    """Sequences of acknowledged entries that are lost, and of these those that are used again."""
    end = (await bus.bounds_of(LOG)).last
    stored = {one.sequence: one.data async for one in pull.between(bus, LOG, 1, end)}
    lost = {sequence for sequence, data in load.acknowledged if stored.get(sequence) != data}
    return lost, lost & stored.keys()


async def checkpointed(mesh: EvaluatorMesh, load: Load, after: int) -> None:
    """Returns once each evaluator has a checkpoint of a state behind an entry."""
    async with asyncio.timeout(PATIENCE_S):
        while not all(max(checkpoints(mesh, replica).values(), default=0) > after for replica in range(2)):
            await load.more(1)


def checkpoints(mesh: EvaluatorMesh, replica: int) -> dict[Path, int]:
    """Files of an evaluator that count, and the sequence of each."""
    found = {
        path: re.search(r"-s(\d+)-", path.name) for path in mesh.folder.glob(f"geofence-{replica}/checkpoint-*.json")
    }
    return {path: int(match[1]) for path, match in found.items() if match}


async def states_equal(mesh: EvaluatorMesh, bus: Bus, last: int) -> None:
    """Each evaluator's checkpoints are, to the byte, the state of an offline fold, and of each case it says now what that says."""
    kept = checkpoints(mesh, 0) | checkpoints(mesh, 1)
    _, states = await offline(bus, last, {last, *kept.values()})
    for path, sequence in kept.items():
        # Ticks go on, and so do checkpoints.
        assert sequence > last or state_keys.of_secret(SECRET).checkpoint(states[sequence]) in path.name, (
            "a state that isn't that of the log"
        )
    identity = server.bearer("spiffe://npa/desk/seoul", SECRET)
    for address in mesh.addresses:
        async with server.channel(address) as channel:
            stub = geofence_pb2_grpc.GeofenceServiceStub(channel)
            for case_id, case_state in codec.decode(states[last]).cases.items():
                request = geofence_pb2.GetCaseRequest(case_id=case_id, min_sequence=last)
                answer = await stub.GetCase(request, metadata=identity)
                assert (answer.case_id, answer.episode_id) == (case_id, case_state.episode_id)


def table(runs: list[Run]) -> str:
    """The runs for a person."""
    head = f"{'variant':<12}{'seed':>5}{'lost':>6}{'reused':>8}{'alerts':>8}{'of lost':>9}{'all decided after':>19}"
    rows = [
        f"{one.variant:<12}{one.seed:>5}{one.lost:>6}{one.reused:>8}{one.alerts:>8}{one.of_lost:>9}{one.caught_up_s:>17.1f} s"
        for one in runs
    ]
    return "\n".join(["", head, *rows])


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("variant", "seed"), [("overwritten", 1), ("truncated", 2), ("older", 3)])
async def test_what_the_log_holds_is_decided_after_it_went_back(tmp_path: Path, variant: str, seed: int) -> None:
    print(table([await run(tmp_path, variant, seed)]))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("variant", "count"), [("overwritten", 20), ("truncated", 5), ("older", 5)])
async def test_torn_tails(tmp_path: Path, variant: str, count: int) -> None:
    runs = [await run(tmp_path / str(seed), variant, seed) for seed in range(count)]
    print(table(runs))
    assert any(one.reused for one in runs), "in some runs another entry took the lost one's sequence"

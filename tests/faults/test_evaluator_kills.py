"""I2 and I5 under repeated SIGKILL of one or both evaluators, with and without nats-server, while reports arrive.

Alerts equal an offline fold of the stored log, byte for byte, and each checkpoint equals a full replay up to its sequence.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from services.common.messaging import flow
from tests.support.geofence.evaluator_mesh import (
    EvaluatorMesh,
    connected,
    offline,
    stored_alerts,
    two_evaluators,
    under_load,
)

ENTRIES_BETWEEN = (1, 80)
"""Range of the number of entries between two kills."""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[EvaluatorMesh]:
    with two_evaluators(tmp_path) as running:
        yield running


def checkpoints(mesh: EvaluatorMesh) -> list[tuple[int, bytes]]:
    """Sequence and content of the checkpoint files of both evaluators. They are read at once: a running evaluator deletes old ones."""
    found = []
    for path in mesh.folder.glob("geofence-*/checkpoint-*.json"):
        match = re.search(r"-s(\d+)-", path.name)
        with suppress(FileNotFoundError):  # deleted since it was listed
            if match:
                found.append((int(match[1]), path.read_bytes()))
    return found


async def survive_kills(mesh: EvaluatorMesh, each: int, seed: int) -> list[float]:
    """Kills each evaluator, both, and both with nats-server, `each` times; returns the alert delays after kills of one evaluator, s."""
    rng = random.Random(seed)
    victims = ["0", "1", "01", "01n"] * each
    rng.shuffle(victims)
    delays_s = []
    async with connected(mesh) as bus:
        async with under_load(bus) as load:
            await load.more(80)
            for victim in victims:
                await load.more(rng.randint(*ENTRIES_BETWEEN))
                dying = [mesh.evaluators[int(replica)] for replica in victim if replica != "n"]
                for evaluator in dying:
                    evaluator.kill()
                if "n" in victim:
                    mesh.nats.kill()
                    mesh.nats.start()
                if len(victim) == 1:
                    delays_s.append(await load.alert_delay_s())
                for evaluator in dying:
                    evaluator.start()
                # The next kill may hit an evaluator that replays, but each evaluator serves for some time.
                if len(victim) > 1:
                    await mesh.evaluators[0].ready(mesh.addresses[0])
                await mesh.evaluators[int(victim[0])].ready(mesh.addresses[int(victim[0])])
        last = (await bus.bounds_of(flow.log_stream(0))).last
        assert min(await mesh.applied(last)) >= last
        written = checkpoints(mesh)
        assert written
        expected, replayed = await offline(bus, last, [sequence for sequence, _ in written])
        assert await stored_alerts(bus, len(expected), last) == expected
        for sequence, content in written:
            assert content == replayed[sequence], "the recovered state equals full replay"
    for replica in range(2):
        started = [int(str(record["sequence"])) for record in mesh.logged(replica, "evaluator_started")]
        assert started == sorted(started) and started[-1], "entries that were applied before a checkpoint stay applied"
        assert not mesh.logged(replica, "evaluators_differ")
    print(f"after one of two had died, alerts took at most {1000 * max(delays_s):.0f} ms, of {len(delays_s)}")
    return delays_s


@pytest.mark.timeout(120)
async def test_kills_under_load(mesh: EvaluatorMesh) -> None:
    assert len(await survive_kills(mesh, each=1, seed=1)) == 2


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_100_kills_under_load(mesh: EvaluatorMesh) -> None:
    assert len(await survive_kills(mesh, each=25, seed=2)) == 50

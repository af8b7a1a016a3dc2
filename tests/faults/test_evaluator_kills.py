"""I2 and I5 under SIGKILL of evaluators, one or both, with and without nats-server, again and again, while reports come.

Alerts equal an offline fold of the stored log, byte for byte, and each checkpoint equals a full replay up to its sequence.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
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
"""From one kill to the next."""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[EvaluatorMesh]:
    with two_evaluators(tmp_path) as running:
        yield running


def checkpoints(mesh: EvaluatorMesh) -> dict[Path, int]:
    """Files of both evaluators that count, and the sequence of each."""
    found = {path: re.search(r"-s(\d+)-", path.name) for path in mesh.folder.glob("geofence-*/checkpoint-*.json")}
    return {path: int(match[1]) for path, match in found.items() if match}


async def killed_again_and_again(mesh: EvaluatorMesh, each: int, seed: int) -> list[float]:
    """Kills each evaluator, both, and both with nats-server so many times each; returns how long an alert took after one had died."""
    drawn = random.Random(seed)
    victims = ["0", "1", "01", "01n"] * each
    drawn.shuffle(victims)
    delays_s = []
    async with connected(mesh) as bus:
        async with under_load(bus) as load:
            await load.more(80)
            for victim in victims:
                await load.more(drawn.randint(*ENTRIES_BETWEEN))
                dying = [mesh.evaluators[int(one)] for one in victim if one != "n"]
                for one in dying:
                    one.kill()
                if "n" in victim:
                    mesh.nats.kill()
                    mesh.nats.start()
                if len(victim) == 1:
                    delays_s.append(await load.alert_delay_s())
                for one in dying:
                    one.start()
                # The next may die while this one replays, but each lives long enough to have a part in it.
                if len(victim) > 1:
                    await mesh.evaluators[0].ready(mesh.addresses[0])
                await mesh.evaluators[int(victim[0])].ready(mesh.addresses[int(victim[0])])
        last = (await bus.bounds_of(flow.log_stream(0))).last
        assert min(await mesh.applied(last, "case-0")) >= last
        kept = checkpoints(mesh)
        expected, replayed = await offline(bus, last, kept.values())
        assert await stored_alerts(bus, len(expected), last) == expected
        for path, sequence in kept.items():
            assert path.read_bytes() == replayed[sequence], "the recovered state equals full replay"
    for replica in range(2):
        begun = [int(str(one["sequence"])) for one in mesh.logged(replica, "evaluator_started")]
        assert begun == sorted(begun) and begun[-1], "what was applied before a checkpoint stays applied"
        assert not mesh.logged(replica, "evaluators_differ")
    print(f"after one of two had died, alerts took at most {1000 * max(delays_s):.0f} ms, of {len(delays_s)}")
    return delays_s


@pytest.mark.timeout(120)
async def test_kills_under_load(mesh: EvaluatorMesh) -> None:
    assert len(await killed_again_and_again(mesh, each=1, seed=1)) == 2


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_100_kills_under_load(mesh: EvaluatorMesh) -> None:
    assert len(await killed_again_and_again(mesh, each=25, seed=2)) == 50

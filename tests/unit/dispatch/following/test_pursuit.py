"""The command that ends a pursuit is tried while the tag may still report often, and no longer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from services.dispatch.following.pursuit import HOLDS_S, Pursuit, _PursuedWearer
from services.dispatch.metrics import FollowingMetrics
from tandem.ingest.v1 import ingest_pb2

WEARER = _PursuedWearer("incident-1", "wearer-1")


class SteppedClock:
    """A clock that a test steps."""

    rate = 1.0

    def __init__(self) -> None:
        self.ms = 1_000_000_000

    def now_ms(self) -> int:
        return self.ms


class Ingest:
    """Stands in for ingest: it accepts commands, or is away."""

    def __init__(self) -> None:
        self.away = False
        self.kinds: list[str | None] = []

    async def SendCommand(self, request: ingest_pb2.SendCommandRequest, **_: Any) -> None:
        self.kinds.append(request.instruction.WhichOneof("kind"))
        if self.away:
            metadata = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata)


@pytest.fixture
def pursuit() -> Pursuit:
    settings = SimpleNamespace(clock=SteppedClock())
    return Pursuit(cast(Any, None), cast(Any, settings), FollowingMetrics(CollectorRegistry()))


async def test_a_command_that_ends_a_pursuit_is_tried_until_the_interval_has_expired_by_itself(
    pursuit: Pursuit,
) -> None:
    ingest, clock = Ingest(), cast(Any, pursuit._clock)

    async def command() -> None:
        await pursuit._command_tag(cast(Any, ingest), (), WEARER)

    pursuit._pursued[WEARER.incident_id], pursuit._offered_ms[WEARER.incident_id] = WEARER, 1
    await command()
    assert ingest.kinds == ["report_every"]
    del pursuit._pursued[WEARER.incident_id]
    ingest.away = True
    clock.ms += 2 * HOLDS_S * 1000 - 1
    await command()
    assert ingest.kinds == ["report_every", "report_as_usual"]
    assert pursuit._due.pop_due(clock.ms + 60_000) == [WEARER], "it is tried once more"
    clock.ms += 1
    await command()
    assert len(ingest.kinds) == 2 and not pursuit._commanded
    assert pursuit._due.pop_due(clock.ms + 60_000) == []

"""Disclosures of other services reach the ledger in batches, after response work, and none is lost or doubled by a kill."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.common.clock import wall_us
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor
from services.common.priority import RECORD, Limits, PriorityGate
from services.registry.disclosure import published
from services.registry.disclosure.published import PublishedDisclosure, Unusable
from services.registry.metrics import RegistryMetrics
from tandem.common.v1 import ledger_pb2
from tests.support.registry import records
from tests.support.registry.registry import WITHIN_S, RegistryMesh, running_registry

SHARES = 40


class Accepting:
    """Stand-in for the service of disclosures, which keeps the ids of each batch."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.changed = asyncio.Event()

    async def newest(self, log_id: str) -> StreamCursor | None:
        return None

    async def accept(self, made: Sequence[PublishedDisclosure], log_id: str, newest: StreamCursor) -> list[Unusable]:
        self.batches.append([published.disclosure.disclosure_id for published in made])
        self.changed.set()
        return []


@pytest.fixture
def registry(tmp_path: Path, where: Path | str) -> Iterator[RegistryMesh]:
    """A registry on each database engine."""
    with running_registry(tmp_path, 1, where if isinstance(where, str) else "") as running:
        yield running


async def publish(bus: Bus, number: int) -> str:
    """Publishes a share of the police's leg and returns its id."""
    share = ledger_pb2.Disclosure(
        disclosure_id=f"share-{number}",
        at_ms=wall_us() // 1000,
        who="spiffe://tandem/service/dispatch-police",
        legal_basis="STALKING_9_1_2",
        purpose="ENFORCEMENT",
        reference="o-1",
        record_kind="WEARER",
        record_id="w-1",
        order_id="o-1",
        recipient="spiffe://tandem/service/dispatch-police",
    )
    subject = flow.disclosure_subject("geofence", share.disclosure_id)
    await bus.publish_until_stored(subject, share.SerializeToString(), msg_id=share.disclosure_id)
    return share.disclosure_id


async def test_shares_that_came_during_response_work_are_accepted_together(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "COALESCE_S", 0.01)
    gate = PriorityGate(record=Limits(RECORD.quiet_s, math.inf, RECORD.slots))
    collector, accepting = CollectorRegistry(), Accepting()
    put_off = RegistryMetrics(collector).put_off(flow.DISCLOSURES.name, "ledger")
    labels = {"stream": flow.DISCLOSURES.name, "work": "ledger"}

    def waiting(name: str) -> float:
        return collector.get_sample_value(f"tandem_registry_put_off_{name}", labels) or 0.0

    consuming = asyncio.create_task(
        published.consume_disclosures(bus, accepting, "log", gate=gate, put_off=put_off)  # type: ignore[arg-type]
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            with gate.response():
                ids = [await publish(bus, number) for number in range(SHARES)]
                while not waiting("messages") or not waiting("age_seconds"):  # noqa: ASYNC110  # set by another task
                    await asyncio.sleep(0.01)
                assert not accepting.batches
            while sum(map(len, accepting.batches)) < SHARES:
                accepting.changed.clear()
                await accepting.changed.wait()
            while waiting("messages"):  # noqa: ASYNC110  # set by another task
                await asyncio.sleep(0.01)
    finally:
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)
    assert [disclosure_id for batch in accepting.batches for disclosure_id in batch] == ids
    assert len(accepting.batches) < SHARES / 2
    assert waiting("age_seconds") == 0.0


async def test_a_kill_neither_loses_nor_doubles_a_share(registry: RegistryMesh) -> None:
    async with registry.connected() as client:
        await client.put(*records.unlinked())
        for number in range(SHARES):
            await publish(client.bus, number)
            if number % 10 == 5:
                registry.service.kill()  # with shares that aren't in the ledger yet, or aren't acknowledged yet
                registry.service.start()
        await until_shares(registry, SHARES)
        await publish(client.bus, SHARES)
        await until_shares(registry, SHARES + 1)
        assert sorted(shares(registry)) == sorted(f"share-{number}" for number in range(SHARES + 1))


def shares(registry: RegistryMesh) -> list[str]:
    """Ids in the ledger, in its order."""
    return [row[0] for row in registry.query("select disclosure_id from ledger order by sequence")]


async def until_shares(registry: RegistryMesh, count: int) -> None:
    """Waits until the ledger has a number of rows."""
    async with asyncio.timeout(WITHIN_S):
        while len(shares(registry)) < count:  # noqa: ASYNC110  # the registry is another process
            await asyncio.sleep(0.05)

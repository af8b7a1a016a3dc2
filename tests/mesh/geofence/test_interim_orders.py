"""An interim protection order on a mesh whose clock is past its date of force (Stalking Punishment Act 17-7): enforced without an end,
and taken over by the decision within one incident."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from services.common import times
from services.common.clock import MeshClock, wall_us
from services.common.messaging import flow, pull
from services.registry.domain.lifecycle import PROTECTION_FROM_MS
from tandem.common.v1 import alert_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.common.partitioned_mesh import Clients, Mesh, connected, number, order, run
from tests.support.ingest.ingest import WITHIN_S, position
from tests.support.registry import records
from tests.support.registry.registry import NPA

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def clock() -> MeshClock:
    """A clock that is ten days past the date of force."""
    wall_ms = wall_us() // 1000
    return MeshClock(2, wall_ms - (PROTECTION_FROM_MS + 10 * DAY_MS - wall_ms))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, clock: MeshClock) -> Iterator[Mesh]:
    with ExitStack() as stack:
        yield run(stack, tmp_path_factory.mktemp("interim"), 1, clock)


async def alerts_until(clients: Clients, enough: Callable[[list[alert_pb2.Alert]], bool]) -> list[alert_pb2.Alert]:
    """All stored alerts, once they are enough."""
    alerts: list[alert_pb2.Alert] = []
    async with asyncio.timeout(WITHIN_S):
        async for messages in pull.read(clients.vendor.bus, flow.ALERTS.name, 1):
            alerts += [alert_pb2.Alert.FromString(message.data) for message in messages]
            if enough(alerts):
                break
    return sorted(alerts, key=lambda alert: (alert.sequence, alert.ordinal))


async def test_stalking_act_17_7_an_order_without_an_end_responds_and_the_decision_takes_over(
    mesh: Mesh, clock: MeshClock
) -> None:
    async with connected(mesh) as clients:
        interim = order("interim", "she", 1)
        interim.type = registry_pb2.ORDER_TYPE_STALKING_INTERIM
        interim.valid_from.CopyFrom(times.to_timestamp(PROTECTION_FROM_MS))
        interim.ClearField("valid_until")
        await clients.agencies.put(
            records.person("she"),
            records.device("her-app", "she"),
            records.wearer("he", number(1)),
            records.tag("his-tag", "he"),
            interim,
        )
        now_ms = clock.now_ms()
        for device_id in ("her-app", "his-tag"):
            await clients.report(position(device_id, "first", now_ms - 1000, lat_deg=37.5))

        def responds(order_id: str) -> Callable[[list[alert_pb2.Alert]], bool]:
            return lambda alerts: any(alert.order_id == order_id and alert.ring_m == 100 for alert in alerts)

        entered = await alerts_until(clients, responds("interim"))
        assert {alert.order_id for alert in entered} == {"interim"}

        decision = order("decision", "she", 1)
        decision.type = registry_pb2.ORDER_TYPE_STALKING_PROTECTION
        decision.valid_from.CopyFrom(times.to_timestamp(clock.now_ms() - 1000))
        decision.valid_until.CopyFrom(times.to_timestamp(clock.now_ms() + 30 * DAY_MS))
        request = registry_pb2.PutOrderRequest(
            order=decision, replaces=registry_pb2.ReplacedOrder(order_id="interim", source_version=2)
        )
        await clients.agencies.ask(clients.agencies.stub.PutOrder, request, NPA)

        def is_over(alerts: list[alert_pb2.Alert]) -> bool:
            cleared = [
                alert for alert in alerts if alert.order_id == "interim" and alert.kind == alert_pb2.RING_CLEARED
            ]
            return len(cleared) == 3 and responds("decision")(alerts)

        alerts = await alerts_until(clients, is_over)
        # One incident, which the decision demands a response in before the interim order is cleared.
        assert len({alert.incident_id for alert in alerts if alert.incident_id}) == 1
        assert not any(alert.incident_ends for alert in alerts)
        kinds = [(alert.order_id, alert_pb2.AlertKind.Name(alert.kind)) for alert in alerts if alert.ring_m == 100]
        assert kinds == [("interim", "RING_ENTERED"), ("decision", "RING_ENTERED"), ("interim", "RING_CLEARED")]

"""First offers of each leg, by the report that caused them: when they arrived in INCIDENTS or at the desks."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from bench.mesh.load import Trigger
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from tandem.dispatch.v1 import dispatch_pb2

ARRIVED_WITHIN_S = 120.0
"""Maximum time from the last answer to the offers of a trigger; then it counts as lost. Ample, so that late offers still count."""


class Arrival(NamedTuple):
    """Arrival of an offer."""

    at: float
    """As time.monotonic gives it."""
    after_receipt_ms: float
    """Time since ingest received the report, milliseconds of wall time. Receiver and ingest are on the same machine."""


class Arrivals:
    """First offers by leg and by the report that caused them."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[Trigger, Arrival]] = {leg: {} for leg in flow.LEGS}

    def note(self, leg: str, assignment: dispatch_pb2.Assignment) -> None:
        """Notes an offer that has arrived now. Only the first offer of a leg for a report counts."""
        cause = assignment.cause
        after_receipt_ms = (time.time_ns() / 1000 - cause.received_wall_us) / 1000
        self.offered(leg, (cause.device_id, cause.report_id), time.monotonic(), after_receipt_ms=after_receipt_ms)

    def offered(self, leg: str, trigger: Trigger, at: float, *, after_receipt_ms: float = math.nan) -> None:
        """Notes an offer at a monotonic time."""
        self._seen[leg].setdefault(trigger, Arrival(at, after_receipt_ms))

    def has(self, leg: str, trigger: Trigger) -> bool:
        """Whether the leg's offer has arrived."""
        return trigger in self._seen[leg]

    def received_to_desk_ms(self, leg: str, trigger: Trigger) -> float:
        """Time from ingest's receipt of a report to the arrival of the leg's offer, milliseconds; infinite if it hasn't arrived."""
        arrival = self._seen[leg].get(trigger)
        return arrival.after_receipt_ms if arrival else math.inf

    async def until_all(self, triggers: Collection[Trigger]) -> None:
        """Returns when every leg has offered every trigger, or after ARRIVED_WITHIN_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ARRIVED_WITHIN_S):
                while self.lost(triggers):  # noqa: ASYNC110  # checks rarely, so as not to disturb the measurement
                    await asyncio.sleep(0.2)

    def lost(self, triggers: Collection[Trigger]) -> int:
        """Number of triggers that lack some leg's offer."""
        return sum(any(trigger not in seen for seen in self._seen.values()) for trigger in triggers)

    def latencies_ms(self, started: float, triggers: Mapping[Trigger, float]) -> dict[str, list[float]]:
        """Latencies from due to offered, by leg; infinite for a lost trigger, because omitting it would improve the percentiles.

        `both` is the later one of the two agencies' legs.
        """
        return _with_both(
            {
                leg: [
                    (seen[trigger].at - started - due_s) * 1000 if trigger in seen else math.inf
                    for trigger, due_s in triggers.items()
                ]
                for leg, seen in self._seen.items()
            }
        )

    def after_receipt_ms(self, triggers: Collection[Trigger]) -> dict[str, list[float]]:
        """Latencies from ingest's receipt of the report to the arrival, by leg and of `both`; infinite for a lost trigger."""
        return _with_both(
            {
                leg: [seen[trigger].after_receipt_ms if trigger in seen else math.inf for trigger in triggers]
                for leg, seen in self._seen.items()
            }
        )


def _with_both(by_leg: dict[str, list[float]]) -> dict[str, list[float]]:
    return by_leg | {"both": [max(pair) for pair in zip(*(by_leg[leg] for leg in flow.AGENCY_LEGS), strict=True)]}


class Offers(Arrivals):
    """First offers that stand in INCIDENTS."""

    async def follow(self, bus: Bus) -> None:
        """Reads INCIDENTS until cancelled."""
        async for messages in pull.read(
            bus, flow.INCIDENTS.name, 1, subjects=[flow.incident_subject(leg, ">") for leg in flow.LEGS]
        ):
            for message in messages:
                assignment = dispatch_pb2.Step.FromString(message.data).assignment
                if assignment.state == dispatch_pb2.OFFERED:
                    self.note(message.subject.split(".")[1], assignment)


@asynccontextmanager
async def following(bus: Bus) -> AsyncIterator[Offers]:
    """Offers in INCIDENTS that a background task collects."""
    offers = Offers()
    task = asyncio.create_task(offers.follow(bus))
    try:
        yield offers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

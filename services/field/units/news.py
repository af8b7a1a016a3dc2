"""News of offers: follows the legs, and wakes the pages and phones of the units that a change concerns."""

from __future__ import annotations

import asyncio

import grpc.aio

from services.common.clock import MeshClock
from services.field.followed import OFFERS, FollowedNews
from services.field.metrics import FieldMetrics
from services.field.push.messages import PushClient
from services.field.push.store import PushAddresses
from services.field.push.waking import PageWaker
from services.field.units.legs import UnitLegs
from services.field.units.sessions import device_id
from tandem.dispatch.v1 import unit_duty_pb2

OFFER_MS = 60_000
"""Time for which a phone is woken for an offer, milliseconds of mesh time. By then somebody else is asked."""
MAX_INCIDENTS = 10_000
"""Incidents of which the units are remembered for each leg. The one that changed longest ago is dropped first."""


class UnitNews(PageWaker):
    """Wakes those who wait for the news of a unit."""

    def __init__(
        self, legs: UnitLegs, addresses: PushAddresses, push: PushClient, *, clock: MeshClock, metrics: FieldMetrics
    ) -> None:
        super().__init__(addresses, push, clock=clock, metrics=metrics)
        self._legs, self._now_ms = legs, clock.now_ms
        self._units: dict[tuple[str, str], dict[str, str]] = {}
        """Unit by assignment, for each leg and incident."""
        self.followed = {name: FollowedNews(OFFERS, leg=name) for name in legs}
        """The offers of each leg."""

    def not_followed(self) -> str:
        """Legs whose offers wake no page, with the reason of each; empty if there is none."""
        away = [f"the {name} leg's ({news.away})" for name, news in self.followed.items() if news.away]
        return f"offers can't be followed: {', '.join(away)}" if away else ""

    async def run(self) -> None:
        """Follows the legs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._legs:
                tasks.create_task(self._run(tasks, name))

    async def _run(self, tasks: asyncio.TaskGroup, name: str) -> None:
        while True:
            reason = "ended"
            try:
                await self._follow(tasks, name)
            except grpc.aio.AioRpcError as error:
                reason = error.code().name
            await asyncio.sleep(self.followed[name].lost(reason))

    async def _follow(self, tasks: asyncio.TaskGroup, name: str) -> None:
        leg = self._legs[name]
        async for change in leg.stub.WatchUnits(unit_duty_pb2.WatchUnitsRequest(), metadata=leg.metadata):
            self.followed[name].found()
            if change.incident_id:
                self._apply(tasks, name, change)

    def _apply(self, tasks: asyncio.TaskGroup, name: str, change: unit_duty_pb2.WatchUnitsResponse) -> None:
        units = self._units.pop((name, change.incident_id), {})
        woken = {*units.values(), change.unit_id} - {""}
        if change.assignment_id:
            units[change.assignment_id] = change.unit_id
        if any(units.values()):
            self._units[name, change.incident_id] = units
        if len(self._units) > MAX_INCIDENTS * len(self._legs):
            del self._units[next(iter(self._units))]
        for unit_id in woken:
            self.wake(device_id(name, unit_id))
        if change.is_offer and change.unit_id:
            news_id = f"{change.assignment_id}/{change.offer_number}"
            self.push_about(tasks, device_id(name, change.unit_id), news_id, expires_ms=self._now_ms() + OFFER_MS)

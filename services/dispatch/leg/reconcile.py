"""Compares a leg's record with the streams: alerts that demand a response with what the leg knows of them, and its own steps.

A leg takes alerts in by their place in the stream, which its database keeps; this looks whether that was enough, by what is there and
not by how far the leg says to be. What is missing is taken in, and its chain, the log and a counter say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

from services.common.clock import wall_us
from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamWentBack
from services.common.messaging.pull import Delivered
from services.common.messaging.trails import Trail
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField, NotFound
from services.dispatch import metrics
from services.dispatch.domain.decisions import Alert
from services.dispatch.domain.events import Demand
from services.dispatch.evidence.collector import first_at
from services.dispatch.leg import translate
from services.dispatch.leg.service import LegService
from services.dispatch.retrying import retried
from tandem.dispatch.v1 import dispatch_pb2

CHECK_INTERVAL_S = 10.0
"""How often alerts are compared that are new since the last time, wall time."""
BACK_S = 86_400
"""How far back all of them are compared at the start, and again every hour: an incident that is a day old is over or well known."""
FULL_COMPARISON_INTERVAL_S = 3600.0
TOGETHER = 256
"""Alerts that are compared in one transaction."""


class Reconciler:
    """Compares for one leg."""

    def __init__(self, bus: Bus, leg: LegService, log_id: str) -> None:
        self._bus, self._leg, self._log_id = bus, leg, log_id
        self._unreadable: set[int] = set()
        """Sequences of alerts that this leg can't read, so that a response may be missing."""

    async def run(self) -> None:
        """Works for ever."""
        loop = asyncio.get_running_loop()
        compared, again_at_s, steps_compared = 0, 0.0, False
        caught_up = (await self._bus.bounds_of(flow.ALERTS.name)).last
        while True:
            if loop.time() >= again_at_s:
                since_ms = wall_us() // 1000 - BACK_S * 1000
                compared = await retried(partial(first_at, self._bus, flow.ALERTS.name, since_ms)) - 1
                again_at_s = loop.time() + FULL_COMPARISON_INTERVAL_S
                self._unreadable.clear()
            # Only what the leg has been past: the rest isn't missing but on its way.
            place = await retried(partial(self._leg.store.reading, flow.ALERTS.name, self._log_id))
            taken_in = place.sequence
            compared = min(compared, taken_in)  # less where the stream went back
            try:
                if taken_in > compared:
                    await retried(partial(self._holds, Trail.parse(place.trail)))
                    await self._compare_alerts(compared + 1, taken_in)
                    compared = taken_in
                if not steps_compared and taken_in >= caught_up:
                    # Under a running leg the record is changed by the leg alone, so once is enough.
                    await self._compare_steps()
                    steps_compared = True
            except StreamWentBack as error:
                # The leg's reader tells it, and takes in what it lacks; the comparison begins again.
                logger().warning("comparison_begins_again", reason=error.reason)
                again_at_s, caught_up = 0.0, (await self._bus.bounds_of(flow.ALERTS.name)).last
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _holds(self, trail: Trail) -> None:
        """Looks whether ALERTS still has the entry that the leg's place stands for: else what lies before it isn't missing but on its
        way, and the number alone doesn't show that. Raises StreamWentBack, Unavailable."""
        if trail.newest:
            await cursors.holds(self._bus, flow.ALERTS.name, trail.newest)

    async def _compare_alerts(self, first: int, last: int) -> None:
        waiting: list[Delivered] = []
        async for message in pull.between(self._bus, flow.ALERTS.name, first, last):
            waiting.append(message)
            if len(waiting) >= TOGETHER:
                await self._compare(waiting)
                waiting = []
                await asyncio.sleep(0)  # the leg has offers to make on this loop
        await self._compare(waiting)

    async def _compare(self, messages: Sequence[Delivered]) -> None:
        found = await retried(partial(self._leg.reconcile, list(self._demanding(messages))))
        for alert in found:
            metrics.RECONCILED.labels(self._leg.name).inc()
            logger().critical("alert_was_missing", alert_id=alert.alert_id, incident_id=alert.incident_id)
        metrics.UNRECONCILED.labels(self._leg.name).set(len(self._unreadable))

    def _demanding(self, messages: Iterable[Delivered]) -> Iterable[Alert]:
        for message in messages:
            if not flow.ALERTS.holds(message.subject):
                continue  # parked when it came
            try:
                alert = translate.alert(message.data, self._leg.name, message.subject)
            except InvalidField:
                self._unreadable.add(message.sequence)  # parked when it came, with its reason
                continue
            if alert is not None and alert.demand is Demand.RESPOND and alert.subject_ids:
                yield alert

    async def _compare_steps(self) -> None:
        """Looks for steps of this leg that its record lacks: an older copy of it was restored, and what its desk said since is lost."""
        mine = flow.incident_subject(self._leg.name, ">")
        newest = await retried(partial(self._newest, mine))
        if not newest:
            return
        async for messages in pull.read(self._bus, flow.INCIDENTS.name, 1, (mine,)):
            await retried(partial(self._leg.find_steps, await self._steps_of(messages)))
            if messages[-1].sequence >= newest:
                return
            await asyncio.sleep(0)

    async def _steps_of(self, messages: Sequence[Delivered]) -> list[dispatch_pb2.Step]:
        """The steps that can be read; the others become dead letters, as no other reader looks at this leg's own steps."""
        steps = []
        for message in messages:
            try:
                steps.append(stored.step(message.data, message.subject))
            except InvalidField as error:
                await dead_letters.keep(self._bus, flow.steps_reader(self._leg.name), message, error)
        return steps

    async def _newest(self, subject: str) -> int:
        """Sequence of the last message on a subject of INCIDENTS; 0 where there is none. Raises Unavailable."""
        try:
            answer = await self._bus.api(f"STREAM.MSG.GET.{flow.INCIDENTS.name}", {"last_by_subj": subject})
        except NotFound:
            return 0
        return int(answer["message"]["seq"])

"""Compares a leg's record with the streams: alerts that demand its response, and its own steps.

A leg reads on in ALERTS from the position in its database. This comparison checks the content instead of the position. A missing
alert is applied, and the chain, the log and a counter record that it was missing.
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
from services.common.retrying import retried
from services.common.rpc.errors import InvalidField
from services.dispatch.domain.alert import Alert
from services.dispatch.domain.enums import Demand
from services.dispatch.evidence.streams import first_at
from services.dispatch.leg import translate
from services.dispatch.leg.service import LegService

CHECK_INTERVAL_S = 10.0
"""Interval of the comparisons, seconds of wall time. Each compares the alerts that the leg has consumed since the last comparison."""
LOOKBACK_S = 86_400
"""Age of the oldest alerts in a full comparison, seconds: an incident that is a day old is over or well known."""
FULL_COMPARISON_INTERVAL_S = 3600.0
"""Interval of full comparisons, seconds. The first one runs at the start."""
COMPARE_BATCH = 256
"""Alerts that are compared in one transaction."""


class Reconciler:
    """Compares one leg's record with the streams, and adds what the record lacks."""

    def __init__(self, bus: Bus, leg: LegService, log_id: str) -> None:
        self._bus, self._leg, self._log_id = bus, leg, log_id
        self._unreadable: set[int] = set()
        """Sequences of alerts that this leg can't parse. Each may demand a response that is missing."""

    async def run(self) -> None:
        """Compares alerts and steps until cancelled."""
        loop = asyncio.get_running_loop()
        compared, next_full_s, steps_compared = 0, 0.0, False
        caught_up = (await self._bus.bounds_of(flow.ALERTS.name)).last
        while True:
            if loop.time() >= next_full_s:
                since_ms = wall_us() // 1000 - LOOKBACK_S * 1000
                compared = await retried(partial(first_at, self._bus, flow.ALERTS.name, since_ms)) - 1
                next_full_s = loop.time() + FULL_COMPARISON_INTERVAL_S
                self._unreadable.clear()
            # Alerts after this position aren't missing: the leg's reader hasn't reached them yet.
            position = await retried(partial(self._leg.store.reading, flow.ALERTS.name, self._log_id))
            consumed = position.sequence
            compared = min(compared, consumed)  # `consumed` is smaller after a stream went back
            try:
                if consumed > compared:
                    await retried(partial(self._holds, Trail.parse(position.trail)))
                    await self._compare_alerts(compared + 1, consumed)
                    compared = consumed
                if not steps_compared and consumed >= caught_up:
                    # Only the leg changes its record while it runs, so one comparison is enough.
                    await self._compare_steps()
                    steps_compared = True
            except StreamWentBack as error:
                # The leg's reader notices this too and consumes the missing alerts. So start a full comparison now.
                logger().warning("comparison_begins_again", reason=error.reason)
                next_full_s, caught_up = 0.0, (await self._bus.bounds_of(flow.ALERTS.name)).last
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _holds(self, trail: Trail) -> None:
        """Checks that ALERTS still has the last alert that the leg consumed. Raises StreamWentBack, Unavailable.

        After a stream went back, alerts before the leg's position aren't missing: the reader will consume them.
        """
        if trail.newest:
            await cursors.holds(self._bus, flow.ALERTS.name, trail.newest)

    async def _compare_alerts(self, first: int, last: int) -> None:
        waiting: list[Delivered] = []
        async for message in pull.between(self._bus, flow.ALERTS.name, first, last=last):
            waiting.append(message)
            if len(waiting) >= COMPARE_BATCH:
                await self._compare(waiting)
                waiting = []
                await asyncio.sleep(0)  # let the leg's offers run on this event loop
        await self._compare(waiting)

    async def _compare(self, messages: Sequence[Delivered]) -> None:
        missing = await retried(partial(self._leg.reconcile, list(self._demanding(messages))))
        for alert in missing:
            self._leg.metrics.reconciled.labels(self._leg.name).inc()
            logger().critical("alert_was_missing", alert_id=alert.alert_id, incident_id=alert.incident_id)
        self._leg.metrics.unreconciled.labels(self._leg.name).set(len(self._unreadable))

    def _demanding(self, messages: Iterable[Delivered]) -> Iterable[Alert]:
        for message in messages:
            if not flow.ALERTS.holds(message.subject):
                continue  # the reader made it a dead letter
            try:
                alert = translate.alert(message.data, self._leg.name, message.subject)
            except InvalidField:
                self._unreadable.add(message.sequence)  # the reader made it a dead letter, with the reason
                continue
            if alert is not None and (
                (alert.demand is Demand.RESPOND and alert.subject_ids) or alert.check_subject_ids
            ):
                yield alert

    async def _compare_steps(self) -> None:
        """Finds steps on INCIDENTS that the leg's record lacks, for instance because an older copy was restored."""
        mine = flow.incident_subject(self._leg.name, ">")
        newest = await retried(partial(self._bus.last_sequence_of, flow.INCIDENTS.name, mine))
        if not newest:
            return
        async for messages in pull.read(self._bus, flow.INCIDENTS.name, 1, subjects=(mine,)):
            # No other reader reads this leg's own steps, so unreadable steps become dead letters here.
            reader = flow.steps_reader(self._leg.name)
            steps = await dead_letters.parse_or_keep(self._bus, reader, messages, parse=stored.step)
            await retried(partial(self._leg.compare_steps, steps))
            if messages[-1].sequence >= newest:
                return
            await asyncio.sleep(0)

"""Send canaries: keep their records valid, and report their wearers, one of them within the ring of the protected person."""

from __future__ import annotations

import grpc.aio

from services.cli.failure import of_rpc
from services.cli.monitor import canary
from services.cli.monitor.canary import Canary
from services.cli.monitor.exercise import INSIDE_M, OUTSIDE_M, lead_ms
from services.cli.monitor.series import CanarySeries
from services.common.observability.telemetry import logger

SLOTS = 6
"""Number of wearers, who breach in turn. Each breach is stood down long before the wearer's next turn."""
PROLONGED_INTERVAL_S = 12 * 3_600
RETRY_S = 5.0


class CanarySender:
    """Sends the canaries of a series."""

    def __init__(self, series: CanarySeries) -> None:
        self._series = series
        self._refused = ""
        """Reason why the registry doesn't create the records; else empty."""

    async def prolong(self) -> None:
        """Creates the records and keeps them valid, until cancelled. Nothing else here needs the registry."""
        while True:
            try:
                await self._series.exercise.put(SLOTS)
            except grpc.aio.AioRpcError as error:
                self._refused = f"the registry doesn't create the records: {of_rpc(error).message}"
                logger().error("canaries_not_prolonged", reason=self._refused)
                await self._series.sleep(RETRY_S)
                continue
            self._refused = ""
            self._series.save()
            await self._series.sleep(PROLONGED_INTERVAL_S)

    async def send(self) -> None:
        """Reports all wearers every 20 s, one of them inside, until cancelled.

        The first report has all wearers outside, so that no wearer's later breach is a position jump.
        """
        series = self._series
        while not series.exercise.records.cases and not self._refused:
            await series.sleep(0.5)
        if series.exercise.records.cases:
            await series.exercise.report(dict.fromkeys(range(SLOTS), OUTSIDE_M))
        await series.sleep(lead_ms() / 1000)
        due_s = series.now_s()
        while True:
            await self._send_next()
            due_s = max(due_s + canary.INTERVAL_S, series.now_s())
            await series.sleep(due_s - series.now_s())

    async def _send_next(self) -> None:
        series = self._series
        after, free = self._next_slots()
        series.sent += 1
        series.slot = after if free is None else free
        sent = Canary(series.sent, series.slot, series.now_s())
        series.state.canaries.append(sent)
        series.save()
        if not series.exercise.records.cases:
            sent.failed = self._refused
            return
        # A wearer is stood down only after reports from outside.
        distances_m = dict.fromkeys(range(SLOTS), OUTSIDE_M)
        if free is None:
            await series.exercise.report(distances_m)
            sent.failed = "no wearer of an earlier canary was stood down"
        else:
            sent.durable, sent.failed = await series.exercise.report(distances_m | {free: INSIDE_M})

    def _next_slots(self) -> tuple[int, int | None]:
        """The slot whose turn it is, and the first slot from there on with a stood-down wearer; None if no slot has one."""
        series = self._series
        # An incomplete canary may still come late, so its wearer breaches again. Otherwise all wearers would end up inside.
        last = series.state.canaries[-1] if series.state.canaries else None
        after = (series.slot + (1 if last is None or last.complete or last.number == 0 else 0)) % SLOTS
        busy = {assignment.slot for assignment in series.open.values()}
        turns = ((after + n) % SLOTS for n in range(SLOTS))
        return after, next((slot for slot in turns if slot not in busy), None)

"""The list of what devices were asked about their reports, and of what they do. It holds no position and no name."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from services.common import times
from services.common.clock import MeshClock
from services.common.rpc.identity import Caller
from services.ingest.admission.routes import Routes
from services.ingest.commands.service import Commands
from services.ingest.sensing.asks import Asker, DeviceAsks, IntervalAsk
from services.ingest.sensing.observed import ASKED_ABOUT_MS, SLOW_MS, Obedience, ObservedReports
from tandem.common.v1 import access_pb2, command_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2

_LEGS = {
    "moj": "spiffe://tandem/service/dispatch-probation",
    "npa": "spiffe://tandem/service/dispatch-police",
}
"""Leg that leads the pursuits of each agency."""


class ReportingList:
    """Lists devices of which an interval is asked."""

    def __init__(self, commands: Commands, observed: ObservedReports, routes: Routes, *, clock: MeshClock) -> None:
        self._commands, self._observed, self._routes, self._clock = commands, observed, routes, clock

    def page(self, kinds: Collection[log_pb2.DeviceKind.ValueType], after: str, size: int) -> Sequence[str]:
        """Returns the ids of up to `size` devices of these kinds that follow `after`, sorted."""
        now_ms, intervals = self._clock.now_ms(), self._commands.intervals
        found = [
            device_id
            for device_id in intervals
            if device_id > after
            and self._is_one_of(device_id, kinds)
            and intervals.of_device(device_id).in_force(now_ms)
        ]
        return sorted(found)[:size]

    def of_device(self, device_id: str, caller: Caller) -> ingest_pb2.DeviceReporting:
        """Returns a device's row as a caller may see it. From then on the device is observed for an hour."""
        now_ms = self._clock.now_ms()
        self._observed.watch(device_id, now_ms + ASKED_ABOUT_MS)
        asks, observed = self._commands.intervals.of_device(device_id), self._observed.get(device_id)
        in_force, in_effect = asks.in_force(now_ms), asks.in_effect(now_ms)
        shown = [ask for ask in in_force if _may_see(caller, ask)]
        row = ingest_pb2.DeviceReporting(
            device_id=device_id,
            asks=[_ask(ask, asks.is_refused(ask.interval_s, now_ms)) for ask in shown],
            own_ask_in_effect=in_effect in shown,
            obeys=ingest_pb2.Obedience.ValueType(self._obeys(device_id, now_ms)),
            locates_sent=observed.locates_sent,
            locates_answered=observed.locates_answered,
        )
        if in_force:
            self._add_delivery(row, asks, in_effect or in_force[0])
        interval_ms = observed.interval_ms(now_ms)
        if interval_ms is not None:
            row.slow = interval_ms >= SLOW_MS
            # The interval that a device keeps gives away the one that the decision asks for.
            if row.own_ask_in_effect or not in_force or caller.role == access_pb2.ROLE_OPERATOR:
                row.observed_interval_s = round(interval_ms / 1000)
        if observed.fixes_ms:
            row.last_fix.CopyFrom(times.to_timestamp(observed.fixes_ms[-1]))
        return row

    def count_disobeying(self) -> int:
        """Returns the number of devices that don't keep the interval in effect, of those that this process hears."""
        now_ms = self._clock.now_ms()
        return sum(self._obeys(device_id, now_ms) is Obedience.NO for device_id in self._commands.intervals)

    def _is_one_of(self, device_id: str, kinds: Collection[log_pb2.DeviceKind.ValueType]) -> bool:
        known = self._routes.registration(device_id)
        return known is not None and known.kind in kinds

    def _obeys(self, device_id: str, now_ms: int) -> Obedience:
        asks = self._commands.intervals.of_device(device_id)
        in_effect = asks.in_effect(now_ms)
        if in_effect is None:
            return Obedience.NO if asks.in_force(now_ms) else Obedience.NOT_ASKED
        return self._observed.get(device_id).obeys(in_effect.interval_s, now_ms)

    def _add_delivery(self, row: ingest_pb2.DeviceReporting, asks: DeviceAsks, ask: IntervalAsk) -> None:
        row.delivery, since_ms = command_pb2.COMMAND_STATE_WAITING, ask.issued_at_ms
        refusal = asks.refusals.get(ask.interval_s)
        current = asks.current if asks.current and asks.current.ask_id == ask.command_id else None
        active = self._commands.get(current.command_id) if current else None
        if refusal is not None and asks.is_refused(ask.interval_s, self._clock.now_ms()):
            row.delivery, since_ms = command_pb2.COMMAND_STATE_REFUSED, refusal.at_ms
            row.refused_because = refusal.reason
        elif active is not None:
            row.delivery, since_ms = active.state, active.since_ms
        row.delivery_since.CopyFrom(times.to_timestamp(since_ms))


def _may_see(caller: Caller, ask: IntervalAsk) -> bool:
    """Whether a caller may see an ask. The decision's interval depends on how near the wearer is to a protected person."""
    agency = Asker.of(caller.spiffe_id, "").name
    return caller.role == access_pb2.ROLE_OPERATOR or ask.asker.name in (agency, _LEGS.get(agency))


def _ask(ask: IntervalAsk, refused: bool) -> ingest_pb2.ReportingAsk:
    return ingest_pb2.ReportingAsk(
        asked_by=ask.issued_by,
        interval_s=ask.interval_s,
        asked_at=times.to_timestamp(ask.issued_at_ms),
        until=times.to_timestamp(ask.until_ms),
        refused=refused,
    )

"""Searches the stream ALERTS for incidents that are given by some alerts.

Finds the first alert of each incident, and all alerts about its wearer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.common import times
from services.common.errors import InvalidField
from services.common.evidence.streams import RangeReader, first_at
from services.common.messaging import flow, pull, stored
from services.common.messaging.streams import LogMetadata
from services.common.observability.telemetry import logger
from tandem.common.v1 import alert_pb2

LOOK_BACK_MS = 7_200_000
"""How long before the first alert the evidence begins, milliseconds of mesh time. A report that caused an alert may be 2 h late."""
OPENED_BEFORE_MS = 4 * LOOK_BACK_MS
"""How far before a known alert to search for an earlier alert of the same incident, milliseconds of mesh time."""


class DeliveredAlert(NamedTuple):
    """An alert with the message of ALERTS that carried it."""

    alert: alert_pb2.Alert
    message: pull.Delivered


@dataclass(frozen=True, slots=True)
class FoundIncident:
    """An incident that was found in ALERTS."""

    name: str
    """Name under which the incident was searched."""
    opening: alert_pb2.Alert
    """First alert of the incident."""
    wearer_alerts: Sequence[DeliveredAlert]
    """All alerts about the wearer, from OPENED_BEFORE_MS before the incident until its end, or until now."""

    @property
    def alerts(self) -> list[DeliveredAlert]:
        """Alerts of this incident."""
        return [found for found in self.wearer_alerts if found.alert.incident_id == self.opening.incident_id]

    @property
    def ended(self) -> bool:
        """Whether the alerts include the one that ends the incident."""
        return any(alert.incident_ends for alert, _ in self.alerts)


class _Wearer(NamedTuple):
    """Key of a wearer's alerts. It has the partition too, since a forged alert may name a wearer of another partition."""

    partition: int
    wearer_id: str


class IncidentFinder:
    """Finds incidents by some of their alerts."""

    def __init__(self, reader: RangeReader, log_meta: LogMetadata) -> None:
        self._reader = reader
        self._bus = reader.bus
        self._log_meta = log_meta

    async def find(self, alert_ids: Mapping[str, Sequence[str]]) -> list[FoundIncident]:
        """Finds incidents. `alert_ids` maps a name, which the caller chooses, to some alert ids of one incident.

        An incident is left out if ALERTS no longer holds any of its alerts. An alert with demand WARN may have opened an incident long
        before a desk was notified. The leg doesn't know such alerts, so the search goes back until it finds no earlier alert.
        """
        pending = await self._earliest_known(alert_ids)
        incidents: list[FoundIncident] = []
        while pending:
            alerts_of = await self._wearer_alerts(pending)
            for name, earliest in list(pending.items()):
                of_incident = [alert for alert, _ in alerts_of[name] if alert.incident_id == earliest.incident_id]
                pending[name] = min(of_incident, key=lambda alert: alert.sequence)
                if pending[name].sequence == earliest.sequence:
                    incidents.append(FoundIncident(name, pending.pop(name), alerts_of[name]))
        return incidents

    async def _earliest_known(self, alert_ids: Mapping[str, Sequence[str]]) -> dict[str, alert_pb2.Alert]:
        known: dict[str, alert_pb2.Alert] = {}
        for name, ids in alert_ids.items():
            alerts = [alert for id_ in ids if (alert := await self._stored_alert(id_))]
            if alerts:
                known[name] = min(alerts, key=lambda alert: alert.sequence)
        return known

    async def _wearer_alerts(self, known: Mapping[str, alert_pb2.Alert]) -> dict[str, list[DeliveredAlert]]:
        """Returns the alerts about the wearer, by the name of the incident.

        The alerts begin OPENED_BEFORE_MS before a known alert, and end with the incident or now. Alerts that amend an account after
        the end of the incident are included.
        """
        from_wall_ms = {name: self._search_from_ms(alert) for name, alert in known.items()}
        about: dict[_Wearer, list[str]] = {}
        for name, earliest in known.items():
            about.setdefault(_Wearer(earliest.partition, earliest.wearer_id), []).append(name)
        stream = flow.ALERTS.name
        first = await first_at(self._bus, stream, min(from_wall_ms.values()))
        last = (await self._bus.bounds_of(stream)).last
        alerts: dict[str, list[DeliveredAlert]] = {name: [] for name in known}
        ended: set[str] = set()
        async for message in self._reader.between(stream, first, last):
            alert = _readable(message)
            if alert is None:
                continue
            for name in about.get(_Wearer(alert.partition, alert.wearer_id), ()):
                of_incident = alert.incident_id == known[name].incident_id
                if (of_incident or name not in ended) and message.stamp_ms >= from_wall_ms[name]:
                    alerts[name].append(DeliveredAlert(alert, message))
                    if alert.incident_ends and of_incident:
                        ended.add(name)
        return alerts

    def _search_from_ms(self, alert: alert_pb2.Alert) -> int:
        """Time from which to search for alerts of the same incident, wall clock, milliseconds since 1970 UTC."""
        anchor_ms, rate = self._log_meta.clock.anchor_ms, self._log_meta.clock.rate
        wall_ms = anchor_ms + (times.from_timestamp(alert.decided_at) - anchor_ms) // rate
        return max(wall_ms - OPENED_BEFORE_MS // rate, 0)

    async def _stored_alert(self, alert_id: str) -> alert_pb2.Alert | None:
        for partition in range(self._log_meta.partitions):
            subject = flow.alert_subject(partition, alert_id)
            data = await self._bus.last_of(flow.ALERTS.name, subject)
            if data is not None:
                try:
                    return stored.alert(data, subject)
                except InvalidField as error:
                    logger().error("evidence_lacks_alert", alert_id=alert_id, reason=str(error))
        return None


def _readable(message: pull.Delivered) -> alert_pb2.Alert | None:
    """Parses an alert. Returns None for a foreign subject and for an unreadable alert, which the legs made a dead letter."""
    if not flow.ALERTS.holds(message.subject):
        return None
    try:
        return stored.alert(message.data, message.subject)
    except InvalidField:
        return None

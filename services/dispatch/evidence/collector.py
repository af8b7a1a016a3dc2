"""Collects the evidence of incidents from the streams, for one agency. Several incidents share one pass through each stream."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.common import times
from services.common.messaging import dead_letters, flow, pull, stored
from services.common.messaging.bus import Bounds, Bus
from services.common.messaging.streams import LogMetadata
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField, NotFound
from services.dispatch.domain.leg import Leg
from services.dispatch.evidence.model import Evidence, StoredMessage
from services.dispatch.evidence.redaction import Holders, RedactedLog, Shares, Window, entry_of, record_of
from tandem.common.v1 import alert_pb2

LOOK_BACK_MS = 7_200_000
"""Window before the first alert, milliseconds of mesh time: 2 h, the maximum delay of a report that may have decided the alert."""
OPENED_BEFORE_MS = 4 * LOOK_BACK_MS
"""How far before a known alert to search for an earlier alert of the same incident, milliseconds of mesh time."""
STATE_BACK_MS = 26 * 3_600_000
"""How far before the window to search for cases and rules, milliseconds of mesh time. Both are logged at least once a mesh day."""
_READ_BATCH = 64
_SLEEP_EVERY = 16
"""Messages between two sleeps of a throttled pass."""

DeliveredAlert = tuple[alert_pb2.Alert, pull.Delivered]


async def collect(
    bus: Bus, log_meta: LogMetadata, alert_ids: Iterable[str], *, leg: str, back_ms: int | None = LOOK_BACK_MS
) -> Evidence:
    """Collects the evidence of the incident to which these alerts belong, up to now.

    `back_ms` is the length of the window before the first alert in mesh time; None means from the start of the log.
    Raises NotFound if ALERTS holds none of the alerts, Unavailable if the server doesn't answer.
    """
    by_name = await EvidenceCollector(bus=bus, log_meta=log_meta, leg=leg, back_ms=back_ms).of({"": list(alert_ids)})
    if not by_name:
        raise NotFound(f"{flow.ALERTS.name} holds none of the incident's alerts")
    return by_name[""]


@dataclass(slots=True)
class _Incident:
    """An incident as its alerts describe it, before the log is read."""

    name: str
    opening: alert_pb2.Alert
    """First alert of the incident."""
    wearer_alerts: Sequence[DeliveredAlert]
    """All alerts about the wearer, from OPENED_BEFORE_MS before the incident on."""
    from_wall_ms: int = 0
    first: int = 0
    """First sequence of the window in the log."""
    last: int = 0
    """Last sequence of the window in the log."""
    opened: bool = False
    """Whether the log still has the entry that caused the first alert."""

    @property
    def alerts(self) -> list[DeliveredAlert]:
        """Alerts of this incident."""
        return [
            (alert, message) for alert, message in self.wearer_alerts if alert.incident_id == self.opening.incident_id
        ]

    @property
    def ended(self) -> bool:
        """Whether the alerts include the one that ends the incident."""
        return any(alert.incident_ends for alert, _ in self.alerts)


class EvidenceCollector:
    """Collects evidence in one pass through the streams.

    `sleep_ratio` is the number of seconds of sleep per second of work, so that a pass doesn't starve the leg's other tasks.
    """

    def __init__(
        self, bus: Bus, log_meta: LogMetadata, leg: str, *, back_ms: int | None = LOOK_BACK_MS, sleep_ratio: float = 0.0
    ) -> None:
        self._bus, self._log_meta, self._leg, self._back_ms, self._sleep_ratio = (
            bus,
            log_meta,
            Leg(leg),
            back_ms,
            sleep_ratio,
        )

    async def of(self, alert_ids: Mapping[str, Sequence[str]]) -> dict[str, Evidence]:
        """Returns the evidence of incidents, each given by a name and some of its alert ids.

        An incident is left out if ALERTS no longer holds any of the alerts. Raises Unavailable if the server doesn't answer.
        """
        known: dict[str, alert_pb2.Alert] = {}
        for name, ids in alert_ids.items():
            alerts = [alert for id_ in ids if (alert := await self._stored_alert(id_))]
            if alerts:
                known[name] = min(alerts, key=lambda alert: alert.sequence)
        incidents = await self._incidents(known)
        evidence: dict[str, Evidence] = {}
        for partition in sorted({incident.opening.partition for incident in incidents}):
            evidence |= await self._partition(
                partition, [incident for incident in incidents if incident.opening.partition == partition]
            )
        return evidence

    async def _partition(self, partition: int, incidents: Sequence[_Incident]) -> dict[str, Evidence]:
        stream = flow.log_stream(partition)
        bounds = await self._bus.bounds_of(stream)
        windows = []
        holders = Holders(self._log_meta.clock)
        for incident in incidents:
            await self._set_window(incident, stream, bounds)
            decided = {
                alert.sequence for alert, _ in incident.wearer_alerts if alert.wearer_id == incident.opening.wearer_id
            }
            share = RedactedLog(wearer_id=incident.opening.wearer_id, leg=self._leg, decided=decided, holders=holders)
            windows.append(Window(incident.first, incident.last, share))
        first, last = min(window.first for window in windows), max(window.last for window in windows)
        await self._read_log_meta(partition, bounds, list(zip(incidents, windows, strict=True)), holders=holders)
        shares = Shares(windows)
        async for message in self._between(stream, first, last):
            shares.consume(message)
        letters = await self._dead_letters(stream, incidents, windows)
        return {
            incident.name: await self._evidence(incident, window.share, bounds, letters=letters)
            for incident, window in zip(incidents, windows, strict=True)
        }

    async def _set_window(self, incident: _Incident, stream: str, bounds: Bounds) -> None:
        opened = await message_of(self._bus, stream, seq=incident.opening.sequence)
        incident.opened = opened is not None
        if opened and self._back_ms is not None:
            incident.from_wall_ms = opened.stamp_ms - self._back_ms // self._log_meta.clock.rate
        incident.first = await first_at(self._bus, stream, incident.from_wall_ms)
        incident.last = (
            min(max(alert.sequence for alert, _ in incident.wearer_alerts), bounds.last)
            if incident.ended
            else bounds.last
        )

    async def _evidence(
        self, incident: _Incident, share: RedactedLog, bounds: Bounds, *, letters: Mapping[int, Sequence[StoredMessage]]
    ) -> Evidence:
        records = [*share.records]
        for record in share.records:
            records += [it for it in letters.get(record.sequence, ()) if it.stamp_ms >= incident.from_wall_ms]
        for alert, message in incident.alerts:
            if shown := _alert_for(self._leg, alert, message):
                records.append(shown)
                if self._leg.policy.may_locate_person and (measure := await self._measure(alert)):
                    records.append(measure)
        return Evidence(
            incident_id=incident.opening.incident_id,
            leg=self._leg,
            wearer_id=incident.opening.wearer_id,
            order_ids=tuple(sorted({alert.order_id for alert, _ in incident.alerts})),
            person_ids=tuple(sorted(share.person_ids)),
            partition=incident.opening.partition,
            window_stamp_ms=incident.from_wall_ms,
            # If the first entry of the log is younger than the window, the log either began with it or has lost the entries before it.
            whole=bounds.first == 1 or (incident.opened and incident.first > bounds.first),
            ended=incident.ended,
            records=tuple(sorted(records, key=lambda it: (it.stream, it.sequence))),
        )

    # ── ALERTS ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _incidents(self, known: Mapping[str, alert_pb2.Alert]) -> list[_Incident]:
        """Finds the incidents to which alerts belong, each with its first alert.

        A warning may have opened an incident long before a desk was notified. The leg doesn't know such an alert.
        """
        incidents: list[_Incident] = []
        pending = dict(known)
        while pending:
            alerts_of = await self._alerts(pending)
            for name, earliest in list(pending.items()):
                of_incident = [alert for alert, _ in alerts_of[name] if alert.incident_id == earliest.incident_id]
                pending[name] = min(of_incident, key=lambda alert: alert.sequence)
                if pending[name].sequence == earliest.sequence:
                    incidents.append(_Incident(name, pending.pop(name), alerts_of[name]))
        return incidents

    async def _alerts(self, known: Mapping[str, alert_pb2.Alert]) -> dict[str, list[DeliveredAlert]]:
        """Returns the alerts about the wearer, by the name of the incident.

        They begin OPENED_BEFORE_MS before a known alert and end with the incident, or now. Alerts of the incident that amend an
        account after its end are included.
        """
        anchor_ms, rate = self._log_meta.clock.anchor_ms, self._log_meta.clock.rate
        from_wall_ms: dict[str, int] = {}
        about: dict[tuple[int, str], list[str]] = {}
        for name, alert in known.items():
            wall_ms = anchor_ms + (times.from_timestamp(alert.decided_at) - anchor_ms) // rate
            from_wall_ms[name] = max(wall_ms - OPENED_BEFORE_MS // rate, 0)
            about.setdefault((alert.partition, alert.wearer_id), []).append(name)
        stream = flow.ALERTS.name
        first = await first_at(self._bus, stream, min(from_wall_ms.values()))
        last = (await self._bus.bounds_of(stream)).last
        alerts: dict[str, list[DeliveredAlert]] = {name: [] for name in known}
        ended: set[str] = set()
        async for message in self._between(stream, first, last):
            if not flow.ALERTS.holds(message.subject):
                continue
            try:
                alert = stored.alert(message.data, message.subject)
            except InvalidField:
                continue  # the legs made it a dead letter, so it belongs to no incident
            for name in about.get((alert.partition, alert.wearer_id), ()):
                of_incident = alert.incident_id == known[name].incident_id
                if (of_incident or name not in ended) and message.stamp_ms >= from_wall_ms[name]:
                    alerts[name].append((alert, message))
                    if alert.incident_ends and of_incident:
                        ended.add(name)
        return alerts

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

    async def _measure(self, alert: alert_pb2.Alert) -> StoredMessage | None:
        subject = flow.measure_subject(alert.partition, alert.alert_id)
        return await message_of(self._bus, flow.MEASURES.name, last_by_subj=subject)

    # ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_log_meta(
        self, partition: int, bounds: Bounds, pairs: Sequence[tuple[_Incident, Window]], *, holders: Holders
    ) -> None:
        """Reads the holders of all devices, and adds the state before each window if the log has entries from before it.

        That state is the newest snapshot of each of the wearer's cases, the rules and the version of the fold.
        """
        stream = flow.log_stream(partition)
        back_ms = STATE_BACK_MS // self._log_meta.clock.rate
        of_wearer: dict[str, list[Window]] = {}
        for _, window in pairs:
            of_wearer.setdefault(window.share.wearer_id, []).append(window)
        later = [(incident, window) for incident, window in pairs if window.first > bounds.first]
        newest: dict[int, dict[str, pull.Delivered]] = {id(window): {} for _, window in later}
        daily = min(
            [await first_at(self._bus, stream, incident.from_wall_ms - back_ms) for incident, _ in later]
            or [min(window.first for _, window in pairs)]
        )
        last = max(window.last for _, window in pairs)
        async for message in self._between(stream, daily, last, subject=flow.log_subject(partition, "case")):
            case = entry_of(message.data).case
            holders.see_case(message, case)
            for window in of_wearer.get(case.wearer_id, ()):
                if message.sequence < window.first:
                    newest.get(id(window), {})[case.case_id] = message
                elif message.sequence <= window.last:
                    window.share.see_case(case)
        if not later:
            return
        before = max(window.first for _, window in later) - 1
        for kind, first in (("rules", daily), ("fold", 1)):
            async for message in self._between(stream, first, before, subject=flow.log_subject(partition, kind)):
                for _, window in later:
                    if message.sequence < window.first:
                        newest[id(window)][f" {kind}"] = message  # the space keeps it apart from case ids
        for _, window in later:
            state = sorted(newest[id(window)].values(), key=lambda message: message.sequence)
            for message in state:
                if (entry := entry_of(message.data)).HasField("case"):
                    window.share.see_case(entry.case)
            for message in state:
                window.share.add_premise(message)

    async def _dead_letters(
        self, log: str, incidents: Sequence[_Incident], windows: Sequence[Window]
    ) -> dict[int, list[StoredMessage]]:
        """Returns the dead letters of the included entries, by the sequence of the entry."""
        stream = flow.DEAD_LETTERS.name
        sequences = {record.sequence for window in windows for record in window.share.records}
        letters: dict[int, list[StoredMessage]] = {}
        first = await first_at(self._bus, stream, min(incident.from_wall_ms for incident in incidents))
        async for message in self._between(stream, first, (await self._bus.bounds_of(stream)).last):
            try:
                dead_letter = stored.dead_letter(message.data, message.subject)
            except InvalidField as error:
                dead_letters.pass_over(self._bus, "evidence", stream, sequence=message.sequence, error=error)
                continue
            if dead_letter.by == flow.FOLD_READER and dead_letter.stream == log and dead_letter.sequence in sequences:
                letters.setdefault(dead_letter.sequence, []).append(record_of(message))
        return letters

    async def _between(
        self, stream: str, first: int, last: int, *, subject: str | None = None
    ) -> AsyncIterator[pull.Delivered]:
        """Yields messages from `first` to `last`, of one subject or of all. Ends at `last` without waiting for new messages."""
        if subject is not None:
            newest = await message_of(self._bus, stream, last_by_subj=subject)
            last = min(last, newest.sequence if newest else 0)
        if first > last:
            return
        count = 0
        began_s = time.monotonic()
        async for messages in pull.read(
            self._bus, stream, first, subjects=(subject,) if subject else (), batch=_READ_BATCH
        ):
            for message in messages:
                if message.sequence <= last:
                    yield message
                count += 1
                if count % _SLEEP_EVERY == 0:
                    # The leg makes its offers on the same event loop.
                    await asyncio.sleep((time.monotonic() - began_s) * self._sleep_ratio)
                    began_s = time.monotonic()
            if messages[-1].sequence >= last:
                return


async def first_at(bus: Bus, stream: str, wall_ms: int) -> int:
    """Returns the first sequence of a stream with a time stamp of at least `wall_ms`; last + 1 if there is none."""
    bounds = await bus.bounds_of(stream)
    low, high = bounds.first, bounds.last + 1
    middle = low  # most streams hold nothing older than `wall_ms`
    while low < high and wall_ms > 0:
        message = await message_of(bus, stream, seq=middle)
        if message is None or message.stamp_ms < wall_ms:
            low = middle + 1
        else:
            high = middle
        middle = (low + high) // 2
    return low


async def message_of(bus: Bus, stream: str, **which: str | int) -> StoredMessage | None:
    """Returns one message, by `seq` or `last_by_subj`; None if the stream doesn't hold it. Raises Unavailable."""
    try:
        fields = (await bus.api(f"STREAM.MSG.GET.{stream}", which))["message"]
    except NotFound:
        return None
    stamp = datetime.fromisoformat(fields["time"])
    stamp_ms = (stamp - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return StoredMessage(
        stream=stream,
        sequence=fields["seq"],
        stamp_ms=stamp_ms,
        subject=fields["subject"],
        data=base64.b64decode(fields.get("data", "")),
    )


def _alert_for(leg: Leg, alert: alert_pb2.Alert, message: pull.Delivered) -> StoredMessage | None:
    record = record_of(message)
    if leg.policy.may_locate_person:
        return record
    if not alert.incident_ends and all(destination.leg != alert_pb2.PROBATION for destination in alert.destinations):
        return None  # only the police may have the reports of a protective device
    if not alert.HasField("cause") or alert.cause.of_wearer:
        return record
    redacted = alert_pb2.Alert()
    redacted.CopyFrom(alert)
    redacted.ClearField("cause")
    return StoredMessage(
        stream=record.stream,
        sequence=record.sequence,
        stamp_ms=record.stamp_ms,
        subject=record.subject,
        data=redacted.SerializeToString(deterministic=True),
        cut=True,
    )

"""Gathers what incidents rest on from the streams, for one agency: those that are asked for together in one pass through each."""

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
from services.dispatch.evidence.model import Evidence, StoredMessage
from services.dispatch.evidence.redaction import Holders, RedactedLog, Shares, Window, entry_of, record_of
from tandem.common.v1 import alert_pb2

LOOK_BACK_MS = 7_200_000
"""What came before the first alert and may have decided it: 2 h, which is as late as a report may be. Mesh time."""
OPENED_BEFORE_MS = 4 * LOOK_BACK_MS
"""How long before an alert of an incident an earlier one is looked for. Mesh time."""
PREMISES_BACK_MS = 26 * 3_600_000
"""Cases and rules are entered again each day of the mesh."""
_READ_BATCH = 64
_REST_EVERY = 16

Told = tuple[alert_pb2.Alert, pull.Delivered]


async def gather(
    bus: Bus, log_meta: LogMetadata, alert_ids: Iterable[str], leg: str, back_ms: int | None = LOOK_BACK_MS
) -> Evidence:
    """What the streams hold of the incident to which these alerts belong, as far as it has come.

    `back_ms` is how far before its first alert, mesh time; None means from the log's start.
    Raises NotFound where ALERTS holds none of the alerts, Unavailable where the server doesn't answer.
    """
    found = await EvidenceCollector(bus, log_meta, leg, back_ms).of({"": list(alert_ids)})
    if not found:
        raise NotFound(f"{flow.ALERTS.name} holds none of the incident's alerts")
    return found[""]


@dataclass(slots=True)
class _Incident:
    """What is known of an incident before the log is read."""

    name: str
    opening: alert_pb2.Alert
    """The first alert."""
    told: Sequence[Told]
    """All alerts about the wearer from well before it."""
    from_wall_ms: int = 0
    first: int = 0
    """Where its window begins in the log, and where it ends."""
    last: int = 0
    opened: bool = False
    """The log still has the entry that the first alert is of."""

    @property
    def alerts(self) -> list[Told]:
        """Those of this incident."""
        return [(one, message) for one, message in self.told if one.incident_id == self.opening.incident_id]

    @property
    def ended(self) -> bool:
        """The alert that ends it is among them."""
        return any(one.incident_ends for one, _ in self.alerts)


class EvidenceCollector:
    """One pass. `rest` is how many seconds it sleeps for each second that it works, so that others get theirs."""

    def __init__(
        self, bus: Bus, log_meta: LogMetadata, leg: str, back_ms: int | None = LOOK_BACK_MS, rest: float = 0.0
    ) -> None:
        self._bus, self._log_meta, self._leg, self._back_ms, self._rest = bus, log_meta, leg, back_ms, rest

    async def of(self, alert_ids: Mapping[str, Sequence[str]]) -> dict[str, Evidence]:
        """The evidence of incidents, each by a name and some of its alerts; those whose alerts are gone are left out.

        Raises Unavailable where the server doesn't answer.
        """
        known: dict[str, alert_pb2.Alert] = {}
        for name, ids in alert_ids.items():
            stored = [alert for id_ in ids if (alert := await self._stored_alert(id_))]
            if stored:
                known[name] = min(stored, key=lambda one: one.sequence)
        incidents = await self._incidents(known)
        found: dict[str, Evidence] = {}
        for partition in sorted({incident.opening.partition for incident in incidents}):
            found |= await self._partition(
                partition, [incident for incident in incidents if incident.opening.partition == partition]
            )
        return found

    async def _partition(self, partition: int, incidents: Sequence[_Incident]) -> dict[str, Evidence]:
        stream = flow.log_stream(partition)
        bounds = await self._bus.bounds_of(stream)
        windows = []
        holders = Holders(self._log_meta.clock)
        for incident in incidents:
            await self._place(incident, stream, bounds)
            decided = {alert.sequence for alert, _ in incident.told if alert.wearer_id == incident.opening.wearer_id}
            share = RedactedLog(incident.opening.wearer_id, self._leg, decided, holders)
            windows.append(Window(incident.first, incident.last, share))
        first, last = min(window.first for window in windows), max(window.last for window in windows)
        await self._read_log_meta(partition, bounds, list(zip(incidents, windows, strict=True)), holders)
        shares = Shares(windows)
        async for message in self._between(stream, first, last):
            shares.take(message)
        letters = await self._dead_letters(stream, incidents, windows)
        return {
            incident.name: await self._evidence(incident, window.share, bounds, letters)
            for incident, window in zip(incidents, windows, strict=True)
        }

    async def _place(self, incident: _Incident, stream: str, bounds: Bounds) -> None:
        opened = await message_of(self._bus, stream, seq=incident.opening.sequence)
        incident.opened = opened is not None
        if opened and self._back_ms is not None:
            incident.from_wall_ms = opened.stamp_ms - self._back_ms // self._log_meta.clock.rate
        incident.first = await first_at(self._bus, stream, incident.from_wall_ms)
        incident.last = (
            min(max(alert.sequence for alert, _ in incident.told), bounds.last) if incident.ended else bounds.last
        )

    async def _evidence(
        self, incident: _Incident, share: RedactedLog, bounds: Bounds, letters: Mapping[int, Sequence[StoredMessage]]
    ) -> Evidence:
        records = [*share.records]
        for record in share.records:
            records += [it for it in letters.get(record.sequence, ()) if it.stamp_ms >= incident.from_wall_ms]
        for alert, message in incident.alerts:
            if shown := _alert_for(self._leg, alert, message):
                records.append(shown)
                if self._leg == "police" and (figures := await self._figures(alert)):
                    records.append(figures)
        return Evidence(
            incident_id=incident.opening.incident_id,
            leg=self._leg,
            wearer_id=incident.opening.wearer_id,
            order_ids=tuple(sorted({alert.order_id for alert, _ in incident.alerts})),
            person_ids=tuple(sorted(share.person_ids)),
            partition=incident.opening.partition,
            window_stamp_ms=incident.from_wall_ms,
            # Where its first entry is younger than the window, the log either began then or has lost what was before.
            whole=bounds.first == 1 or (incident.opened and incident.first > bounds.first),
            ended=incident.ended,
            records=tuple(sorted(records, key=lambda it: (it.stream, it.sequence))),
        )

    # ── ALERTS ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _incidents(self, known: Mapping[str, alert_pb2.Alert]) -> list[_Incident]:
        """The incidents to which alerts belong, each with its first alert.

        What only warns may have opened one long before a desk was told, and isn't known to the leg.
        """
        found: list[_Incident] = []
        left = dict(known)
        while left:
            told = await self._alerts(left)
            for name, alert in list(left.items()):
                mine = [one for one, _ in told[name] if one.incident_id == alert.incident_id]
                left[name] = min(mine, key=lambda one: one.sequence)
                if left[name].sequence == alert.sequence:
                    found.append(_Incident(name, left.pop(name), told[name]))
        return found

    async def _alerts(self, known: Mapping[str, alert_pb2.Alert]) -> dict[str, list[Told]]:
        """By incident, alerts about the wearer from well before a known one until the incident's end, or until now, and those of the
        incident that amend an account after its end."""
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
        found: dict[str, list[Told]] = {name: [] for name in known}
        over: set[str] = set()
        async for message in self._between(stream, first, last):
            if not flow.ALERTS.holds(message.subject):
                continue
            try:
                alert = stored.alert(message.data, message.subject)
            except InvalidField:
                continue  # a dead letter of the legs; it belongs to no incident
            for name in about.get((alert.partition, alert.wearer_id), ()):
                mine = alert.incident_id == known[name].incident_id
                if (mine or name not in over) and message.stamp_ms >= from_wall_ms[name]:
                    found[name].append((alert, message))
                    if alert.incident_ends and mine:
                        over.add(name)
        return found

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

    async def _figures(self, alert: alert_pb2.Alert) -> StoredMessage | None:
        subject = flow.measure_subject(alert.partition, alert.alert_id)
        return await message_of(self._bus, flow.MEASURES.name, last_by_subj=subject)

    # ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_log_meta(
        self, partition: int, bounds: Bounds, those: Sequence[tuple[_Incident, Window]], holders: Holders
    ) -> None:
        """Notes whose devices are whose, and takes the newest snapshot of each of a wearer's cases, the rules and the fold's
        version as they stood before the window, where the log has anything from before it."""
        stream = flow.log_stream(partition)
        back_ms = PREMISES_BACK_MS // self._log_meta.clock.rate
        of_wearer: dict[str, list[Window]] = {}
        for _, window in those:
            of_wearer.setdefault(window.share.wearer_id, []).append(window)
        later = [(one, window) for one, window in those if window.first > bounds.first]
        newest: dict[int, dict[str, pull.Delivered]] = {id(window): {} for _, window in later}
        daily = min(
            [await first_at(self._bus, stream, one.from_wall_ms - back_ms) for one, _ in later]
            or [min(window.first for _, window in those)]
        )
        last = max(window.last for _, window in those)
        async for message in self._between(stream, daily, last, flow.log_subject(partition, "case")):
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
            async for message in self._between(stream, first, before, flow.log_subject(partition, kind)):
                for _, window in later:
                    if message.sequence < window.first:
                        newest[id(window)][f" {kind}"] = message  # no case is called that
        for _, window in later:
            stood = sorted(newest[id(window)].values(), key=lambda one: one.sequence)
            for message in stood:
                if (entry := entry_of(message.data)).HasField("case"):
                    window.share.see_case(entry.case)
            for message in stood:
                window.share.take_premise(message)

    async def _dead_letters(
        self, log: str, incidents: Sequence[_Incident], windows: Sequence[Window]
    ) -> dict[int, list[StoredMessage]]:
        """What was set aside of the entries that are taken, by their sequence."""
        stream = flow.DEAD_LETTERS.name
        sequences = {record.sequence for window in windows for record in window.share.records}
        found: dict[int, list[StoredMessage]] = {}
        first = await first_at(self._bus, stream, min(incident.from_wall_ms for incident in incidents))
        async for message in self._between(stream, first, (await self._bus.bounds_of(stream)).last):
            try:
                dead_letter = stored.dead_letter(message.data, message.subject)
            except InvalidField as error:
                dead_letters.pass_over("evidence", stream, message.sequence, error)
                continue
            if dead_letter.by == flow.FOLD_READER and dead_letter.stream == log and dead_letter.sequence in sequences:
                found.setdefault(dead_letter.sequence, []).append(record_of(message))
        return found

    async def _between(
        self, stream: str, first: int, last: int, subject: str | None = None
    ) -> AsyncIterator[pull.Delivered]:
        """Messages from `first` to `last`, of one subject or of all; ends although nothing comes any more."""
        if subject is not None:
            newest = await message_of(self._bus, stream, last_by_subj=subject)
            last = min(last, newest.sequence if newest else 0)
        if first > last:
            return
        count = 0
        began_s = time.monotonic()
        async for messages in pull.read(self._bus, stream, first, (subject,) if subject else (), _READ_BATCH):
            for message in messages:
                if message.sequence <= last:
                    yield message
                count += 1
                if count % _REST_EVERY == 0:
                    # Whoever shares this loop has offers to make.
                    await asyncio.sleep((time.monotonic() - began_s) * self._rest)
                    began_s = time.monotonic()
            if messages[-1].sequence >= last:
                return


async def first_at(bus: Bus, stream: str, wall_ms: int) -> int:
    """The first sequence of a stream whose stamp is at least this; one behind its last where there is none."""
    bounds = await bus.bounds_of(stream)
    low, high = bounds.first, bounds.last + 1
    middle = low  # in most streams nothing is older than what is asked for
    while low < high and wall_ms > 0:
        message = await message_of(bus, stream, seq=middle)
        if message is None or message.stamp_ms < wall_ms:
            low = middle + 1
        else:
            high = middle
        middle = (low + high) // 2
    return low


async def message_of(bus: Bus, stream: str, **which: str | int) -> StoredMessage | None:
    """One message, by `seq` or `last_by_subj`; None where there is none (any more). Raises Unavailable."""
    try:
        told = (await bus.api(f"STREAM.MSG.GET.{stream}", which))["message"]
    except NotFound:
        return None
    stamp = datetime.fromisoformat(told["time"])
    stamp_ms = (stamp - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return StoredMessage(stream, told["seq"], stamp_ms, told["subject"], base64.b64decode(told.get("data", "")))


def _alert_for(leg: str, alert: alert_pb2.Alert, message: pull.Delivered) -> StoredMessage | None:
    record = record_of(message)
    if leg == "police":
        return record
    if not alert.incident_ends and all(destination.leg != alert_pb2.PROBATION for destination in alert.destinations):
        return None  # what a protective device says is the police's alone
    if not alert.HasField("cause") or alert.cause.of_wearer:
        return record
    cut = alert_pb2.Alert()
    cut.CopyFrom(alert)
    cut.ClearField("cause")
    return StoredMessage(
        record.stream,
        record.sequence,
        record.stamp_ms,
        record.subject,
        cut.SerializeToString(deterministic=True),
        cut=True,
    )

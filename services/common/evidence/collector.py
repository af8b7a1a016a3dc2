"""Collects the evidence of incidents from the streams, for one agency, and keeps copies of it on the leg's disk.

Several incidents share one pass through each stream.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from services.common.errors import InvalidField, NotFound
from services.common.evidence import model
from services.common.evidence.incidents import LOOK_BACK_MS, FoundIncident, IncidentFinder
from services.common.evidence.model import Evidence, StoredMessage
from services.common.evidence.prior_state import IncidentWindow, PriorStateReader
from services.common.evidence.redaction import Holders, RedactedLog, Shares, Window, record_of
from services.common.evidence.streams import RangeReader, first_at, message_of
from services.common.messaging import dead_letters, flow, pull, stored
from services.common.messaging.bus import Bounds, Bus
from services.common.messaging.streams import LogMetadata
from services.common.priority import PriorityGate
from services.common.storage import stored_files
from tandem.common.v1 import alert_pb2


async def collect(
    bus: Bus,
    log_meta: LogMetadata,
    alert_ids: Iterable[str],
    *,
    leg: str,
    may_locate_person: bool,
    back_ms: int | None = LOOK_BACK_MS,
) -> Evidence:
    """Collects the evidence of the incident to which these alerts belong, up to now.

    `back_ms` is how long before the first alert the window begins, mesh time; None for the start of the log.
    Raises NotFound if ALERTS holds none of the alerts, Unavailable if the server doesn't answer.
    """
    by_name = await EvidenceCollector(bus, log_meta, leg, may_locate_person=may_locate_person, back_ms=back_ms).of(
        {"": list(alert_ids)}
    )
    if not by_name:
        raise NotFound(f"{flow.ALERTS.name} holds none of the incident's alerts")
    return by_name[""]


class EvidenceCollector:
    """Collects evidence in one pass through the streams, for the agency of one leg.

    `may_locate_person` says whether the agency may know where the protected persons are: only the police may. `sleep_ratio` and `gate`
    are those of `RangeReader`.
    """

    def __init__(
        self,
        bus: Bus,
        log_meta: LogMetadata,
        leg: str,
        *,
        may_locate_person: bool,
        back_ms: int | None = LOOK_BACK_MS,
        sleep_ratio: float = 0.0,
        gate: PriorityGate | None = None,
    ) -> None:
        self._bus, self._log_meta = bus, log_meta
        self._leg = leg
        self._may_locate_person = may_locate_person
        self._back_ms = back_ms
        self._reader = RangeReader(bus, sleep_ratio, gate)

    async def of(self, alert_ids: Mapping[str, Sequence[str]]) -> dict[str, Evidence]:
        """Returns the evidence of incidents by name. `alert_ids` has some alert ids of each incident, by the same name.

        An incident is left out if ALERTS no longer holds any of its alerts. Raises Unavailable if the server doesn't answer.
        """
        incidents = await IncidentFinder(self._reader, self._log_meta).find(alert_ids)
        evidence: dict[str, Evidence] = {}
        for partition in sorted({incident.opening.partition for incident in incidents}):
            evidence |= await self._partition(
                partition, [incident for incident in incidents if incident.opening.partition == partition]
            )
        return evidence

    async def _partition(self, partition: int, incidents: Sequence[FoundIncident]) -> dict[str, Evidence]:
        stream, holders = flow.log_stream(partition), Holders(self._log_meta.clock)
        bounds = await self._bus.bounds_of(stream)
        windows = [await self._window(incident, stream, bounds, holders=holders) for incident in incidents]
        prior_state = PriorStateReader(self._reader, self._log_meta, partition, bounds=bounds, holders=holders)
        await prior_state.add_to(windows)
        await self._read_log(stream, [window.entries for window in windows])
        letters = await self._dead_letters(stream, windows)
        return {window.incident.name: await self._evidence(window, bounds, letters) for window in windows}

    async def _window(
        self, incident: FoundIncident, stream: str, bounds: Bounds, *, holders: Holders
    ) -> IncidentWindow:
        cause = await message_of(self._bus, stream, seq=incident.opening.sequence)
        from_wall_ms = 0
        if cause and self._back_ms is not None:
            from_wall_ms = cause.stamp_ms - self._back_ms // self._log_meta.clock.rate
        last = bounds.last
        if incident.ended:
            last = min(max(alert.sequence for alert, _ in incident.wearer_alerts), last)
        wearer_id = incident.opening.wearer_id
        decided = {alert.sequence for alert, _ in incident.wearer_alerts if alert.wearer_id == wearer_id}
        share = RedactedLog(wearer_id, decided, may_locate_person=self._may_locate_person, holders=holders)
        return IncidentWindow(
            incident=incident,
            entries=Window(await first_at(self._bus, stream, from_wall_ms), last, share),
            from_wall_ms=from_wall_ms,
            opened=cause is not None,
        )

    async def _read_log(self, stream: str, windows: Sequence[Window]) -> None:
        shares = Shares(windows)
        first, last = min(window.first for window in windows), max(window.last for window in windows)
        async for message in self._reader.between(stream, first, last):
            shares.consume(message)

    async def _evidence(
        self, window: IncidentWindow, bounds: Bounds, letters: Mapping[int, Sequence[StoredMessage]]
    ) -> Evidence:
        incident, share = window.incident, window.entries.share
        records = [*share.records]
        for record in share.records:
            records += [letter for letter in letters.get(record.sequence, ()) if letter.stamp_ms >= window.from_wall_ms]
        for alert, message in incident.alerts:
            if shown := _shown(alert, message, may_locate_person=self._may_locate_person):
                records.append(shown)
                if self._may_locate_person and (measure := await self._measure(alert)):
                    records.append(measure)
        return Evidence(
            incident_id=incident.opening.incident_id,
            leg=self._leg,
            wearer_id=incident.opening.wearer_id,
            order_ids=tuple(sorted({alert.order_id for alert, _ in incident.alerts})),
            person_ids=tuple(sorted(share.person_ids)),
            partition=incident.opening.partition,
            window_stamp_ms=window.from_wall_ms,
            # If the log's first entry is inside the window, the log has lost earlier entries, unless it began with that entry.
            whole=bounds.first == 1 or (window.opened and window.entries.first > bounds.first),
            ended=incident.ended,
            records=tuple(sorted(records, key=lambda record: (record.stream, record.sequence))),
        )

    async def _measure(self, alert: alert_pb2.Alert) -> StoredMessage | None:
        subject = flow.measure_subject(alert.partition, alert.alert_id)
        return await message_of(self._bus, flow.MEASURES.name, last_by_subj=subject)

    async def _dead_letters(self, log: str, windows: Sequence[IncidentWindow]) -> dict[int, list[StoredMessage]]:
        """Returns the dead letters of the collected log entries, by the sequence of the entry."""
        stream = flow.DEAD_LETTERS.name
        sequences = {record.sequence for window in windows for record in window.entries.share.records}
        letters: dict[int, list[StoredMessage]] = {}
        first = await first_at(self._bus, stream, min(window.from_wall_ms for window in windows))
        async for message in self._reader.between(stream, first, (await self._bus.bounds_of(stream)).last):
            try:
                dead_letter = stored.dead_letter(message.data, message.subject)
            except InvalidField as error:
                dead_letters.pass_over(self._bus, "evidence", stream, sequence=message.sequence, error=error)
                continue
            if dead_letter.by == flow.FOLD_READER and dead_letter.stream == log and dead_letter.sequence in sequences:
                letters.setdefault(dead_letter.sequence, []).append(record_of(message))
        return letters


def _shown(alert: alert_pb2.Alert, message: pull.Delivered, *, may_locate_person: bool) -> StoredMessage | None:
    """The record of an alert for an agency; None if the agency may not have the alert."""
    record = record_of(message)
    if may_locate_person:
        return record
    if not alert.incident_ends and all(destination.leg != alert_pb2.PROBATION for destination in alert.destinations):
        return None  # only the police may have the reports of a protective device
    if not alert.HasField("cause") or alert.cause.of_wearer:
        return record
    redacted = alert_pb2.Alert()
    redacted.CopyFrom(alert)
    redacted.ClearField("cause")
    return replace(record, data=redacted.SerializeToString(deterministic=True), cut=True)


# ── copies on the disk ────────────────────────────────────────────────────────────────────────────────────────────────

_UNREADABLE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError)
"""Errors of a file that is damaged or may not be read."""


class CopyMoment(StrEnum):
    """Moments at which the evidence of an incident is copied, the earliest first."""

    OPENED = "opened"
    """The incident is open. The copy is renewed while it stays open."""
    CLOSED = "closed"
    AMENDED = "amended"
    """Late reports amended an account after the end of the incident."""


class EvidenceFiles:
    """Copies of evidence on disk, one file per incident and moment. Writes are atomic; only the owner may read the files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, incident_id: str, moment: CopyMoment) -> bool:
        """Whether the copy of an incident at a moment exists."""
        return self._path(incident_id, moment).exists()

    def load(self, incident_id: str) -> list[Evidence]:
        """Loads all copies of an incident, the earliest first."""
        return [self._read(incident_id, moment) for moment in CopyMoment if self.has(incident_id, moment)]

    def has_alert(self, incident_id: str, moment: CopyMoment, alert_id: str) -> bool:
        """Whether the copy of an incident at a moment exists, can be read and holds this alert. If not, `save` says why."""
        if not self.has(incident_id, moment):
            return False
        try:
            alerts = self._read(incident_id, moment).of(flow.ALERTS.name)
        except _UNREADABLE:
            return False
        return any(record.subject.endswith(f".{alert_id}") for record in alerts)

    def save(self, moment: CopyMoment, evidence: Evidence) -> None:
        """Writes the copy of an incident at a moment durably. Raises OSError.

        An earlier copy at this moment is merged in, because the streams may have lost some of its records since.
        """
        if self.has(evidence.incident_id, moment):
            evidence = model.merged([self._read(evidence.incident_id, moment), evidence])
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stored_files.write(self._path(evidence.incident_id, moment), gzip.compress(evidence.to_bytes(), mtime=0))

    def _read(self, incident_id: str, moment: CopyMoment) -> Evidence:
        return model.of_bytes(gzip.decompress(self._path(incident_id, moment).read_bytes()))

    def _path(self, incident_id: str, moment: CopyMoment) -> Path:
        return self._folder / f"{incident_id}.{moment}.jsonl.gz"

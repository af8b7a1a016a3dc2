"""gRPC service of evidence: the leg's desk or a reviewer reads the copy of an incident's evidence that the leg keeps.

A reader gets the leg's copies, and what the copies lack, collected from the streams at once. A map gets a copy as tracks, cases and
alerts; nothing but the copy is read for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial

from services.common import fields, ids
from services.common.clock import MeshClock
from services.common.errors import InvalidField, NotFound, PermissionDenied, TandemError, Unavailable
from services.common.evidence import model
from services.common.evidence.collector import CopyMoment, EvidenceCollector, EvidenceFiles
from services.common.evidence.model import MARK_SUBJECT, Evidence, StoredMessage
from services.common.evidence.redaction import entry_of
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.common.observability.telemetry import logger
from services.common.privacy.disclosures import PURPOSES
from services.common.privacy.grounds import Grounds, RecordKind, check_grounds
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.dispatch.domain.leg import Leg
from services.dispatch.evidence.retention import EvidenceRetention
from services.dispatch.leg import roster
from services.dispatch.leg.api import Context, admit
from services.dispatch.leg.publications import LegDisclosures
from services.dispatch.leg.roster import UnitPosition
from services.dispatch.leg.store import Store
from tandem.common.v1 import alert_pb2, ledger_pb2, log_pb2, presence_pb2
from tandem.dispatch.v1 import evidence_pb2, evidence_pb2_grpc, unit_track_pb2
from tandem.registry.v1 import disclosure_pb2

PART_BYTES = 64 << 10
"""Size of a part of a download, bytes. A part ends with the line that reaches this size."""


class EvidenceApi(evidence_pb2_grpc.EvidenceServiceServicer):
    """EvidenceService of one leg."""

    def __init__(self, leg: Leg, clock: MeshClock, *, store: Store) -> None:
        self._leg = leg
        self._clock = clock
        self._store = store
        self._disclosures = LegDisclosures(leg, store)
        self._bus: Bus | None = None
        self._reading: EvidenceReading | None = None

    def connected(self, bus: Bus, source: EvidenceReading | None) -> None:
        """Sets the bus on which disclosures are published, and the source of evidence; None if the leg keeps none."""
        self._bus, self._reading = bus, source

    async def ReadEvidence(
        self, request: evidence_pb2.ReadEvidenceRequest, context: Context
    ) -> evidence_pb2.ReadEvidenceResponse:
        """Returns the evidence of an incident as far as it is known now, after the disclosure is stored."""
        evidence = await self._disclosed("read", request.incident_id, request.grounds, within_s=COLLECTED_WITHIN_S)
        response = await asyncio.to_thread(_view_message, evidence, self._clock)
        units = await self._store.reading_history(partial(roster.read_tracks, incident_id=request.incident_id))
        response.units.extend(_tracks_message(units))
        return response

    async def DownloadEvidence(
        self, request: evidence_pb2.DownloadEvidenceRequest, context: Context
    ) -> AsyncIterator[evidence_pb2.DownloadEvidenceResponse]:
        """Streams the evidence of an incident in parts, after the disclosure is stored."""
        evidence = await self._disclosed(
            "download", request.incident_id, request.grounds, within_s=DOWNLOAD_COLLECTED_WITHIN_S
        )
        part = bytearray()
        for line in evidence.to_lines():
            part += line
            if len(part) >= PART_BYTES:
                yield evidence_pb2.DownloadEvidenceResponse(data=bytes(part))
                part.clear()
        if part:
            yield evidence_pb2.DownloadEvidenceResponse(data=bytes(part))

    async def _disclosed(
        self, action: str, incident_id: str, requested: disclosure_pb2.Grounds, *, within_s: float
    ) -> Evidence:
        """Returns the evidence of an incident, after the disclosure is on disk in DISCLOSURES.

        Raises NotFound, InvalidField, PermissionDenied or Unavailable.
        """
        if not self._leg.policy.keeps_evidence:
            raise PermissionDenied(f"the {self._leg} leg keeps no evidence")
        admit(self._leg, Role.ROLE_REVIEWER)
        fields.required_id("incident_id", incident_id)
        now_ms = self._clock.now_ms()
        grounds = self._grounds(requested, incident_id, now_ms)
        if self._reading is None:
            raise Unavailable("the evidence can't be read: no connection to NATS")
        copies = await self._reading.read(incident_id, within_s)
        if not copies:
            raise NotFound("this leg knows no such incident; check incident_id")
        evidence = model.merged(copies)
        await self._record(action, evidence, grounds, now_ms=now_ms)
        return evidence

    def _grounds(self, requested: disclosure_pb2.Grounds, incident_id: str, now_ms: int) -> Grounds:
        kinds = (
            (RecordKind.WEARER, RecordKind.PROTECTED_PERSON)
            if self._leg.policy.may_locate_person
            else (RecordKind.WEARER,)
        )
        try:
            for kind in kinds:
                check_grounds(
                    requested.legal_basis,
                    PURPOSES.get(requested.purpose),
                    requested.reference,
                    kind=kind,
                    now_ms=now_ms,
                )
            return check_grounds(
                requested.legal_basis,
                PURPOSES.get(requested.purpose),
                incident_id,
                kind=RecordKind.WEARER,
                now_ms=now_ms,
            )
        except InvalidField as error:
            raise error.under("grounds") from None

    async def _record(self, action: str, evidence: Evidence, grounds: Grounds, *, now_ms: int) -> None:
        """Stores one disclosure for each pair of an order and a person whose positions the copy holds.

        Raises Unavailable if a disclosure can't be stored.
        """
        if self._bus is None:
            raise Unavailable("the disclosure can't be recorded: no connection to NATS")
        disclosures = [
            _disclosure(action, evidence, grounds, order_id=order_id, kind=kind, record_id=record_id, now_ms=now_ms)
            for order_id in evidence.order_ids
            for kind, record_id in self._shown(evidence)
        ]
        await self._disclosures.record(self._bus, disclosures)

    def _shown(self, evidence: Evidence) -> list[tuple[RecordKind, str]]:
        """Returns kind and id of each person whose positions the copy holds."""
        shown = [(RecordKind.WEARER, evidence.wearer_id)]
        if self._leg.policy.may_locate_person:
            shown += [(RecordKind.PROTECTED_PERSON, person_id) for person_id in evidence.person_ids]
        return shown


def _disclosure(
    action: str,
    evidence: Evidence,
    grounds: Grounds,
    *,
    order_id: str,
    kind: RecordKind,
    record_id: str,
    now_ms: int,
) -> ledger_pb2.Disclosure:
    who = server.caller().spiffe_id
    return ledger_pb2.Disclosure(
        disclosure_id=ids.hash_id(
            "evidence", action, who, evidence.incident_id, order_id, kind.value, record_id, now_ms
        ),
        at_ms=now_ms,
        who=who,
        legal_basis=grounds.legal_basis,
        purpose=grounds.purpose.value,
        reference=evidence.incident_id,
        record_kind=kind.value,
        record_id=record_id,
        order_id=order_id,
        recipient=who,
    )


COLLECTED_WITHIN_S = 3.0
"""Maximum time that a unary call waits for the streams, seconds. The call ends after 5 s (rpc.server.UNARY_DEADLINE_S)."""
DOWNLOAD_COLLECTED_WITHIN_S = 120.0
"""Maximum time that a download waits for the streams, seconds. A download has no deadline of its own."""
FRESH_S = 30.0
"""Time for which collected evidence counts as fresh, seconds. A caller who was told to retry then gets it from the file."""
SLEEP_RATIO = 1.0
"""Seconds of sleep per second of work. A person waits for the answer, but offers come first."""


class EvidenceReading:
    """Reads the evidence of one leg's incidents. One incident is collected at a time, however many readers wait."""

    def __init__(
        self, leg: Leg, bus: Bus, log_meta: LogMetadata, *, files: EvidenceFiles, retention: EvidenceRetention
    ) -> None:
        self._files, self._retention = files, retention
        # Without the gate: the caller may hold a place at the gate for its whole call, and would wait for itself.
        self._collector = EvidenceCollector(
            bus, log_meta, leg, may_locate_person=leg.policy.may_locate_person, sleep_ratio=SLEEP_RATIO
        )
        self._one_at_a_time = asyncio.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}
        """Collections that run or wait for their turn, by incident id."""
        self._given_up: set[str] = set()
        """Ids of incidents whose collection runs on although a caller gave up waiting for it."""
        self._fresh_until_s: dict[str, float] = {}
        """Until when the file of such an incident counts as fresh, by the event loop's clock, seconds."""

    async def read(self, incident_id: str, within_s: float) -> list[Evidence]:
        """Copies of an incident with all that is known now, the earliest first; empty if the leg knows no such incident.

        Raises Unavailable if collecting takes longer than `within_s`, seconds. Collecting goes on, so a retry finds the result.
        """
        await self._retention.schedule()
        if self._retention.lacks(incident_id) and not self._is_fresh(incident_id):
            await self._collected(incident_id, within_s)
        return await asyncio.to_thread(self._files.load, incident_id)

    def _is_fresh(self, incident_id: str) -> bool:
        now_s = asyncio.get_running_loop().time()
        self._fresh_until_s = {id_: until_s for id_, until_s in self._fresh_until_s.items() if until_s > now_s}
        return incident_id in self._fresh_until_s

    async def _collected(self, incident_id: str, within_s: float) -> None:
        running = self._running.get(incident_id)
        if running is None:
            running = self._running[incident_id] = asyncio.create_task(self._collect(incident_id))
            running.add_done_callback(lambda task: self._note_done(incident_id, task))
        try:
            async with asyncio.timeout(within_s):
                await asyncio.shield(running)
        except TimeoutError:
            self._given_up.add(incident_id)
            reason = "the incident's evidence is being collected from the log; retry in a few seconds"
            raise Unavailable(reason, retry_after_s=COLLECTED_WITHIN_S) from None

    async def _collect(self, incident_id: str) -> None:
        async with self._one_at_a_time:
            evidence = (await self._retention.collect([incident_id], self._collector)).get(incident_id)
            if evidence is not None:
                # Retention makes the final copies, after a delay for records that are stored late.
                await asyncio.to_thread(self._files.save, CopyMoment.OPENED, evidence)

    def _note_done(self, incident_id: str, task: asyncio.Task[None]) -> None:
        del self._running[incident_id]
        given_up = incident_id in self._given_up
        self._given_up.discard(incident_id)
        if task.cancelled():
            return
        if error := task.exception():
            reason = error.reason if isinstance(error, TandemError) else type(error).__name__
            logger().error("evidence_not_collected", incident_id=incident_id, reason=reason)
        elif given_up:
            self._fresh_until_s[incident_id] = asyncio.get_running_loop().time() + FRESH_S


def _view_message(evidence: Evidence, clock: MeshClock) -> evidence_pb2.ReadEvidenceResponse:
    """Converts a copy of evidence to a response. The times in the response are mesh time."""
    response = evidence_pb2.ReadEvidenceResponse(whole=evidence.whole, ended=evidence.ended)
    cases: dict[str, log_pb2.CaseSnapshot] = {}
    points: dict[str, dict[str, evidence_pb2.TrackPoint]] = {}
    for record in sorted(evidence.of(flow.log_stream(evidence.partition)), key=lambda record: record.sequence):
        if record.subject == MARK_SUBJECT:
            continue
        entry = entry_of(record.data)
        match entry.WhichOneof("body"):
            case "case":
                cases[entry.case.case_id] = _without_contacts(entry.case)
            case "rules":
                response.rules.CopyFrom(entry.rules)
            case "positions":
                _add_points(points, entry.positions, record, arrived_ms=clock.to_mesh_ms(record.stamp_ms))
    response.cases.extend(cases.values())
    owners = _owners(cases.values())
    for device_id, by_report in points.items():
        subject_id, of_wearer = owners.get(device_id, ("", False))
        response.tracks.add(device_id=device_id, subject_id=subject_id, of_wearer=of_wearer, points=by_report.values())
    alerts = [alert_pb2.Alert.FromString(record.data) for record in evidence.of(flow.ALERTS.name)]
    mine = [alert for alert in alerts if alert.incident_id == evidence.incident_id]
    response.alerts.extend(sorted(mine, key=lambda alert: (alert.sequence, alert.ordinal)))
    known = {alert.alert_id for alert in mine}
    measures = (alert_pb2.Measure.FromString(record.data) for record in evidence.of(flow.MEASURES.name))
    response.measures.extend(measure for measure in measures if measure.alert_id in known)
    return response


def _tracks_message(units: Mapping[str, Sequence[UnitPosition]]) -> list[unit_track_pb2.UnitTrack]:
    """Converts the positions of units, by unit id, to messages."""
    return [
        unit_track_pb2.UnitTrack(
            unit_id=unit_id,
            points=[
                unit_track_pb2.UnitTrackPoint(time_ms=at.at_ms, lat_deg=at.point.lat_deg, lon_deg=at.point.lon_deg)
                for at in positions
            ],
        )
        for unit_id, positions in units.items()
    ]


def _add_points(
    points: dict[str, dict[str, evidence_pb2.TrackPoint]],
    batch: log_pb2.PositionBatch,
    record: StoredMessage,
    *,
    arrived_ms: int,
) -> None:
    for i, device_id in enumerate(batch.device_id):
        try:
            point = evidence_pb2.TrackPoint(
                time_ms=min(batch.fix_time_ms[i], arrived_ms),
                arrived_ms=arrived_ms,
                lat_deg=batch.lat_e7[i] / 1e7,
                lon_deg=batch.lon_e7[i] / 1e7,
                accuracy_m=batch.accuracy_mm[i] / 1000,
                sequence=record.sequence,
                source=batch.source[i] if batch.source else presence_pb2.POSITION_SOURCE_UNSPECIFIED,
            )
            report_id = batch.report_id[i]
        except IndexError:
            return  # columns of different lengths: the fold made the batch a dead letter
        points.setdefault(device_id, {}).setdefault(report_id, point)


def _owners(cases: Iterable[log_pb2.CaseSnapshot]) -> dict[str, tuple[str, bool]]:
    """Returns the owner of each device, by device id: the owner's id, and whether the owner is the wearer."""
    owners: dict[str, tuple[str, bool]] = {}
    for case in cases:
        owners |= {id_: (case.wearer_id, True) for id_ in case.tag_device_ids}
        owners |= {id_: (person.person_id, False) for person in case.persons for id_ in person.device_ids}
    return owners


def _without_contacts(case: log_pb2.CaseSnapshot) -> log_pb2.CaseSnapshot:
    kept = log_pb2.CaseSnapshot()
    kept.CopyFrom(case)
    for person in kept.persons:
        person.ClearField("sealed_contact")
    return kept

"""Facts of one incident from a verified evidence bundle: order, alerts, steps of the legs, tracks and equipment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.common import times
from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.common.evidence.model import MARK_SUBJECT, StoredMessage
from services.common.messaging import flow
from services.court.evidence.bundle import Verified
from services.court.evidence.leg_records import Shown
from services.geofence import translate
from services.geofence.domain.entries import EquipmentReport, Positions
from tandem.common.v1 import alert_pb2, log_pb2

MS_PER_M = 1000
"""Millimetres per metre, for accuracies of the log."""


class ReportedPosition(NamedTuple):
    """A position that a device reported."""

    time_ms: int
    """Time of the fix, but not later than its arrival; mesh time."""
    arrived_ms: int
    """When the position came into the log, mesh time."""
    lat_deg: float
    lon_deg: float
    accuracy_m: float
    sequence: int
    """Entry of the log that holds the position."""
    report_id: str


class EquipmentFact(NamedTuple):
    """An equipment event of a device."""

    at_ms: int
    """Time by the device's clock, but not later than its arrival; mesh time."""
    device_id: str
    kind: str
    """Name in tandem.common.v1.EquipmentKind."""


class DecidedAlert(NamedTuple):
    """An alert of the incident with its figures."""

    alert: alert_pb2.Alert
    measure: alert_pb2.Measure | None
    """None if the bundle holds no figures, as probation's doesn't."""
    without_departure: bool = False
    """The alert clears a ring because a record changed or the order ended. No position shows that the wearer left the ring. Before
    fold version 17 the figures have a distance all the same, the ring's radius."""

    @property
    def at_ms(self) -> int:
        """The moment that the alert is about, mesh time."""
        return times.from_timestamp(self.alert.at)

    @property
    def decided_ms(self) -> int:
        """When the alert was decided, mesh time."""
        return times.from_timestamp(self.alert.decided_at)


class LegStep(NamedTuple):
    """A step in the record of one leg."""

    leg: str
    at_ms: int
    kind: str
    """Stored name of the event."""
    subject_id: str
    """Who or what the assignment is about; empty if the chain doesn't show it."""
    by: str
    """SPIFFE id of the person or device that answered; empty if nobody did."""
    body: Mapping[str, Any]
    unit: str = ""
    """Unit of the roster that the step asks, or that answers by it; empty for a desk."""


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A device of the wearer or of a protected person, and its reports in the bundle."""

    device_id: str
    subject_id: str
    of_wearer: bool
    fixes: Sequence[ReportedPosition]
    """Positions by time."""
    equipment: Sequence[EquipmentFact]
    """Equipment events by time."""


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """All that a report states about an incident."""

    manifest: Mapping[str, Any]
    replayed: str
    """Result of the refold: SAME, DIFFERENT, or NOT_IN_BUNDLE if the bundle lacks the protected persons' positions."""
    differences: Sequence[str]
    public_key: str
    """Public key of the signature, hex."""
    cases: Sequence[log_pb2.CaseSnapshot]
    """Newest snapshot of each joint case of the incident, by order."""
    alerts: Sequence[DecidedAlert]
    """Alerts of the incident, in the order of the log."""
    steps: Sequence[LegStep]
    """Steps of all legs, by time."""
    devices: Sequence[DeviceRecord]
    """Devices of the wearer, then those of the protected persons."""
    entries: int
    """Number of log entries in the bundle."""

    @property
    def began_ms(self) -> int:
        """The first moment of the incident, mesh time. Late evidence of hours before doesn't begin it earlier."""
        moments = [
            fact.decided_ms if fact.alert.kind == alert_pb2.LATE_EVIDENCE else min(fact.at_ms, fact.decided_ms)
            for fact in self.alerts
        ]
        moments += [step.at_ms for step in self.steps]
        return min(moments, default=self.manifest["made_at_ms"])

    @property
    def last_ms(self) -> int:
        """The last moment of the incident, mesh time. An account that is amended later doesn't prolong it."""
        moments = [fact.decided_ms for fact in self.alerts if fact.alert.kind != alert_pb2.ACCOUNT_AMENDED]
        moments += [step.at_ms for step in self.steps]
        return max(moments, default=self.manifest["made_at_ms"])

    @property
    def decisive(self) -> DecidedAlert | None:
        """The first alert that demanded a response; None if none did."""
        return next((fact for fact in self.alerts if fact.alert.demand == RESPOND), None)

    @property
    def amendments(self) -> Mapping[str, DecidedAlert]:
        """The valid account of each ring whose first account was amended, by the id of the alert with the first account."""
        return {fact.alert.amends: fact for fact in self.alerts if fact.alert.kind == alert_pb2.ACCOUNT_AMENDED}

    def amended_by(self, fact: DecidedAlert) -> DecidedAlert | None:
        """The alert whose account replaces that of an alert; None if the alert's own is valid, or if it has none."""
        valid = self.amendments.get(fact.alert.amends or fact.alert.alert_id)
        return None if valid is fact else valid


RESPOND = 4
"""Number of RESPOND in tandem.common.v1.Demand."""


class _LoggedSnapshot(NamedTuple):
    """A snapshot of a case in the log."""

    sequence: int
    valid_until_ms: int
    """End of the order, mesh time; 0 if it has none."""
    unlocated_ids: frozenset[str]
    """Targets to which no device of the case measures the wearer's distance."""

    @classmethod
    def of(cls, sequence: int, case: log_pb2.CaseSnapshot) -> _LoggedSnapshot:
        """The snapshot of an entry."""
        persons = [person.person_id for person in case.persons if not (case.tag_device_ids and person.device_ids)]
        places = [] if case.tag_device_ids else [place.place_id for place in case.places]
        return cls(sequence, case.valid_until_ms, frozenset((*persons, *places)))


@dataclass(slots=True)
class _LoggedFacts:
    """Content of the log entries, collected in their order."""

    clock: MeshClock
    cases: dict[str, log_pb2.CaseSnapshot] = field(default_factory=dict)
    snapshots: dict[str, list[_LoggedSnapshot]] = field(default_factory=dict)
    """All snapshots by case id, in their order."""
    fixes: dict[str, dict[str, ReportedPosition]] = field(default_factory=dict)
    equipment: dict[str, list[EquipmentFact]] = field(default_factory=dict)

    def add(self, record: StoredMessage) -> None:
        """Adds an entry. An unreadable entry adds nothing: every reader of the log skips it."""
        if record.subject == MARK_SUBJECT:
            return
        try:
            body = translate.stored_body(record.subject, record.data)
        except InvalidField:
            return
        arrived_ms = self.clock.to_mesh_ms(record.stamp_ms)
        if isinstance(body, Positions):
            self._add_positions(record.sequence, arrived_ms, body)
        elif isinstance(body, EquipmentReport):
            event = EquipmentFact(min(body.event_time_ms, arrived_ms), body.device_id, body.event.value)
            self.equipment.setdefault(body.device_id, []).append(event)
        elif record.subject.endswith(".case"):
            case = log_pb2.LogEntry.FromString(record.data).case
            self.snapshots.setdefault(case.case_id, []).append(_LoggedSnapshot.of(record.sequence, case))
            known = self.cases.get(case.case_id)
            if known is None or case.version >= known.version:
                self.cases[case.case_id] = case

    def _add_positions(self, sequence: int, arrived_ms: int, batch: Positions) -> None:
        for i, device_id in enumerate(batch.device_ids):
            fix = ReportedPosition(
                time_ms=min(batch.fix_times_ms[i], arrived_ms),
                arrived_ms=arrived_ms,
                lat_deg=batch.lat_e7[i] / 1e7,
                lon_deg=batch.lon_e7[i] / 1e7,
                accuracy_m=batch.accuracy_mm[i] / MS_PER_M,
                sequence=sequence,
                report_id=batch.report_ids[i],
            )
            self.fixes.setdefault(device_id, {}).setdefault(fix.report_id, fix)


def of_bundle(verified: Verified) -> ReportFacts:
    """The facts of the incident in a verified bundle."""
    manifest = verified.manifest
    clock = MeshClock(manifest["clock"]["rate"], manifest["clock"]["anchor_ms"])
    log = _LoggedFacts(clock)
    entries = [record for record in verified.records if record.stream == flow.log_stream(manifest["log"]["partition"])]
    for record in entries:
        log.add(record)
    alerts = _alerts(verified.records, manifest["incident_id"], log.snapshots)
    order_ids = {fact.alert.order_id for fact in alerts} | set(manifest["order_ids"])
    cases = sorted((case for case in log.cases.values() if case.order_id in order_ids), key=lambda case: case.order_id)
    return ReportFacts(
        manifest=manifest,
        replayed=_replayed(verified),
        differences=verified.differences,
        public_key=verified.public_key.hex(),
        cases=cases,
        alerts=alerts,
        steps=_steps(verified),
        devices=list(_devices(cases, log)),
        entries=len(entries),
    )


def _replayed(verified: Verified) -> str:
    if verified.replay is None:
        return "NOT_IN_BUNDLE"
    return "DIFFERENT" if verified.differences else "SAME"


def _alerts(
    records: Sequence[StoredMessage], incident_id: str, snapshots: Mapping[str, Sequence[_LoggedSnapshot]]
) -> list[DecidedAlert]:
    measures = {
        measure.alert_id: measure
        for record in records
        if record.stream == flow.MEASURES.name
        for measure in (alert_pb2.Measure.FromString(record.data),)
    }
    alerts = (alert_pb2.Alert.FromString(record.data) for record in records if record.stream == flow.ALERTS.name)
    decided = (
        DecidedAlert(
            alert, measures.get(alert.alert_id), _is_without_departure(alert, snapshots.get(alert.case_id, ()))
        )
        for alert in alerts
        if alert.incident_id == incident_id
    )
    return sorted(decided, key=lambda fact: (fact.alert.sequence, fact.alert.ordinal))


def _is_without_departure(alert: alert_pb2.Alert, snapshots: Sequence[_LoggedSnapshot]) -> bool:
    """Whether a ring was cleared by a snapshot of its case, by the end of the order, or because no device measures the distance any
    more. Only reports clear it otherwise."""
    known = [snapshot for snapshot in snapshots if snapshot.sequence <= alert.sequence]
    if alert.kind != alert_pb2.RING_CLEARED or not known:
        return False
    newest = known[-1]
    is_over = 0 < newest.valid_until_ms <= times.from_timestamp(alert.decided_at)
    return is_over or newest.sequence == alert.sequence or alert.target_id in newest.unlocated_ids


def _steps(verified: Verified) -> list[LegStep]:
    """Steps of all legs by time. The subject of an assignment stands in the event that opened it."""
    subjects = {
        (event.leg, event.body["assignment_id"]): event.body["subject_id"]
        for event in verified.events
        if isinstance(event.body.get("subject_id"), str) and isinstance(event.body.get("assignment_id"), str)
    }
    units = _units(verified.events)
    steps = [
        LegStep(
            leg=event.leg,
            at_ms=event.body["at_ms"],
            kind=event.kind,
            subject_id=subjects.get((event.leg, str(event.body.get("assignment_id", ""))), ""),
            by=str(event.body.get("by", "")),
            body=event.body,
            unit=units.get((event.leg, event.id), ""),
        )
        for event in verified.events
        if event.kind not in ("AlertFolded", "AlertWasMissing")
    ]
    return sorted(steps, key=lambda step: (step.at_ms, step.leg))


def _units(events: Sequence[Shown]) -> Mapping[tuple[str, int], str]:
    """Unit that each step asks or that answers by it, by the step's leg and number in the chain.

    An answer names its offer by the number of the step of the assignment that made it, so the steps of each assignment are counted.
    """
    found: dict[tuple[str, int], str] = {}
    numbers: dict[tuple[str, str], int] = {}
    offers: dict[tuple[str, str], dict[int, str]] = {}
    for event in events:
        if not isinstance(assignment_id := event.body.get("assignment_id"), str):
            continue
        key = event.leg, assignment_id
        numbers[key] = int(event.body["number"]) + 1 if event.kind == "StepsLost" else numbers.get(key, 0) + 1
        choice = event.body.get("choice")
        if isinstance(choice, Mapping) and choice.get("unit_id"):
            offers.setdefault(key, {})[numbers[key]] = str(choice["unit_id"])
            found[event.leg, event.id] = str(choice["unit_id"])
        elif unit := offers.get(key, {}).get(event.body.get("offer_number", 0)):
            found[event.leg, event.id] = unit
    return found


def _devices(cases: Sequence[log_pb2.CaseSnapshot], log: _LoggedFacts) -> Iterator[DeviceRecord]:
    owners: dict[str, tuple[str, bool]] = {}
    for case in cases:
        owners |= {device_id: (case.wearer_id, True) for device_id in case.tag_device_ids}
    for case in cases:
        for person in case.persons:
            owners |= {device_id: (person.person_id, False) for device_id in person.device_ids}
    for device_id, (subject_id, of_wearer) in owners.items():
        yield DeviceRecord(
            device_id=device_id,
            subject_id=subject_id,
            of_wearer=of_wearer,
            fixes=sorted(log.fixes.get(device_id, {}).values()),
            equipment=sorted(log.equipment.get(device_id, ())),
        )

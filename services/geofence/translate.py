"""Converts log entries, rules and alerts between protobuf and the domain types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from google.protobuf.message import DecodeError

from services.common import fields, geometry, times
from services.common.errors import InvalidField
from services.common.messaging import stored
from services.common.privacy.notices import NoticeGround
from services.geofence.domain import alerts
from services.geofence.domain.alerts import FirstContact
from services.geofence.domain.entries import (
    Body,
    Case,
    Demand,
    Encounter,
    EquipmentKind,
    EquipmentReport,
    Exercise,
    FoldVersion,
    GoodCause,
    Heard,
    Positions,
    PositionSource,
    PresenceReport,
    Presences,
    Removal,
    Ring,
    Rules,
    TagDuty,
    Target,
    Tick,
    UnitPlace,
    UnitPlaceKind,
)
from services.geofence.domain.geometry import PERSON, Disc, PlanePolygon, Shape, ecef_mm
from tandem.common.v1 import (
    alert_pb2,
    encounter_pb2,
    exercise_pb2,
    first_contact_pb2,
    geometry_pb2,
    log_pb2,
    notice_pb2,
    presence_pb2,
    sensing_pb2,
    tag_duty_pb2,
)


def entry_body(data: bytes) -> Body:
    """Parses an entry of the log. Raises InvalidField if it is malformed."""
    try:
        return _body(log_pb2.LogEntry.FromString(data))
    except (DecodeError, ValueError, ArithmeticError) as error:
        raise InvalidField("entry", f"can't be read: {type(error).__name__}") from error


def stored_body(subject: str, data: bytes) -> Body:
    """Parses a stored entry. Raises InvalidField if it is malformed or its kind doesn't match its subject.

    The server limits each publisher to certain subjects. Only this check proves that a case was published by the registry.
    """
    body = entry_body(data)
    if not re.fullmatch(rf"log\.\d+\.{_KIND_OF[type(body)]}", subject):
        raise InvalidField("entry", f"is a {_KIND_OF[type(body)]} entry, which doesn't match its subject")
    return body


_KIND_OF: dict[type[Body], str] = {
    Positions: "report",
    Heard: "report",
    Presences: "report",
    EquipmentReport: "report",
    Case: "case",
    Rules: "rules",
    FoldVersion: "fold",
    Tick: "tick",
}
"""The last token of the subject of each kind of entry."""


def _body(entry: log_pb2.LogEntry) -> Body:
    match entry.WhichOneof("body"):
        case "positions":
            return _positions(entry.positions)
        case "heard":
            return _heard(entry.heard)
        case "presences":
            return presences_of(entry.presences)
        case "equipment":
            return _equipment(entry.equipment)
        case "case":
            return case_of(entry.case)
        case "rules":
            return rules_of(entry.rules)
        case "fold_version":
            return FoldVersion(entry.fold_version.version)
        case "tick":
            return Tick()
        case _:
            raise InvalidField("body", "is missing")


def _heard(batch: log_pb2.HeardBatch) -> Heard:
    if len(batch.report_id) != len(batch.device_id):
        raise InvalidField("heard", "has columns of unequal length")
    return Heard(list(batch.device_id))


def _equipment(report: log_pb2.EquipmentReport) -> EquipmentReport:
    name = log_pb2.EquipmentKind.Name(report.event) if report.event in log_pb2.EquipmentKind.values() else ""
    if name not in EquipmentKind.__members__:
        raise InvalidField("equipment.event", "is no known event")
    return EquipmentReport(
        device_id=report.device_id,
        report_id=report.report_id,
        event=EquipmentKind(name),
        event_time_ms=report.event_time_ms,
        received_wall_us=report.received_wall_us,
        silent=report.silent,
    )


def _positions(batch: log_pb2.PositionBatch) -> Positions:
    body = Positions(
        device_ids=batch.device_id[:],
        report_ids=batch.report_id[:],
        fix_times_ms=batch.fix_time_ms[:],
        lat_e7=batch.lat_e7[:],
        lon_e7=batch.lon_e7[:],
        accuracy_mm=batch.accuracy_mm[:],
        received_wall_us=batch.received_wall_us,
        sources=batch.source[:],
    )
    columns = (body.device_ids, body.report_ids, body.fix_times_ms, body.lat_e7, body.lon_e7, body.accuracy_mm)
    if len({len(column) for column in columns}) > 1:
        raise InvalidField("positions", "has columns of unequal length")
    if body.sources and (len(body.sources) != len(body.device_ids) or not _SOURCES.issuperset(body.sources)):
        raise InvalidField(
            "positions.source", "has another length than the other columns, or a source that isn't known"
        )
    return body


_SOURCES = frozenset(source.value for source in PositionSource)


def case_of(msg: log_pb2.CaseSnapshot) -> Case:
    """Parses a case. Raises InvalidField if it is malformed."""
    if not msg.rings:
        raise InvalidField("case.rings", "is empty")
    persons = tuple(
        Target(target_id=person.person_id, is_person=True, device_ids=tuple(person.device_ids), shape=PERSON)
        for person in msg.persons
    )
    places = tuple(
        Target(
            target_id=place.place_id,
            is_person=False,
            device_ids=(),
            shape=_shape(place),
            is_named=place.named_to_respondent,
        )
        for place in msg.places
    )
    targets = persons + places
    rings = sorted((_ring(ring) for ring in msg.rings), key=lambda ring: -ring.radius_mm)
    if len({ring.radius_mm for ring in rings}) != len(rings):
        raise InvalidField("case.rings", "has two rings of the same radius")
    if len({target.key for target in targets}) != len(targets):
        raise InvalidField("case", "names a person or a place twice")
    if msg.valid_until_ms and msg.valid_from_ms >= msg.valid_until_ms:
        raise InvalidField("case.valid_until_ms", "isn't after valid_from_ms")
    return Case(
        case_id=msg.case_id,
        version=msg.version,
        order_id=msg.order_id,
        wearer_id=msg.wearer_id,
        tag_device_ids=tuple(msg.tag_device_ids),
        targets=targets,
        rings=tuple(rings),
        valid_from_ms=msg.valid_from_ms,
        valid_until_ms=msg.valid_until_ms or None,
        encounters=tuple(map(_encounter, msg.encounters)),
        exercise=_exercise(msg.exercise),
        notice_ground=_notice_ground(msg.notice_ground),
        police_must_check=msg.police_must_check,
        tag_duty=_tag_duty(msg.tag_duty) if msg.HasField("tag_duty") else None,
        removals=tuple(map(_removal, msg.removals)),
        units=(
            *units_of("case.presence_units", msg.presence_units, ""),
            *(
                unit
                for person, target in zip(msg.persons, persons, strict=True)
                for unit in units_of("case.persons.presence_units", person.presence_units, target.key)
            ),
        ),
    )


def _notice_ground(number: int) -> NoticeGround | None:
    """The ground with this number. A number that this version doesn't know gives none: the order is enforced, and nobody is notified
    by the Ministry."""
    if not number or number not in notice_pb2.NoticeGround.values():
        return None
    return NoticeGround(notice_pb2.NoticeGround.Name(notice_pb2.NoticeGround.ValueType(number)))


def _tag_duty(msg: tag_duty_pb2.TagDuty) -> TagDuty:
    causes = tuple(GoodCause(cause.cause_id, cause.from_ms, cause.until_ms) for cause in msg.good_causes)
    _check_periods("case.tag_duty.good_causes", causes)
    return TagDuty(msg.fit_by_ms, msg.refused_at_ms or None, causes)


def _removal(msg: tag_duty_pb2.TagRemoval) -> Removal:
    removal = Removal(removal_id=msg.removal_id, device_id=msg.device_id, from_ms=msg.from_ms, until_ms=msg.until_ms)
    _check_periods("case.removals", (removal,))
    return removal


def _check_periods(field: str, periods: Sequence[GoodCause | Removal]) -> None:
    if any(period.until_ms <= period.from_ms for period in periods):
        raise InvalidField(field, "has a period that ends before it begins")


def _exercise(number: int) -> Exercise:
    try:
        return Exercise(number)
    except ValueError:
        raise InvalidField("case.exercise", "isn't known") from None


def _encounter(msg: encounter_pb2.Encounter) -> Encounter:
    from_ms, until_ms = times.from_timestamp(getattr(msg, "from")), times.from_timestamp(msg.until)
    if from_ms >= until_ms:
        raise InvalidField("case.encounters.until", "isn't after from")
    places = tuple(_shape(place) for place in msg.places)
    return Encounter(
        encounter_id=msg.encounter_id,
        from_ms=from_ms,
        until_ms=until_ms,
        places=places,
        daily_from_s=msg.daily_from_s,
        daily_until_s=msg.daily_until_s,
    )


def _ring(msg: geometry_pb2.Ring) -> Ring:
    try:
        return Ring(round(msg.radius_m * 1000), Demand(msg.action))
    except (ValueError, OverflowError):
        raise InvalidField("case.rings", "has a radius or an action that isn't known") from None


def _shape(place: geometry_pb2.Place) -> Shape:
    match place.WhichOneof("shape"):
        case "circle":
            return Disc(ecef_mm(*_e7(place.circle.lat_deg, place.circle.lon_deg)), round(place.circle.radius_m * 1000))
        case "polygon":
            return _polygon(place.polygon)
        case _:
            raise InvalidField("case.places.shape", "is missing")


def _polygon(msg: geometry_pb2.Polygon) -> PlanePolygon:
    vertices = [msg.vertices, *(hole.vertices for hole in msg.holes)]
    lines = [[_e7(vertex.lat_deg, vertex.lon_deg) for vertex in line] for line in vertices]
    geometry.check_polygon("case.places.polygon", lines[0], lines[1:])
    return PlanePolygon.of(lines[0], lines[1:])


def _e7(lat_deg: float, lon_deg: float) -> tuple[int, int]:
    return round(lat_deg * 1e7), round(lon_deg * 1e7)


def fold_version_of(data: bytes) -> int:
    """The fold version that an entry requires; 0 if the entry can't be parsed, so that this evaluator then writes its own version."""
    try:
        return stored.entry(data).fold_version.version
    except InvalidField:
        return 0


def alert_to_proto(alert: alerts.Alert, partition: int) -> alert_pb2.Alert:
    """An alert as the legs read it, without figures."""
    cause = alert.cause
    return alert_pb2.Alert(
        alert_id=alert.alert_id,
        partition=partition,
        sequence=alert.sequence,
        ordinal=alert.ordinal,
        kind=alert_pb2.AlertKind.Value(alert.kind.value),
        demand=geometry_pb2.Demand.ValueType(alert.demand.value),
        order_id=alert.order_id,
        case_id=alert.case_id,
        episode_id=alert.episode_id,
        incident_id=alert.incident_id,
        wearer_id=alert.wearer_id,
        target_id=alert.target_id,
        ring_m=alert.ring_mm / 1000,
        at=times.to_timestamp(alert.at_ms),
        decided_at=times.to_timestamp(alert.decided_at_ms),
        late=alert.late,
        destinations=[
            alert_pb2.Destination(leg=alert_pb2.Leg.Value(leg.value), subject_id=subject_id)
            for leg, subject_id in alert.destinations
        ],
        incident_ends=alert.incident_ends,
        cause=alert_pb2.ReportCause(
            device_id=cause.device_id,
            report_id=cause.report_id,
            received_wall_us=cause.received_wall_us,
            of_wearer=alert.cause_of_wearer,
        )
        if cause
        else None,
        fold_version=alert.fold_version,
        rules_id=alert.rules_id,
        anomaly=alert_pb2.AnomalyKind.Value(alert.anomaly.value)
        if alert.anomaly
        else alert_pb2.ANOMALY_KIND_UNSPECIFIED,
        amends=alert.amends,
        unconfirmed=alert.unconfirmed,
        encounter_id=alert.encounter_id,
        outage_id=alert.outage_id,
        outage_silent=alert.outage_silent,
        outage_watched=alert.outage_watched,
        exercise=exercise_pb2.Exercise.ValueType(alert.exercise.value),
        ministry_notice=notice_pb2.MinistryNotice(
            ground=notice_pb2.NoticeGround.Value(alert.notice.ground.value),
            person_ids=alert.notice.person_ids,
            ended=alert.notice.ended,
        )
        if alert.notice
        else None,
        checks=[
            alert_pb2.Destination(leg=alert_pb2.Leg.Value(leg.value), subject_id=alert.wearer_id)
            for leg in alert.checks
        ],
        removal_id=alert.removal_id,
        silent=alert.silent,
        contact=_contact(alert.contact) if alert.contact else None,
    )


def _contact(contact: FirstContact) -> first_contact_pb2.FirstContact:
    return first_contact_pb2.FirstContact(
        contact_id=contact.contact_id,
        plan=first_contact_pb2.ContactPlan.Value(f"CONTACT_PLAN_{contact.plan.value}"),
        withheld=first_contact_pb2.ContactWithheld.Value(f"CONTACT_WITHHELD_{contact.withheld.value}")
        if contact.withheld
        else first_contact_pb2.CONTACT_WITHHELD_UNSPECIFIED,
        device_id=contact.device_id,
    )


def request_to_proto(request: alerts.Request) -> sensing_pb2.SensingRequest:
    """The message of a request for data of a device, or of a message to the wearer."""
    message = sensing_pb2.SensingRequest(
        request_id=request.request_id,
        device_id=request.device_id,
        decided_at_ms=request.decided_at_ms,
        until_ms=request.until_ms,
        sequence=request.sequence,
        ordinal=request.ordinal,
        fold_version=request.fold_version,
    )
    if isinstance(request, alerts.ContactRequest):
        message.remind_wearer.SetInParent()
    elif request.interval_s is None:
        message.locate_now.SetInParent()
    else:
        message.report_every.interval_s = request.interval_s
    return message


def measure_to_proto(alert: alerts.Alert) -> alert_pb2.Measure:
    """The figures of an alert, in metres rounded to the millimetre."""
    return alert_pb2.Measure(
        alert_id=alert.alert_id,
        distance_m=_metres(alert.distance_mm),
        probability=alert.probability,
        inside=intervals(alert.inside),
        min_distance_m=_metres(alert.min_distance_mm),
        min_distance_assumed=alert.min_distance_assumed,
        location_allowed=alert.notice is not None and alert.notice.gives_location,
    )


def intervals(stretches: Sequence[tuple[int, int]]) -> list[alert_pb2.Interval]:
    """Intervals from pairs of start and end, milliseconds since 1970 UTC."""
    return [
        alert_pb2.Interval(**{"from": times.to_timestamp(from_ms), "to": times.to_timestamp(to_ms)})
        for from_ms, to_ms in stretches
    ]


def _metres(mm: float | None) -> float | None:
    return None if mm is None else round(mm) / 1000


_UNIT_KINDS = frozenset(kind.value for kind in UnitPlaceKind)


def presences_of(batch: presence_pb2.PresenceBatch) -> Presences:
    """Parses presences. Raises InvalidField if their columns have unequal lengths."""
    columns = (batch.device_id, batch.report_id, batch.unit_id, batch.since_ms, batch.seen_ms, batch.left)
    if any(len(column) != len(batch.device_id) for column in columns):
        raise InvalidField("presences", "has columns of unequal length")
    return Presences(tuple(map(PresenceReport._make, zip(*columns, strict=True))), batch.received_wall_us)


def units_of(field: str, messages: Iterable[presence_pb2.PresenceUnitPlace], holder: str) -> Iterator[UnitPlace]:
    """Parses the home units and beacons of one holder: a protected person's key, or empty for the wearer.

    Raises InvalidField. `field` is the path of the messages, for its text.
    """
    for msg in messages:
        if msg.kind not in _UNIT_KINDS:
            raise InvalidField(f"{field}.kind", "isn't known")
        centre = ecef_mm(round(msg.place.lat_deg * 1e7), round(msg.place.lon_deg * 1e7))
        yield UnitPlace(
            unit_id=msg.unit_id,
            kind=UnitPlaceKind(msg.kind),
            holder=holder,
            place=Disc(centre, round(msg.place.radius_m * 1000)),
            installed_from_ms=msg.installed_from_ms,
            installed_until_ms=msg.installed_until_ms or None,
            interval_ms=msg.report_interval_s * 1000,
        )


def check_rules(prefix: str, msg: log_pb2.Rules) -> None:
    """Raises InvalidField if a rule is outside the range that is safe for decisions. `prefix` precedes the field's name in the
    error."""
    fields.required_id(f"{prefix}rules_id", msg.rules_id)
    fields.number(f"{prefix}clear_margin_m", msg.clear_margin_m, 0, greatest=5_000)
    fields.number(f"{prefix}clear_after_s", msg.clear_after_s, 0, greatest=3_600)
    fields.number(f"{prefix}late_after_s", msg.late_after_s, 0, greatest=86_400)
    fields.number(f"{prefix}silent_notify_after_s", msg.silent_notify_after_s, 0, greatest=86_400)
    fields.number(f"{prefix}reach_mps", msg.reach_mps, 0, greatest=60)
    fields.number(f"{prefix}reach_most_s", msg.reach_most_s, 0, greatest=86_400)
    fields.number(f"{prefix}protected_lost_after_s", msg.protected_lost_after_s, 0, greatest=86_400)
    fields.number(f"{prefix}help_after_s", msg.help_after_s, 0, greatest=3_600)
    fields.number(f"{prefix}foot_mps", msg.foot_mps, 0, greatest=60)
    fields.number(f"{prefix}report_grace_s", msg.report_grace_s, 0, greatest=60)
    fields.number(f"{prefix}rest_s", msg.rest_s, 0, greatest=3_600)
    fields.number(f"{prefix}rest_respond_after_s", msg.rest_respond_after_s, 0, greatest=1_800)
    fields.number(f"{prefix}away_respond_after_s", msg.away_respond_after_s, 0, greatest=1_800)
    fields.number(f"{prefix}urgent_within_m", msg.urgent_within_m, 0, greatest=2_000)
    fields.number(f"{prefix}urgent_closing_mps", msg.urgent_closing_mps, 0, greatest=60)
    fields.number(f"{prefix}urgent_place_within_m", msg.urgent_place_within_m, 0, greatest=2_000)
    fields.number(
        f"{prefix}respond_p_pct", msg.respond_p_pct, 0, greatest=45
    )  # a higher limit would miss a wearer on the edge of a small ring


def rules_of(msg: log_pb2.Rules) -> Rules:
    """Parses rules; a field that is 0 takes its default."""
    default = Rules()
    return Rules(
        rules_id=msg.rules_id or default.rules_id,
        clear_margin_mm=msg.clear_margin_m * 1000 or default.clear_margin_mm,
        clear_after_ms=msg.clear_after_s * 1000 or default.clear_after_ms,
        late_after_ms=msg.late_after_s * 1000 or default.late_after_ms,
        silent_notify_after_ms=msg.silent_notify_after_s * 1000 or default.silent_notify_after_ms,
        reach_mps=msg.reach_mps or default.reach_mps,
        max_reach_ms=msg.reach_most_s * 1000 or default.max_reach_ms,
        protected_lost_after_ms=msg.protected_lost_after_s * 1000 or default.protected_lost_after_ms,
        help_after_ms=msg.help_after_s * 1000 or default.help_after_ms,
        foot_mps=msg.foot_mps or default.foot_mps,
        report_grace_ms=msg.report_grace_s * 1000 or default.report_grace_ms,
        rest_ms=msg.rest_s * 1000 or default.rest_ms,
        rest_respond_after_ms=msg.rest_respond_after_s * 1000 or default.rest_respond_after_ms,
        away_respond_after_ms=msg.away_respond_after_s * 1000 or default.away_respond_after_ms,
        respond_p_pct=msg.respond_p_pct or default.respond_p_pct,
        urgent_within_mm=msg.urgent_within_m * 1000 or default.urgent_within_mm,
        urgent_closing_mps=msg.urgent_closing_mps or default.urgent_closing_mps,
        urgent_place_within_mm=msg.urgent_place_within_m * 1000 or default.urgent_place_within_mm,
    )


def rules_entry(rules: Rules) -> log_pb2.LogEntry:
    """The log entry that sets these rules."""
    return log_pb2.LogEntry(
        rules=log_pb2.Rules(
            rules_id=rules.rules_id,
            clear_margin_m=rules.clear_margin_mm // 1000,
            clear_after_s=rules.clear_after_ms // 1000,
            late_after_s=rules.late_after_ms // 1000,
            silent_notify_after_s=rules.silent_notify_after_ms // 1000,
            reach_mps=rules.reach_mps,
            reach_most_s=rules.max_reach_ms // 1000,
            protected_lost_after_s=rules.protected_lost_after_ms // 1000,
            help_after_s=rules.help_after_ms // 1000,
            foot_mps=rules.foot_mps,
            report_grace_s=rules.report_grace_ms // 1000,
            rest_s=rules.rest_ms // 1000,
            rest_respond_after_s=rules.rest_respond_after_ms // 1000,
            away_respond_after_s=rules.away_respond_after_ms // 1000,
            respond_p_pct=rules.respond_p_pct,
            urgent_within_m=rules.urgent_within_mm // 1000,
            urgent_closing_mps=rules.urgent_closing_mps,
            urgent_place_within_m=rules.urgent_place_within_mm // 1000,
        )
    )

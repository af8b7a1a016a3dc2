"""Translates the services' messages, and a leg's copy of the evidence, into the types of the pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from services.common import times
from services.common.alert_phases import AlertPhase, phase_of
from services.console.domain.board import (
    FAILING,
    LEGS,
    NOTHING_AWAITED,
    WAITING,
    AssignmentCard,
    IncidentCard,
    IncidentTimes,
    RadioEntry,
    ShownFlag,
    UnitOfferCard,
)
from services.console.domain.people import is_agency_system
from services.console.domain.units import BUSY, BUSY_IN, FREE, CandidateCard, CandidateList, UnitCard
from services.console.domain.waterfall import DeviceTrack, TraceSpan, TrackPoint
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2, log_pb2, notice_pb2, presence_pb2, subject_pb2
from tandem.dispatch.v1 import contact_pb2, dispatch_pb2, evidence_pb2, following_pb2, roster_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.registry.v1 import trace_pb2


class FlagKind(NamedTuple):
    """A kind of flag."""

    holds: Callable[[dispatch_pb2.Assignment], bool]
    """Whether an assignment has it."""
    level: int = NOTHING_AWAITED
    """Least urgent level of an open incident that has it."""


def _of_person(flag: dispatch_pb2.WarningFlag.ValueType) -> Callable[[dispatch_pb2.Assignment], bool]:
    return lambda message: message.person_flag.flag == flag


def _contact(state: contact_pb2.ContactState.ValueType) -> Callable[[dispatch_pb2.Assignment], bool]:
    return lambda message: message.contact.state == state


def _absent(leg: alert_pb2.Leg.ValueType) -> Callable[[dispatch_pb2.Assignment], bool]:
    return lambda message: leg in message.absent_legs


FLAGS: Mapping[str, FlagKind] = {
    "losing": FlagKind(lambda message: message.race.losing, level=FAILING),
    "spoofing": FlagKind(lambda message: message.HasField("spoofing_suspected_at")),
    "duress": FlagKind(_of_person(dispatch_pb2.DURESS), level=FAILING),
    "no-receipt": FlagKind(_of_person(dispatch_pb2.NO_RECEIPT)),
    "no-contact": FlagKind(_of_person(dispatch_pb2.NO_CONTACT)),
    "reached": FlagKind(_of_person(dispatch_pb2.REACHED)),
    "contact-sent": FlagKind(_contact(contact_pb2.CONTACT_SENT)),
    "contact-call-due": FlagKind(_contact(contact_pb2.CONTACT_CALL_DUE), level=WAITING),
    "contacted": FlagKind(_contact(contact_pb2.CONTACTED)),
    "contact-turned-back": FlagKind(_contact(contact_pb2.CONTACT_TURNED_BACK)),
    "contact-no-answer": FlagKind(_contact(contact_pb2.CONTACT_NO_ANSWER)),
    "contact-out-of-budget": FlagKind(_contact(contact_pb2.CONTACT_OUT_OF_BUDGET)),
    "absent-probation": FlagKind(_absent(alert_pb2.PROBATION), level=FAILING),
    "absent-police": FlagKind(_absent(alert_pb2.POLICE), level=FAILING),
    "absent-warning": FlagKind(_absent(alert_pb2.WARNING), level=FAILING),
    "distress": FlagKind(lambda message: message.HasField("distress_at"), level=FAILING),
    "reminded": FlagKind(lambda message: message.HasField("reminded_at"), level=WAITING),
    "check": FlagKind(lambda message: message.task == notice_pb2.CHECK),
}
"""All flags of an assignment. The text of a flag `x` is `flag_x`."""


SORTS: Mapping[subject_pb2.SubjectKind.ValueType, str] = {
    subject_pb2.WEARER: "wearer",
    subject_pb2.PROTECTED_PERSON: "protected",
    subject_pb2.PROTECTED_PLACE: "place",
    subject_pb2.SILENT_WEARERS: "silent_wearers",
}
"""Sorts of destinations and targets, which are the keys of their texts, by the kinds of the legs' messages."""


def assignment(message: dispatch_pb2.Assignment) -> AssignmentCard:
    """Translates an assignment."""
    return AssignmentCard(
        assignment_id=message.assignment_id,
        incident_id=message.incident_id,
        leg=leg_name(message.leg),
        subject_id=message.subject_id,
        order_ids=tuple(message.order_ids),
        state=dispatch_pb2.AssignmentState.Name(message.state),
        demand=geometry_pb2.Demand.Name(message.demand),
        kind=alert_pb2.AlertKind.Name(message.kind) if message.kind else "",
        offer_number=message.offer_number,
        offered_ms=moment(message, "offered_at"),
        received_ms=moment(message, "received_at"),
        acknowledged_ms=moment(message, "acknowledged_at"),
        acknowledged_by=message.acknowledged_by,
        # The deadline of a contact is no deadline of the desk.
        due_ms=None if message.HasField("contact") else moment(message, "due_at"),
        latency_ms=message.report_to_published_ms if message.HasField("report_to_published_ms") else None,
        office_id=message.choice.office_id,
        unit_offers=tuple(map(unit_offer, message.unit_offers)),
        radio=_radio(message),
        reported_by_system=is_agency_system(message.progressed_by),
        escalation_level=dispatch_pb2.EscalationLevel.Name(message.choice.level) if message.choice.level else "",
        close_cause=dispatch_pb2.CloseCause.Name(message.close_cause) if message.close_cause else "",
        flags=frozenset(ShownFlag(name, kind.level) for name, kind in FLAGS.items() if kind.holds(message)),
        exercise=message.exercise == exercise_pb2.DRILL,
        notes=message.notes,
        is_contact=message.task == notice_pb2.CONTACT,
        is_check=message.task == notice_pb2.CHECK,
        sort=SORTS.get(message.subject_kind, ""),
        panic_ms=moment(message, "panic_at"),
        panic_withdrawn_ms=moment(message, "panic_withdrawn_at"),
    )


def unit_offer(message: dispatch_pb2.UnitOffer) -> UnitOfferCard:
    """Translates an offer to a unit."""
    return UnitOfferCard(
        unit_id=message.choice.unit_id,
        unit_class=message.choice.unit_class,
        state=dispatch_pb2.UnitOfferState.Name(message.state),
        number=message.offer_number,
        asked_ms=times.from_timestamp(message.asked_at),
        until_ms=times.from_timestamp(message.open_until),
        asked_by=officer(message.asked_by),
        received_ms=moment(message, "received_at"),
    )


def candidates(message: roster_pb2.ListCandidatesResponse) -> CandidateList:
    """Translates the units that can be sent to a destination."""
    return CandidateList(
        assignment=assignment(message.assignment),
        has_roster=message.has_roster,
        candidates=tuple(map(_candidate, message.candidates)),
    )


def _candidate(message: roster_pb2.Candidate) -> CandidateCard:
    report = message.unit
    works_in = report.incident_id or message.offer.choice.busy_in_incident_id
    return CandidateCard(
        unit_id=report.unit.unit_id,
        unit_class=report.unit.unit_class,
        work=BUSY_IN if works_in else BUSY if report.status == roster_pb2.BUSY else FREE,
        incident_id=works_in,
        distance_m=message.distance_m if message.HasField("distance_m") else None,
        travel_s=message.travel_s if message.HasField("travel_s") else None,
        offer=unit_offer(message.offer) if message.HasField("offer") else None,
        is_next=message.is_next,
    )


def _radio(message: dispatch_pb2.Assignment) -> RadioEntry | None:
    if not message.radio_unit:
        return None
    return RadioEntry(message.radio_unit, officer(message.radio_by), times.from_timestamp(message.radio_at))


def officer(spiffe_id: str) -> str:
    """Returns the name of an officer, as the pages show it, from the SPIFFE id."""
    return spiffe_id.rpartition("/")[2]


def incident(message: dispatch_pb2.Incident) -> IncidentCard:
    """Translates an incident as one leg knows it."""
    return IncidentCard(
        incident_id=message.incident_id,
        opened_ms=times.from_timestamp(message.opened_at),
        ended_ms=moment(message, "ended_at"),
        assignments=tuple(assignment(listed) for listed in message.assignments),
    )


def incident_times(message: dispatch_pb2.SubscribeResponse) -> IncidentTimes | None:
    """Returns the times of a step's incident; None if the leg didn't send them."""
    opened_ms = moment(message, "incident_opened_at")
    if opened_ms is None:
        return None
    # An unanswered offer that is sent again has no sequence. Its incident may have grown since.
    is_new = message.sequence > 0 and message.step.at == message.incident_opened_at
    return IncidentTimes(opened_ms, moment(message, "incident_ended_at"), is_new)


def alert(message: geofence_pb2.WatchAlertsResponse) -> dict[str, Any]:
    """Returns an alert as the browser gets it, with its distance if the role may know it."""
    watched, figures = message.alert, message.measure
    return {
        "id": watched.alert_id,
        "at": times.from_timestamp(watched.at),
        "decided": times.from_timestamp(watched.decided_at),
        "kind": alert_pb2.AlertKind.Name(watched.kind),
        "phase": phase_of(watched).value,
        "demand": geometry_pb2.Demand.Name(watched.demand),
        "incident": watched.incident_id,
        "order": watched.order_id,
        "wearer": watched.wearer_id,
        "target": watched.target_id,
        "sort": _sort_of_alert(watched),
        "ring": watched.ring_m,
        "outage": watched.outage_id,
        "distance": figures.distance_m if figures.HasField("distance_m") else None,
        "exercise": watched.exercise == exercise_pb2.DRILL,
    }


def _sort_of_alert(watched: alert_pb2.Alert) -> str:
    """What an alert is about, as its destinations say: one of SORTS; empty if it names a target that isn't among its destinations."""
    if watched.kind == alert_pb2.OUTAGE:
        return "silent_wearers"
    if not watched.target_id:
        return "wearer"
    subject_ids = {to.subject_id for to in watched.destinations}
    if watched.target_id in subject_ids:
        return "protected"
    # A place is named by its own id in `target_id`, and with its order in a destination.
    return "place" if f"{watched.order_id}/{watched.target_id}" in subject_ids else ""


def notice(step: dispatch_pb2.Step) -> dict[str, Any] | None:
    """Returns the alert behind a step of the own leg, for a desk that gets no alerts; None if the step isn't a new notice or offer."""
    own = step.assignment
    if own.state not in (dispatch_pb2.NOTIFIED, dispatch_pb2.OFFERED) or own.HasField("contact"):
        return None
    return {
        "id": f"{own.assignment_id}-{own.offer_number}-{own.state}",
        "at": times.from_timestamp(step.at),
        "decided": times.from_timestamp(step.at),
        "kind": alert_pb2.AlertKind.Name(own.kind),
        "phase": AlertPhase.BEGUN.value,  # a desk is notified of no end
        "demand": geometry_pb2.Demand.Name(own.demand),
        "incident": own.incident_id,
        "order": ", ".join(own.order_ids),
        "wearer": own.subject_id,
        "target": "",
        "sort": SORTS.get(own.subject_kind, ""),
        "ring": 0,
        "outage": "",
        "distance": None,
        "exercise": own.exercise == exercise_pb2.DRILL,
    }


def target(incident_id: str, message: following_pb2.TargetPosition) -> dict[str, Any]:
    """Returns a target's current position as the browser gets it.

    There may be thousands of targets, so positions are rounded to 0.1 m and hold no more than the map shows.
    """
    known = message.HasField("lat_deg")
    return {
        "id": f"{incident_id}/{message.subject_id}",
        "sort": SORTS.get(message.kind, ""),
        "unknown": message.unknown,
        "fix": moment(message, "fix_time"),
        "at": [round(message.lon_deg, 6), round(message.lat_deg, 6), round(message.accuracy_m, 1)] if known else None,
    }


def source(number: presence_pb2.PositionSource.ValueType) -> str:
    """Returns where a position comes from: GNSS, WIFI, CELL or UNSPECIFIED."""
    return presence_pb2.PositionSource.Name(number).removeprefix("POSITION_SOURCE_")


def unit(message: roster_pb2.UnitReport) -> UnitCard | None:
    """Translates a unit of the own leg; None for a unit that was removed or never reported a position."""
    if message.unit.removed or not message.HasField("position"):
        return None
    return UnitCard(
        unit_id=message.unit.unit_id,
        unit_class=message.unit.unit_class,
        status=roster_pb2.UnitStatus.Name(message.status),
        lat_deg=message.position.lat_deg,
        lon_deg=message.position.lon_deg,
        position_ms=moment(message, "position_at") or 0,
        incident_id=message.incident_id,
    )


def spans(response: trace_pb2.GetTraceResponse) -> list[TraceSpan]:
    """Translates the spans of a trace."""
    return [
        TraceSpan(
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_span_id=span.parent_span_id,
            service=span.service,
            name=span.name,
            start_us=span.start_us,
            end_us=span.end_us,
            attributes=dict(span.attributes),
        )
        for span in response.spans
    ]


def leg_name(leg: alert_pb2.Leg.ValueType) -> str:
    """Returns the name of a leg: probation, police or warning."""
    return LEGS[leg - 1] if 1 <= leg <= len(LEGS) else ""


def moment(message: Any, field: str) -> int | None:
    """Returns a timestamp field in milliseconds since 1970 UTC; None if it is absent."""
    if not message.HasField(field):
        return None
    value: Timestamp = getattr(message, field)
    return times.from_timestamp(value)


def tracks(copy: evidence_pb2.ReadEvidenceResponse) -> list[DeviceTrack]:
    """Returns the reported positions of each device."""
    return [
        DeviceTrack(
            device_id=track.device_id,
            subject_id=track.subject_id,
            of_wearer=track.of_wearer,
            points=tuple(
                TrackPoint(
                    time_ms=at.time_ms,
                    arrived_ms=at.arrived_ms,
                    lat_deg=at.lat_deg,
                    lon_deg=at.lon_deg,
                    accuracy_m=at.accuracy_m,
                    sequence=at.sequence,
                    source=source(at.source),
                )
                for at in track.points
            ),
        )
        for track in copy.tracks
    ]


def replay(copy: evidence_pb2.ReadEvidenceResponse) -> dict[str, Any]:
    """Returns the content of the map's replay: tracks, places and rings as far as the copy has them, and the alerts."""
    return {
        "tracks": [
            {
                "device": track.device_id,
                "subject": track.subject_id,
                "wearer": track.of_wearer,
                "points": [
                    [at.time_ms, at.lon_deg, at.lat_deg, at.accuracy_m, source(at.source)] for at in track.points
                ],
            }
            for track in copy.tracks
        ],
        "units": [
            {"unit": unit.unit_id, "points": [[at.time_ms, at.lon_deg, at.lat_deg] for at in unit.points]}
            for unit in copy.units
        ],
        "places": [place for case in copy.cases for place in _places(case)],
        "rings": sorted({ring.radius_m for case in copy.cases for ring in case.rings}),
        "alerts": [
            {
                "at": times.from_timestamp(alert.at),
                "kind": alert_pb2.AlertKind.Name(alert.kind),
                "phase": phase_of(alert).value,
                "ring": alert.ring_m,
            }
            for alert in copy.alerts
        ],
    }


def _places(case: log_pb2.CaseSnapshot) -> list[dict[str, Any]]:
    places: list[dict[str, Any]] = []
    for place in case.places:
        if place.HasField("circle"):
            circle = place.circle
            places.append(
                {"id": place.place_id, "lon": circle.lon_deg, "lat": circle.lat_deg, "radius": circle.radius_m}
            )
        else:
            holes = [_line(hole.vertices) for hole in place.polygon.holes]
            places.append({"id": place.place_id, "line": _line(place.polygon.vertices), "holes": holes})
    return places


def _line(vertices: Iterable[geometry_pb2.Point]) -> list[list[float]]:
    """Corners as longitude and latitude."""
    return [[vertex.lon_deg, vertex.lat_deg] for vertex in vertices]


def alerts(copy: evidence_pb2.ReadEvidenceResponse) -> list[dict[str, Any]]:
    """Returns the incident's alerts, with figures if the copy has them. A replaced account has the time of the valid one."""
    figures = {measure.alert_id: measure for measure in copy.measures}
    valid = {alert.amends: alert for alert in copy.alerts if alert.amends}
    shown = []
    for alert in copy.alerts:
        measure = figures.get(alert.alert_id)
        replaced_by = valid.get(alert.amends or alert.alert_id, alert)
        shown.append(
            {
                "id": alert.alert_id,
                "kind": alert_pb2.AlertKind.Name(alert.kind),
                "phase": phase_of(alert).value,
                "demand": geometry_pb2.Demand.Name(alert.demand),
                "order": alert.order_id,
                "target": alert.target_id,
                "ring": alert.ring_m,
                "at": times.from_timestamp(alert.at),
                "decided": times.from_timestamp(alert.decided_at),
                "sequence": alert.sequence,
                "late": alert.late,
                "report": f"{alert.cause.report_id} / {alert.cause.device_id}" if alert.HasField("cause") else "",
                "fold": alert.fold_version,
                "rules": alert.rules_id,
                "to": [(leg_name(to.leg), to.subject_id) for to in alert.destinations],
                "notice": notice_pb2.NoticeGround.Name(alert.ministry_notice.ground)
                if alert.HasField("ministry_notice")
                else "",
                "location": bool(measure and measure.location_allowed),
                "checks": [leg_name(check.leg) for check in alert.checks],
                "distance": measure.distance_m if measure and measure.HasField("distance_m") else None,
                "probability": measure.probability if measure and measure.HasField("probability") else None,
                "inside": [
                    (times.from_timestamp(getattr(stretch, "from")), times.from_timestamp(stretch.to))
                    for stretch in measure.inside
                ]
                if measure
                else [],
                "least": measure.min_distance_m if measure and measure.HasField("min_distance_m") else None,
                "least_assumed": bool(measure and measure.min_distance_assumed),
                "replaced_ms": times.from_timestamp(replaced_by.decided_at) if replaced_by is not alert else None,
            }
        )
    return shown


def rules(copy: evidence_pb2.ReadEvidenceResponse) -> dict[str, Any]:
    """Returns the rules that were set explicitly; the others have their defaults."""
    return {field.name: value for field, value in copy.rules.ListFields()}

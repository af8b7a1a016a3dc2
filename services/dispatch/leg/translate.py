"""Translation between protobuf messages and the domain of a leg. Parsing validates: every parsed object is well formed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from services.common import fields, ids, times
from services.common.errors import InvalidField
from services.common.ids import PlaceId
from services.common.messaging import stored
from services.dispatch.domain.assignment import PROGRESS, Assignment, AssignmentState, step_id
from services.dispatch.domain.decisions import AddNote
from services.dispatch.domain.enums import CloseCause, ContactPlan, Demand, Exercise, SubjectKind, WarningFlag
from services.dispatch.domain.events import (
    KEPT_KINDS,
    Cause,
    Flagged,
    LogPosition,
    NoteAdded,
    NotedResult,
    NoteKind,
    Raced,
)
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.incident import Alert, AlertContact, AlertPanic, Incident
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import Choice, UnitOffer
from services.dispatch.leg.tables import (
    AssignmentRow,
    ListedIncident,
    NoteRow,
    PeerRow,
    StepRow,
)
from tandem.common.v1 import alert_pb2, exercise_pb2, first_contact_pb2, geometry_pb2, notice_pb2, subject_pb2
from tandem.dispatch.v1 import calls_pb2, contact_pb2, dispatch_pb2, following_pb2, notes_pb2

LEG_NUMBERS = {leg: alert_pb2.Leg.Value(leg.name) for leg in Leg}
"""Numbers of the legs in messages."""
_LEG_OF_NUMBER = {number: leg for leg, number in LEG_NUMBERS.items()}
_RINGS = (alert_pb2.RING_ENTERED, alert_pb2.RING_CLEARED)
_PUBLISHED = frozenset(
    {
        *("assignment_id", "incident_id", "leg", "subject_id", "order_ids", "state", "demand", "exercise"),
        *("offered_at", "received_at", "acknowledged_at", "acknowledged_by", "due_at", "report_to_published_ms"),
        *("cause", "kind", "choice", "offer_number", "escalation_reason", "stood_down_kind", "close_cause"),
        *("nobody_available_at", "absent_legs", "person_flag", "task", "contact", "notes", "distress_at", "sent_at"),
        "subject_kind",
    }
)
"""Fields of an assignment that other legs may read. All other fields stay with the leg: free text, which may contain an address, and
facts about units and targets. A unit's travel time reveals the protected person's distance, and so does a race that is being lost.
How an agency finds a unit, and who of its people reports progress, is its own affair: the other one needs to know whether somebody
goes, and which officer or unit accepted, whom it may call."""
_OTHER_TIMES = frozenset({"arrival_due_at", "panic_at", "panic_withdrawn_at"})
_TIMES = tuple(
    field.name.removesuffix("_at")
    for field in dispatch_pb2.Assignment.DESCRIPTOR.fields
    if field.name.endswith("_at") and field.name not in _OTHER_TIMES and field.message_type is Timestamp.DESCRIPTOR
)
"""Times of an assignment: the message's `x_at` is the domain's `x_ms`."""
_DEMANDS = frozenset(int(demand) for demand in Demand)
REASON_MAX_CHARS = 200
"""Maximum length of the reason of a rejection."""
CLOSE_NOTE_MAX_CHARS = 500
"""Maximum length of the note with which an assignment is closed."""
NOTE_MAX_CHARS = 500
"""Maximum length of a note about an incident."""
UNIT_NAME_MAX_CHARS = 60
"""Maximum length of the name of a unit that was sent by radio."""
_KINDS_NEEDING_TEXT = (NoteKind.NOTE, NoteKind.CALLED_OTHER)


# ── alerts: what one leg may know of them ─────────────────────────────────────────────────────────────────────────────


def alert(payload: bytes, leg: Leg, subject: str | None = None) -> Alert | None:
    """Parses an alert that was published on `subject`, and reduces it to the fields for one leg.

    Returns None if the alert belongs to no incident. Raises InvalidField if the payload can't be parsed or lacks a required field.
    """
    message = stored.alert(payload, subject)
    if int(message.demand) not in _DEMANDS:
        raise InvalidField("demand", "is missing or unknown")
    if not message.incident_id:
        if message.incident_ends:
            raise InvalidField("incident_id", "is missing")
        return None
    subjects, others = _destinations(message, leg)
    return Alert(
        alert_id=message.alert_id,
        incident_id=message.incident_id,
        place=(message.sequence, message.ordinal),
        kind=message.kind,
        demand=Demand(message.demand),
        order_id=fields.required_id("order_id", message.order_id),
        threat=_threat(message),
        subject_ids=subjects,
        ends=message.incident_ends,
        cause=_cause(message, leg),
        legs=others if leg.policy.is_staffed and _is_live(message) else (),
        wearer_id=_followed(message),
        ring_m=message.ring_m if message.kind in _RINGS else 0.0,
        exercise=_exercise(message.exercise),
        check_subject_ids=_check_subject_ids(message, leg),
        contact=alert_contact(message) if leg.policy.contacts_wearer else None,
        subject_kinds={subject_id: _subject_kind(message, subject_id) for subject_id in subjects},
        panic=_panic(message),
    )


def alert_contact(message: alert_pb2.Alert) -> AlertContact | None:
    """The statement of an alert about the first contact; None without one, or if this version doesn't know its plan.

    Raises InvalidField if the contact lacks its id.
    """
    contact = message.contact
    if not message.HasField("contact") or int(contact.plan) not in {int(known) for known in ContactPlan}:
        return None
    if contact.device_id:
        fields.required_id("contact.device_id", contact.device_id)
    return AlertContact(
        contact_id=fields.required_id("contact.contact_id", contact.contact_id),
        plan=ContactPlan(contact.plan),
        device_id=contact.device_id,
    )


def _panic(message: alert_pb2.Alert) -> AlertPanic | None:
    """The call for help of an alert, or its end by the person herself. A device that is gone takes no call back."""
    if message.kind != alert_pb2.PANIC or message.unconfirmed:
        return None
    # Hashed, since probation's record must not hold who called.
    caller = ids.hash_id("caller", message.order_id, message.target_id)
    return AlertPanic(caller, times.from_timestamp(message.at), withdrawn=message.demand == geometry_pb2.RECORD)


def _subject_kind(message: alert_pb2.Alert, subject_id: str) -> SubjectKind:
    """What a destination of an alert is. An outage's alert belongs to no wearer, and its destinations are the outage's id."""
    if message.kind == alert_pb2.OUTAGE:
        return SubjectKind.SILENT_WEARERS
    if subject_id == message.wearer_id:
        return SubjectKind.WEARER
    return SubjectKind.PROTECTED_PLACE if PlaceId.parse(subject_id) is not None else SubjectKind.PROTECTED_PERSON


def _check_subject_ids(message: alert_pb2.Alert, leg: Leg) -> tuple[str, ...]:
    """Wearers whose act this leg must look into, without duplicates. Raises InvalidField."""
    checks = [fields.required_id(f"checks[{n}].subject_id", each.subject_id) for n, each in enumerate(message.checks)]
    named = (
        subject_id for subject_id, each in zip(checks, message.checks, strict=True) if each.leg == LEG_NUMBERS[leg]
    )
    return tuple(dict.fromkeys(named))


def _destinations(message: alert_pb2.Alert, leg: Leg) -> tuple[tuple[str, ...], tuple[Leg, ...]]:
    """The destinations of a leg, without duplicates, and the other legs that have a destination. Raises InvalidField."""
    subjects: dict[str, None] = {}
    others: set[Leg] = set()
    for number, destination in enumerate(message.destinations):
        to = _LEG_OF_NUMBER.get(destination.leg)
        if to is None:
            raise InvalidField(f"destinations[{number}].leg", "is missing or unknown")
        for part in destination.subject_id.split("/", 1):  # a place is `order/place`
            fields.required_id(f"destinations[{number}].subject_id", part)
        if to is leg:
            subjects[destination.subject_id] = None
        else:
            others.add(to)
    return tuple(subjects), tuple(sorted(others))


def _cause(message: alert_pb2.Alert, leg: Leg) -> Cause | None:
    if not message.HasField("cause"):
        return None
    report = message.cause
    if report.of_wearer or leg.policy.may_locate_person:
        return Cause(report.device_id, report.report_id, report.received_wall_us)
    return Cause("", "", report.received_wall_us)  # the time alone serves to measure latency


def _is_live(message: alert_pb2.Alert) -> bool:
    """Whether this leg awaits the other legs' steps for an alert. For canaries it doesn't, since the watch checks all legs."""
    return message.demand == geometry_pb2.RESPOND and message.exercise != exercise_pb2.CANARY


def _followed(message: alert_pb2.Alert) -> str:
    """The wearer whom units follow. Empty without a wearer, and for a canary, which sends nobody and shares no position."""
    if not message.wearer_id or message.exercise == exercise_pb2.CANARY:
        return ""
    return fields.required_id("wearer_id", message.wearer_id)


def _exercise(number: int) -> Exercise:
    """The exercise with this number. An unknown number, from a newer fold, becomes a drill and never a live alert."""
    return Exercise(number) if number in {int(known) for known in Exercise} else Exercise.DRILL


def _threat(message: alert_pb2.Alert) -> str:
    """Key of an alert's threat: a ring around a target, or a kind of event under an order.

    The key is hashed, since another leg's destination must not be in this leg's record.
    """
    if message.kind in _RINGS:
        return ids.hash_id("threat", message.order_id, message.target_id, str(message.ring_m))
    # The key leaves the target out: if the case has dropped the device, the alert that ends the threat names no target.
    return ids.hash_id("threat", message.order_id, message.kind)


# ── steps of assignments, as this leg publishes and shows them ────────────────────────────────────────────────────────


def step(
    incident: Incident, assignment: Assignment, at_ms: int, *, latency_ms: float | None, kept: bool = False
) -> dispatch_pb2.Step:
    """The message of an assignment's last step. A step that is `kept` isn't published to other legs."""
    return dispatch_pb2.Step(
        step_id=step_id(assignment),
        at=times.to_timestamp(at_ms),
        assignment=assignment_message(incident, assignment, latency_ms),
        number=assignment.number,
        kept=kept,
    )


def assignment_message(incident: Incident, assignment: Assignment, latency_ms: float | None) -> dispatch_pb2.Assignment:
    """The message of an assignment. `latency_ms` is the latency of its offer, milliseconds; None if it isn't known."""
    message = dispatch_pb2.Assignment(
        assignment_id=assignment.assignment_id,
        incident_id=incident.incident_id,
        leg=LEG_NUMBERS[incident.leg],
        subject_id=assignment.subject_id,
        order_ids=incident.order_ids,
        state=dispatch_pb2.AssignmentState.ValueType(assignment.state),
        demand=geometry_pb2.Demand.ValueType(assignment.demand),
        acknowledged_by=assignment.acknowledged_by,
        kind=alert_pb2.AlertKind.ValueType(assignment.kind),
        offer_number=assignment.offer_number,
        escalation_reason=dispatch_pb2.EscalationReason.ValueType(assignment.escalation_reason),
        rejected_reason=assignment.rejected_reason,
        stood_down_kind=alert_pb2.AlertKind.ValueType(assignment.stood_down_kind),
        close_cause=dispatch_pb2.CloseCause.ValueType(assignment.close_cause or 0),
        close_note=assignment.close_note,
        absent_legs=[LEG_NUMBERS[leg] for leg in sorted(assignment.absent_legs)],
        exercise=exercise_pb2.Exercise.ValueType(incident.exercise),
        task=notice_pb2.Task.ValueType(assignment.task),
        notes=assignment.notes,
        subject_kind=subject_pb2.SubjectKind.ValueType(assignment.subject_kind),
        radio_unit=assignment.radio_unit,
        radio_by=assignment.radio_by,
        progressed_by=assignment.progressed_by,
        unit_offers=map(unit_offer, assignment.unit_offers),
    )
    for name in _TIMES:
        ms: int | None = getattr(assignment, f"{name}_ms")
        if ms is not None:
            getattr(message, f"{name}_at").CopyFrom(times.to_timestamp(ms))
    if (arrival_ms := assignment.arrival_due_ms) is not None:
        message.arrival_due_at.CopyFrom(times.to_timestamp(arrival_ms))
    _add_panic(message, incident)
    _add_contact(message, assignment)
    if assignment.flag is not None:
        message.person_flag.CopyFrom(_flag(assignment.flag))
    if assignment.choice is not None:
        message.choice.CopyFrom(_choice(assignment.choice))
    if assignment.raced is not None:
        message.race.CopyFrom(_race(assignment.raced, assignment.demanded))
    if latency_ms is not None:
        message.report_to_published_ms = latency_ms
    if assignment.cause is not None:
        message.cause.device_id = assignment.cause.device_id
        message.cause.report_id = assignment.cause.report_id
        message.cause.received_wall_us = assignment.cause.received_wall_us
    return message


def _add_panic(message: dispatch_pb2.Assignment, incident: Incident) -> None:
    panic = incident.panic
    if panic is None or panic.called_ms is None:
        return
    message.panic_at.CopyFrom(times.to_timestamp(panic.called_ms))
    if panic.withdrawn_ms is not None:
        message.panic_withdrawn_at.CopyFrom(times.to_timestamp(panic.withdrawn_ms))


def _add_contact(message: dispatch_pb2.Assignment, assignment: Assignment) -> None:
    """Adds the first contact of an assignment, if it has one."""
    contact = assignment.contact
    if contact is None:
        return
    message.task = notice_pb2.CONTACT
    message.contact.contact_id = contact.contact_id
    message.contact.state = contact_pb2.ContactState.ValueType(contact.state)
    message.contact.plan = first_contact_pb2.ContactPlan.ValueType(contact.plan)
    message.contact.since.CopyFrom(times.to_timestamp(contact.since_ms))
    message.contact.call_reason = contact_pb2.CallReason.ValueType(contact.call_reason)
    message.contact.recorded_by = contact.recorded_by
    if assignment.due_ms is not None and contact.plan is ContactPlan.TAG:
        message.contact.call_at.CopyFrom(times.to_timestamp(assignment.due_ms))


def _flag(flag: Flagged) -> dispatch_pb2.PersonFlag:
    sequence, ordinal = flag.place
    return dispatch_pb2.PersonFlag(
        flag=dispatch_pb2.WarningFlag.ValueType(flag.flag),
        at=times.to_timestamp(flag.flagged_ms),
        alert_id=flag.alert_id,
        sequence=sequence,
        ordinal=ordinal,
    )


def _choice(choice: Choice) -> dispatch_pb2.Choice:
    return dispatch_pb2.Choice(
        level=dispatch_pb2.EscalationLevel.ValueType(choice.level),
        office_id=choice.office_id,
        unit_id=choice.unit_id,
        unit_class=choice.unit_class,
        desk=choice.desk,
        travel_s=choice.travel_s,
        estimate=dispatch_pb2.Estimate.ValueType(choice.estimate),
        candidates=choice.candidates,
        busy_in_incident_id=choice.busy_in,
        busy=choice.busy,
    )


def unit_offer(offer: UnitOffer) -> dispatch_pb2.UnitOffer:
    """The message of an offer to a unit."""
    message = dispatch_pb2.UnitOffer(
        choice=_choice(offer.choice),
        offer_number=offer.offer_number,
        state=dispatch_pb2.UnitOfferState.ValueType(offer.state),
        asked_at=times.to_timestamp(offer.asked_ms),
        open_until=times.to_timestamp(offer.open_until_ms),
        asked_by=offer.asked_by,
    )
    if offer.received_ms is not None:
        message.received_at.CopyFrom(times.to_timestamp(offer.received_ms))
    return message


def unit_of_step(step: dispatch_pb2.Step) -> str:
    """The unit that a step asks, else the one that has the assignment or its present offer; empty if there is none."""
    assignment = step.assignment
    asked = (offer.choice.unit_id for offer in assignment.unit_offers if offer.offer_number == step.number)
    return next(asked, assignment.choice.unit_id)


def _race(raced: Raced, demanded: LogPosition) -> dispatch_pb2.Race:
    return dispatch_pb2.Race(
        losing=raced.losing,
        since=times.to_timestamp(raced.at_ms),
        advice=dispatch_pb2.Advice.ValueType(raced.advice),
        supervisor_desk=raced.supervisor_desk,
        wearer_s=raced.wearer_s,
        responder_s=raced.responder_s,
        by_ring=raced.by_ring,
        sequence=demanded[0],
        ordinal=demanded[1],
    )


def leg_of(number: alert_pb2.Leg.ValueType) -> Leg:
    """The leg with this number in a message. Raises KeyError if this version doesn't know the leg."""
    return _LEG_OF_NUMBER[number]


def assigned_leg(payload: bytes) -> Leg:
    """The leg of a serialised assignment."""
    return leg_of(dispatch_pb2.Assignment.FromString(payload).leg)


# ── what the legs tell each other ─────────────────────────────────────────────────────────────────────────────────────


def outward(step: dispatch_pb2.Step) -> bytes:
    """A serialised step for INCIDENTS, without private fields, since the other agency's leg reads INCIDENTS too."""
    message = dispatch_pb2.Step()
    message.CopyFrom(step)
    _remove_private_fields(message.assignment)
    return message.SerializeToString()


def peer(message: dispatch_pb2.Step, leg: Leg) -> PeerRow:
    """The row of another leg's step. Removes the fields that this leg may not see from the message."""
    assignment = message.assignment
    # Only the other leg's own desk may see which device reported, and whether it was a protective device.
    assignment.ClearField("cause")
    assignment.ClearField("kind")
    assignment.ClearField("stood_down_kind")
    if not leg.policy.answers_flags:
        assignment.ClearField("person_flag")
    _remove_private_fields(assignment)
    return PeerRow(
        assignment_id=assignment.assignment_id,
        incident_id=assignment.incident_id,
        number=message.number,
        payload=assignment.SerializeToString(deterministic=True),
        has_arrived=assignment.state in (dispatch_pb2.ON_SCENE, dispatch_pb2.APPREHENDED),
    )


def peer_flag(row: PeerRow) -> Flag | None:
    """The flag in another leg's assignment; None if the assignment has no flag, or a flag that this version doesn't know."""
    assignment = dispatch_pb2.Assignment.FromString(row.payload)
    flag = assignment.person_flag
    if not assignment.HasField("person_flag") or int(flag.flag) not in {int(known) for known in WarningFlag}:
        return None
    return Flag(
        subject_id=assignment.subject_id,
        flag=WarningFlag(flag.flag),
        alert_id=flag.alert_id,
        place=(flag.sequence, flag.ordinal),
        order_id=assignment.order_ids[0] if assignment.order_ids else "",
        flagged_ms=times.from_timestamp(flag.at),
        exercise=_exercise(assignment.exercise),
    )


def advice(step: dispatch_pb2.Step) -> bytes | None:
    """The serialised advice of a police step for the warning leg; None if the step carries no new advice."""
    assignment = step.assignment
    if not step.kept or assignment.race.since != step.at or not leg_of(assignment.leg).policy.advises_persons:
        return None
    return following_pb2.AdviceGiven(
        advice_id=step.step_id,
        incident_id=assignment.incident_id,
        order_ids=assignment.order_ids,
        subject_id=assignment.subject_id,
        advice=assignment.race.advice,
        at=step.at,
        number=step.number,
        sequence=assignment.race.sequence,
        ordinal=assignment.race.ordinal,
    ).SerializeToString()


def _remove_private_fields(assignment: dispatch_pb2.Assignment) -> None:
    """Clears all fields but _PUBLISHED, and those parts of the published fields that reveal the protected person's distance."""
    for field, _ in assignment.ListFields():
        if field.name not in _PUBLISHED:
            assignment.ClearField(field.name)  # type: ignore[arg-type]  # the stubs list the names
    if not _raises_flags(assignment.leg):
        assignment.ClearField("person_flag")
    if assignment.escalation_reason in (dispatch_pb2.TARGET_MOVED, dispatch_pb2.RACE_LOST, dispatch_pb2.NOT_ARRIVED):
        assignment.ClearField("escalation_reason")
    if assignment.state == dispatch_pb2.EN_ROUTE:
        assignment.ClearField("due_at")
    if assignment.HasField("contact"):
        assignment.contact.ClearField("recorded_by")
    if assignment.HasField("choice"):
        choice = dispatch_pb2.Choice(level=assignment.choice.level, unit_class=assignment.choice.unit_class)
        assignment.choice.CopyFrom(choice)


def _raises_flags(number: alert_pb2.Leg.ValueType) -> bool:
    leg = _LEG_OF_NUMBER.get(number)
    return leg is not None and leg.policy.warns_persons


# ── what is stored ────────────────────────────────────────────────────────────────────────────────────────────────────


def stored_step(row: StepRow) -> dispatch_pb2.Step:
    """The message of a stored step, with the latency that became known after the step was stored."""
    message = dispatch_pb2.Step.FromString(row.payload)
    if row.report_to_published_ms is not None and message.assignment.HasField("offered_at"):
        message.assignment.report_to_published_ms = row.report_to_published_ms
    return message


def stored_assignment(row: AssignmentRow) -> dispatch_pb2.Assignment:
    """The message of a stored assignment, with the latency of its offer if that is known."""
    message = dispatch_pb2.Assignment.FromString(row.payload)
    if row.report_to_published_ms is not None:
        message.report_to_published_ms = row.report_to_published_ms
    return message


def listed_incident(listed: ListedIncident) -> dispatch_pb2.Incident:
    """The message of an incident: this leg's assignments first, then other legs' assignments by leg."""
    peers = [dispatch_pb2.Assignment.FromString(payload) for payload in listed.peers]
    message = dispatch_pb2.Incident(
        incident_id=listed.row.incident_id,
        order_ids=listed.row.order_ids,
        opened_at=times.to_timestamp(listed.row.opened_ms),
        assignments=[stored_assignment(row) for row in listed.own] + sorted(peers, key=lambda peer: peer.leg),
    )
    if listed.row.ended_ms is not None:
        message.ended_at.CopyFrom(times.to_timestamp(listed.row.ended_ms))
    return message


@dataclass(frozen=True, slots=True)
class NumberedStep:
    """A step with its sequence in the leg's own order; 0 for a repeated offer. The message is shared and must not be changed."""

    sequence: int
    step: dispatch_pb2.Step


def numbered(rows: Iterable[StepRow]) -> Iterator[NumberedStep]:
    """Stored steps with their sequences, as messages."""
    return (NumberedStep(row.sequence, stored_step(row)) for row in rows)


# ── notes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def note_message(incident_id: str, leg: Leg, event: NoteAdded) -> notes_pb2.IncidentNote:
    """The message of a note."""
    return notes_pb2.IncidentNote(
        note_id=event.note_id,
        incident_id=incident_id,
        leg=alert_pb2.Leg.Value(leg.name),
        at=times.to_timestamp(event.at_ms),
        by=event.by,
        kind=notes_pb2.NoteKind.ValueType(event.kind),
        result=notes_pb2.NotedResult.ValueType(event.result),
        text=event.text,
        kept=event.kept,
    )


def note_row(note: notes_pb2.IncidentNote) -> NoteRow:
    """The row of a note."""
    return NoteRow(
        note_id=note.note_id,
        incident_id=note.incident_id,
        at_ms=times.from_timestamp(note.at),
        payload=note.SerializeToString(),
    )


def shared_note(step: dispatch_pb2.Step, leg: Leg) -> NoteRow | None:
    """The row of the note in another leg's step; None without one, and for a leg whose desk reads no notes. Raises InvalidField."""
    if not step.HasField("note") or not leg.policy.is_staffed:
        return None
    note = step.note
    if note.kept or note.incident_id != step.assignment.incident_id or note.leg != step.assignment.leg:
        raise InvalidField("note", "isn't a shared note of the step's incident and leg")
    fields.required_id("note.note_id", note.note_id)
    _text("note.text", note.text, NOTE_MAX_CHARS)
    return note_row(note)


def add_note_command(request: notes_pb2.AddNoteRequest, by: str) -> AddNote:
    """The validated command of a request. Raises InvalidField."""
    if request.kind not in {int(kind) for kind in NoteKind}:
        raise InvalidField("kind", "is missing or unknown (example: NOTE)")
    kind = NoteKind(request.kind)
    if request.result not in {int(result) for result in NotedResult}:
        raise InvalidField("result", "is unknown (example: NOTED_SPOKEN)")
    result = NotedResult(request.result)
    if (kind is NoteKind.NOTE) is not (result is NotedResult.UNSPECIFIED):
        needed = "must be unspecified for NOTE" if result else "is missing: say what came of the call"
        raise InvalidField("result", f"{needed} (example of a call: NOTED_SPOKEN)")
    text = request.text.strip()
    if not text and kind in _KINDS_NEEDING_TEXT:
        raise InvalidField("text", f"is missing: {kind.name} needs one")
    return AddNote(
        by=by,
        note_key=fields.required_id("note_key", request.note_key),
        kind=kind,
        result=result,
        text=_text("text", text, NOTE_MAX_CHARS),
        kept=request.kept if request.HasField("kept") else kind in KEPT_KINDS,
    )


# ── answers of desks and units ────────────────────────────────────────────────────────────────────────────────────────


def reason(text: str) -> str:
    """The validated reason of a rejection. Raises InvalidField."""
    if not text.strip():
        raise InvalidField("reason", "is missing: state why the desk refuses")
    return _text("reason", text, REASON_MAX_CHARS)


def unit_name(text: str) -> str:
    """The validated name of a unit that was sent by radio, without spaces around it. Raises InvalidField."""
    name = text.strip()
    if not name:
        raise InvalidField("unit_name", "is missing: enter the unit that was ordered to go (example: 순찰 12호)")
    return _text("unit_name", name, UNIT_NAME_MAX_CHARS)


def progress(state: dispatch_pb2.AssignmentState.ValueType) -> AssignmentState:
    """The validated state of a unit's progress. Raises InvalidField."""
    if int(state) not in {int(known) for known in PROGRESS[1:]}:
        raise InvalidField("state", "must be DISPATCHED, EN_ROUTE, ON_SCENE or APPREHENDED")
    return AssignmentState(state)


def seen(state: dispatch_pb2.AssignmentState.ValueType) -> AssignmentState | None:
    """The validated state that a caller saw; None if the request has none. Raises InvalidField."""
    if not state:
        return None
    if int(state) not in {int(known) for known in AssignmentState}:
        raise InvalidField("seen_state", "is unknown")
    return AssignmentState(state)


def close_cause(cause: dispatch_pb2.CloseCause.ValueType, note: str) -> tuple[CloseCause, str]:
    """The validated cause and note of a closed assignment. Raises InvalidField."""
    if int(cause) not in {int(known) for known in CloseCause}:
        raise InvalidField("cause", "is missing or unknown")
    if cause == dispatch_pb2.OTHER and not note.strip():
        raise InvalidField("note", "is missing: describe the cause, since `cause` is OTHER")
    return CloseCause(cause), _text("note", note, CLOSE_NOTE_MAX_CHARS)


def spoken(result: calls_pb2.CallResult.ValueType) -> bool:
    """The validated result of a call: whether an officer spoke with the wearer. Raises InvalidField."""
    if result not in (calls_pb2.SPOKEN, calls_pb2.NOT_ANSWERED):
        raise InvalidField("result", "is missing or unknown (example: SPOKEN)")
    return result == calls_pb2.SPOKEN


def _text(field: str, text: str, max_chars: int) -> str:
    """A text of one line. Raises InvalidField if it is longer, or has a character that can't be printed."""
    if len(text) > max_chars:
        raise InvalidField(field, f"must be at most {max_chars} characters")
    if not text.isprintable():
        raise InvalidField(field, "must be one line of printable characters")
    return text

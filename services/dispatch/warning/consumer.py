"""Turns alerts, advice and closings into messages, within one transaction.

The transaction stores what threatens each person, decides by that which instruction is the present one, and which waiting message it
replaces. The database so always has the situation as far as the streams were read, and what follows from it.

A message may inform of alerts of several incidents: an alert that adds nothing to the present instruction makes no message of its own,
and the person is warned of it all the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, NamedTuple, assert_never

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from services.common import ids
from services.common.observability.lateness import RECEIPT_WITHIN_MS
from services.common.storage.statements import Prepared
from services.dispatch.domain.enums import Advice, WarningFlag
from services.dispatch.domain.events import LogPosition
from services.dispatch.warning import notices, translate
from services.dispatch.warning.domain import (
    READ_MS,
    Advised,
    CalledSilently,
    Cleared,
    DeskClosed,
    DistanceChanged,
    DueInstruction,
    IncidentThreats,
    Instruction,
    Issued,
    MessageKind,
    Occurrence,
    Threatened,
    Unchanged,
    WarnedIncident,
    evolve,
    instruct,
    is_late,
    plan,
)
from services.dispatch.warning.tables import (
    OPEN,
    OUTDATED,
    REPLACED,
    WAITING,
    CoveredAlert,
    MessageRow,
    accepted_alerts,
    advice,
    closings,
    contacts,
    covered_alert_of,
    covered_alerts,
    message_of,
    messages,
    name_of_update,
    notified_persons,
    sendings,
    to_leg,
)
from services.dispatch.warning.translate import ClosedAssignment, GivenAdvice, PhoneSilent, WarnableAlert

STALE_MS = 600_000
"""Age from which an alert counts as read late, after an outage, milliseconds of mesh time. A later alert in the stream may have ended
its threat, so its message waits until the later alerts have been read."""


class SituationCause(NamedTuple):
    """What a person's situation was decided by."""

    cause_id: str
    """Id of the alert, the advice or the step that closed an assignment."""
    incident_id: str
    place: LogPosition
    order_id: str
    partition: int
    is_stale: bool


def accept(connection: sa.Connection, warnable: WarnableAlert, now_ms: int) -> None:
    """Stores an alert and the messages that it causes. A duplicate changes nothing."""
    if not _is_new(connection, warnable.alert_id, now_ms):
        return
    is_stale = warnable.decided_ms is not None and warnable.decided_ms < now_ms - STALE_MS
    if isinstance(warnable.occurrence, PhoneSilent):
        for person_id in () if is_stale else warnable.person_ids:
            _accept_phone_silent(connection, warnable, person_id, now_ms=now_ms)
        return
    cause = SituationCause(
        cause_id=warnable.alert_id,
        incident_id=warnable.incident_id,
        place=warnable.place,
        order_id=warnable.order_id,
        partition=warnable.partition,
        is_stale=is_stale,
    )
    # Before an end of the incident ends the silence, too.
    notified = warnable.notice.person_ids if warnable.notice else ()
    silent = {id_ for id_ in (*_concerned(connection, warnable), *notified) if _has_called_silently(connection, id_)}
    for person_id in _concerned(connection, warnable):
        _apply(connection, person_id, warnable.occurrence, cause=cause, drill=warnable.drill, now_ms=now_ms)
    notices.accept_notice(connection, warnable, now_ms, is_stale=is_stale, silent_callers=silent)


def accept_advice(connection: sa.Connection, given: GivenAdvice, now_ms: int) -> None:
    """Stores advice, or its withdrawal, and the messages that it causes. It may arrive before the alert on which it rests."""
    if not _is_new(connection, given.advice_id, now_ms):
        return
    sequence, ordinal = given.place
    _PUT_ADVICE.execute(
        connection,
        {
            "incident_id": given.incident_id,
            "subject_id": given.subject_id,
            "advice": int(given.advice),
            "advice_id": given.advice_id,
            "number": given.number,
            "sequence": sequence,
            "ordinal": ordinal,
            "at_ms": given.at_ms,
        },
    )
    cause = SituationCause(
        cause_id=given.advice_id,
        incident_id=given.incident_id,
        place=given.place,
        order_id="",
        partition=0,
        is_stale=given.at_ms < now_ms - STALE_MS,
    )
    for person_id in _persons_in(connection, given.incident_id):
        _instruct(connection, person_id, cause, was_silent=_has_called_silently(connection, person_id), now_ms=now_ms)


def accept_closing(connection: sa.Connection, closed: ClosedAssignment, now_ms: int) -> None:
    """Stores that the police have closed an assignment, and the messages that this causes."""
    if not _is_new(connection, closed.step_id, now_ms):
        return
    _PUT_CLOSING.execute(
        connection,
        {
            "incident_id": closed.incident_id,
            "subject_id": closed.subject_id,
            "closed_ms": closed.closed_ms,
            "found_nobody": closed.found_nobody,
        },
    )
    _END_ADVICE.execute(
        connection, {"in": closed.incident_id, "subject": closed.subject_id, "closed_ms": closed.closed_ms}
    )
    cause = SituationCause(
        cause_id=closed.step_id,
        incident_id=closed.incident_id,
        place=(0, 0),
        order_id="",
        partition=0,
        is_stale=closed.closed_ms < now_ms - STALE_MS,
    )
    for person_id in _persons_in(connection, closed.incident_id):
        _apply(connection, person_id, None, cause=cause, drill=False, now_ms=now_ms)


def _is_new(connection: sa.Connection, alert_id: str, now_ms: int) -> bool:
    return bool(_ACCEPT.execute(connection, {"alert_id": alert_id, "at_ms": now_ms}))


def _concerned(connection: sa.Connection, warnable: WarnableAlert) -> list[str]:
    """Returns the persons whom an alert concerns. If the alert ends a threat, these include all who were warned in the incident."""
    if not isinstance(warnable.occurrence, Cleared):
        return list(warnable.person_ids)
    return list(dict.fromkeys((*warnable.person_ids, *_persons_in(connection, warnable.incident_id))))


def _persons_in(connection: sa.Connection, incident_id: str) -> list[str]:
    return [person_id for (person_id,) in _PERSONS_IN.fetch(connection, {"incident_id": incident_id})]


def _apply(
    connection: sa.Connection,
    person_id: str,
    occurrence: Occurrence | None,
    *,
    cause: SituationCause,
    drill: bool,
    now_ms: int,
) -> None:
    """Applies an occurrence to what threatens a person in an incident, and to her instruction.

    The police's closings are applied with each occurrence: the stream of alerts may be read behind theirs. None applies them alone.
    """
    key = {"incident_id": cause.incident_id, "person_id": person_id}
    rows = _STATE_OF.fetch(connection, key)
    before = translate.threats_from_json(json.loads(rows[0][0])) if rows else IncidentThreats()
    was_silent = _has_called_silently(connection, person_id)
    after = evolve(before, occurrence) if occurrence else before
    for closing in _closings(connection, cause.incident_id, person_id):
        after = evolve(after, closing)
    informs = isinstance(occurrence, Threatened | DistanceChanged) and not is_late(before, occurrence)
    if after == before and not informs:
        return
    state = {
        "state": json.dumps(translate.threats_to_json(after)),
        "is_open": after.is_open,
        "is_silent": after.silent_call is not None,
        "drill": bool(rows[0][1]) if rows else drill,
        "over_ms": None if after.active else now_ms if before.active else rows[0][2] if rows else None,
    }
    _UPSERT_STATE.execute(connection, {**key, **state, "flag": 0, "flag_ms": 0, "duress": False})
    if isinstance(occurrence, CalledSilently):
        # Nothing that is on its way to her phone may arrive there any more.
        _STOP_SENDING.execute(connection, {"to": person_id})
        _SHOW_IN_APP_ONLY.execute(connection, {"to": person_id})
    message = _instruct(connection, person_id, cause, was_silent=was_silent, now_ms=now_ms)
    if informs and message is not None:
        alert = CoveredAlert(cause.incident_id, alert_id=cause.cause_id, place=cause.place, order_id=cause.order_id)
        cover(connection, message, alert, now_ms=now_ms)


def _instruct(
    connection: sa.Connection, person_id: str, cause: SituationCause, *, was_silent: bool, now_ms: int
) -> MessageRow | None:
    """Decides which instruction is the present one of a person, and stores it if it is new.

    Returns the message that informs her of her situation: the present one, or the one that waits. None if there is none.
    """
    incidents = _incidents(connection, person_id)
    present = instruct(incidents)
    issued_row, waiting_row = _last_messages(connection, person_id)
    issued = Issued(_instruction(issued_row), issued_row.issued_ms or 0) if issued_row else None
    waiting = Issued(_instruction(waiting_row), waiting_row.due_ms) if waiting_row else None
    planned = plan(issued, waiting, present, now_ms=now_ms)
    match planned:
        case Unchanged.AS_WAITING:
            return waiting_row
        case Unchanged.AS_ISSUED:
            if waiting_row is not None:
                _replace(connection, waiting_row, issued_row, now_ms=now_ms)
            return issued_row
        case DueInstruction():
            in_app_only = was_silent or any(each.threats.silent_call for each in incidents)
            message = _row(person_id, planned, cause, issued_row=issued_row, in_app_only=in_app_only, now_ms=now_ms)
            _INSERT.execute(connection, asdict(message))
            if waiting_row is not None:
                _replace(connection, waiting_row, message, now_ms=now_ms)
            if present is not None:
                alert = CoveredAlert(
                    present.incident_id, alert_id=present.alert_id, place=present.place, order_id=present.order_id
                )
                cover(connection, message, alert, now_ms=now_ms)
            return message
        case _:
            assert_never(planned)


def _closings(connection: sa.Connection, incident_id: str, person_id: str) -> list[DeskClosed]:
    """The police's closings of assignments to a person, or to protected places, in an incident."""
    return [
        DeskClosed(subject_id if "/" in subject_id else "", closed_ms, bool(found_nobody))
        for subject_id, closed_ms, found_nobody in _CLOSINGS_IN.fetch(connection, {"in": incident_id})
        if subject_id == person_id or "/" in subject_id
    ]


def _incidents(connection: sa.Connection, person_id: str) -> list[WarnedIncident]:
    """The incidents in which something threatens a person, with the advice there."""
    found = []
    for incident_id, state, drill in _OPEN_OF_PERSON.fetch(connection, {"to": person_id}):
        given = [
            Advised(
                advice=Advice(number),
                place_id=subject_id if "/" in subject_id else "",
                place=(sequence, ordinal),
                advice_id=advice_id,
                at_ms=at_ms,
            )
            for subject_id, number, advice_id, sequence, ordinal, at_ms in _ADVICE_IN.fetch(
                connection, {"in": incident_id}
            )
            if subject_id == person_id or "/" in subject_id
        ]
        found.append(
            WarnedIncident(
                incident_id, threats=translate.threats_from_json(json.loads(state)), advice=given, drill=bool(drill)
            )
        )
    return found


def _last_messages(connection: sa.Connection, person_id: str) -> tuple[MessageRow | None, MessageRow | None]:
    """The instruction or all-clear that a person was told last, and the one that waits."""
    rows = [message_of(row) for row in _PRESENT_OF_PERSON.fetch(connection, {"to": person_id})]
    issued = next((row for row in rows if row.issued_ms is not None), None)
    return issued, next((row for row in rows if row.issued_ms is None), None)


def _instruction(message: MessageRow | None) -> Instruction | None:
    return translate.instruction_from_json(message.instruction) if message and message.instruction else None


def _row(
    person_id: str,
    due: DueInstruction,
    cause: SituationCause,
    *,
    issued_row: MessageRow | None,
    in_app_only: bool,
    now_ms: int,
) -> MessageRow:
    # A later alert in the stream may replace a stale one. So the message waits until the later alerts have been read.
    due_ms = max(due.due_ms, now_ms + READ_MS) if cause.is_stale else due.due_ms
    common: dict[str, Any] = {
        "message_id": ids.hash_id("warning", cause.cause_id, person_id),
        "person_id": person_id,
        "made_ms": now_ms,
        "due_ms": due_ms,
        "state": WAITING,
        "in_app_only": in_app_only,
    }
    instruction = due.instruction
    if instruction is None:
        # The all-clear belongs to the incident that she was told of.
        return MessageRow(
            **common,
            incident_id=issued_row.incident_id if issued_row else cause.incident_id,
            order_id=issued_row.order_id if issued_row else cause.order_id,
            partition=cause.partition,
            alert_id=cause.cause_id,
            sequence=cause.place[0],
            ordinal=cause.place[1],
            kind=MessageKind.OVER.value,
            drill=issued_row.drill if issued_row else False,
        )
    return MessageRow(
        **common,
        incident_id=instruction.incident_id,
        order_id=instruction.order_id,
        partition=instruction.partition,
        alert_id=instruction.alert_id,
        sequence=instruction.place[0],
        ordinal=instruction.place[1],
        kind=MessageKind.INSTRUCTION.value,
        drill=instruction.drill,
        instruction=translate.instruction_to_json(instruction),
        receipt_due_ms=None if in_app_only else due_ms + RECEIPT_WITHIN_MS,
    )


def _replace(connection: sa.Connection, waiting: MessageRow, by: MessageRow | None, *, now_ms: int) -> None:
    """Replaces a waiting message, which is then never told. The message in its place informs of its alerts, too."""
    _REPLACE.execute(connection, {"which": waiting.message_id, "now_ms": now_ms})
    for alert in _forget_covered(connection, waiting):
        if by is not None:
            cover(connection, by, alert, now_ms=now_ms)


def _accept_phone_silent(connection: sa.Connection, warnable: WarnableAlert, person_id: str, *, now_ms: int) -> None:
    """Stores the message that a person's own device isn't reporting. The message belongs to no incident."""
    if not _has_device(connection, person_id) or _has_called_silently(connection, person_id):
        return
    message = MessageRow(
        message_id=ids.hash_id("warning", warnable.alert_id, person_id),
        incident_id="",
        person_id=person_id,
        order_id=warnable.order_id,
        partition=warnable.partition,
        alert_id=warnable.alert_id,
        sequence=warnable.place[0],
        ordinal=warnable.place[1],
        kind=MessageKind.PHONE_SILENT.value,
        drill=warnable.drill,
        made_ms=now_ms,
        due_ms=now_ms,
        state=WAITING,
    )
    _INSERT.execute(connection, asdict(message))


def _has_device(connection: sa.Connection, person_id: str) -> bool:
    return any(connection.scalars(_DEVICES, {"person_id": person_id}))


def _has_called_silently(connection: sa.Connection, person_id: str) -> bool:
    """Whether a person has called for help in silence, in an incident that is still open."""
    return bool(_IS_SILENT.fetch(connection, {"to": person_id}))


def silent_callers(connection: sa.Connection) -> frozenset[str]:
    """All persons who have called for help in silence, in incidents that are still open."""
    return frozenset(person_id for (person_id,) in _SILENT_CALLERS.fetch(connection))


_ACCEPT = Prepared(insert(accepted_alerts).on_conflict_do_nothing())
_INSERT = Prepared(insert(messages).on_conflict_do_nothing())
_PERSONS_IN = Prepared(
    sa.select(notified_persons.c.person_id).where(notified_persons.c.incident_id == sa.bindparam("incident_id"))
)
_STATE_OF = Prepared(
    sa.select(notified_persons.c.state, notified_persons.c.drill, notified_persons.c.over_ms).where(
        notified_persons.c.incident_id == sa.bindparam("incident_id"),
        notified_persons.c.person_id == sa.bindparam("person_id"),
    )
)
# The indices are partial. SQLite uses them only if the statement repeats their condition literally.
_IS_OPEN, _IS_PRESENT = sa.text("is_open"), sa.text("past_ms is null")
_OPEN_OF_PERSON = Prepared(
    sa.select(notified_persons.c.incident_id, notified_persons.c.state, notified_persons.c.drill)
    .where(notified_persons.c.person_id == sa.bindparam("to"), _IS_OPEN)
    .order_by(notified_persons.c.incident_id)
)
_SILENT_ONES = sa.select(notified_persons.c.person_id).where(sa.text("is_silent"))
_IS_SILENT = Prepared(_SILENT_ONES.where(notified_persons.c.person_id == sa.bindparam("to")).limit(1))
_SILENT_CALLERS = Prepared(_SILENT_ONES.distinct())
_NEW_STATE = insert(notified_persons)
_UPSERT_STATE = Prepared(
    _NEW_STATE.on_conflict_do_update(
        index_elements=["incident_id", "person_id"],
        set_={name: _NEW_STATE.excluded[name] for name in ("state", "is_open", "is_silent", "over_ms")},
    )
)
_NEW_ADVICE = insert(advice)
_PUT_ADVICE = Prepared(
    _NEW_ADVICE.on_conflict_do_update(
        index_elements=["incident_id", "subject_id"],
        set_={column.name: _NEW_ADVICE.excluded[column.name] for column in advice.c if not column.primary_key},
        where=_NEW_ADVICE.excluded.number > advice.c.number,
    )
)
_END_ADVICE = Prepared(
    sa.update(advice)
    .where(
        advice.c.incident_id == sa.bindparam("in"),
        advice.c.subject_id == sa.bindparam("subject"),
        advice.c.at_ms <= sa.bindparam("closed_ms"),
    )
    .values(advice=int(Advice.NONE))
)
_ADVICE_IN = Prepared(
    sa.select(
        *(advice.c[name] for name in ("subject_id", "advice", "advice_id", "sequence", "ordinal", "at_ms")),
    )
    .where(advice.c.incident_id == sa.bindparam("in"), advice.c.advice != int(Advice.NONE))
    .order_by(advice.c.subject_id)
)
_NEW_CLOSING = insert(closings)
_PUT_CLOSING = Prepared(
    _NEW_CLOSING.on_conflict_do_update(
        index_elements=["incident_id", "subject_id"],
        set_={name: _NEW_CLOSING.excluded[name] for name in ("closed_ms", "found_nobody")},
        where=_NEW_CLOSING.excluded.closed_ms > closings.c.closed_ms,
    )
)
_CLOSINGS_IN = Prepared(
    sa.select(closings.c.subject_id, closings.c.closed_ms, closings.c.found_nobody)
    .where(closings.c.incident_id == sa.bindparam("in"))
    .order_by(closings.c.subject_id)
)
_INSTRUCTIONS = (MessageKind.INSTRUCTION.value, MessageKind.OVER.value)
_PRESENT_OF_PERSON = Prepared(
    sa.select(messages)
    .where(messages.c.person_id == sa.bindparam("to"), _IS_PRESENT, messages.c.kind.in_(_INSTRUCTIONS))
    .order_by(messages.c.made_ms.desc())
)
_REPLACE = Prepared(
    sa.update(messages)
    .where(messages.c.message_id == sa.bindparam("which"))
    .values(state=REPLACED, receipt_due_ms=None, past_ms=sa.bindparam("now_ms"))
)
_STOP_SENDING = Prepared(
    sa.update(sendings)
    .where(
        sendings.c.message_id.in_(sa.select(messages.c.message_id).where(messages.c.person_id == sa.bindparam("to"))),
        sendings.c.outcome == OPEN,
    )
    .values(outcome=OUTDATED)
)
_SHOW_IN_APP_ONLY = Prepared(
    sa.update(messages)
    .where(messages.c.person_id == sa.bindparam("to"), messages.c.state == WAITING, _IS_PRESENT)
    .values(in_app_only=True, receipt_due_ms=None)
)
_DEVICES = sa.select(contacts.c.device_ids).where(contacts.c.person_id == sa.bindparam("person_id"))


def cover(connection: sa.Connection, message: MessageRow, alert: CoveredAlert, *, now_ms: int) -> None:
    """Notes that a message informs of an alert. If a receipt has confirmed the message, the person knows of the alert already."""
    sequence, ordinal = alert.place
    values = {"incident_id": alert.incident_id, "alert_id": alert.alert_id, "order_id": alert.order_id}
    values_of_alert = {"message_id": message.message_id, "sequence": sequence, "ordinal": ordinal}
    is_newest = _PUT_COVERED.execute(connection, {**values, **values_of_alert, "acknowledged": False})
    if is_newest and message.receipt is not None:
        acknowledge_covered(connection, message, now_ms=now_ms)


def alerts_of(connection: sa.Connection, message: MessageRow) -> list[CoveredAlert]:
    """The newest alert of each incident of which a message informs."""
    rows = _OF_MESSAGE.fetch(connection, {"which": message.message_id})
    return [covered_alert_of(dict(zip(covered_alerts.c.keys(), row, strict=True))) for row in rows]


def _forget_covered(connection: sa.Connection, message: MessageRow) -> list[CoveredAlert]:
    """Returns the alerts of which a message informs, and forgets that it does."""
    alerts = alerts_of(connection, message)
    _FORGET_COVERED.execute(connection, {"which": message.message_id})
    return alerts


def acknowledge_covered(connection: sa.Connection, message: MessageRow, *, now_ms: int) -> None:
    """Reports to the leg, once for each, the alerts of which a message that has a receipt and the messages before it inform."""
    until = {"to": message.person_id, "until_ms": message.due_ms}
    newest: dict[str, CoveredAlert] = {}
    for row in _UNACKNOWLEDGED.fetch(connection, until):
        alert = covered_alert_of(dict(zip(covered_alerts.c.keys(), row, strict=True)))
        newest[alert.incident_id] = max(alert, newest.get(alert.incident_id, alert), key=lambda each: each.place)
    _ACKNOWLEDGE_COVERED.execute(connection, until)
    for alert in newest.values():
        add_leg_update(connection, message, alert, flag=None, now_ms=now_ms)


def add_leg_update(
    connection: sa.Connection, message: MessageRow, alert: CoveredAlert, *, flag: WarningFlag | None, now_ms: int
) -> None:
    """Adds an update of the leg: a receipt, or a flag about the person of a message."""
    sequence, ordinal = alert.place
    _ADD_LEG_UPDATE.execute(
        connection,
        {
            "message_id": message.message_id,
            "incident_id": alert.incident_id,
            "person_id": message.person_id,
            "order_id": alert.order_id,
            "alert_id": alert.alert_id,
            "sequence": sequence,
            "ordinal": ordinal,
            "what": name_of_update(flag),
            "since_ms": now_ms,
        },
    )


def own_alert(message: MessageRow) -> CoveredAlert:
    """The alert on which a message itself rests."""
    place = message.sequence, message.ordinal
    return CoveredAlert(message.incident_id, alert_id=message.alert_id, place=place, order_id=message.order_id)


_NEW_COVERED = insert(covered_alerts)


_PUT_COVERED = Prepared(
    _NEW_COVERED.on_conflict_do_update(
        index_elements=["message_id", "incident_id"],
        set_={column.name: _NEW_COVERED.excluded[column.name] for column in covered_alerts.c if not column.primary_key},
        where=sa.or_(
            _NEW_COVERED.excluded.sequence > covered_alerts.c.sequence,
            (_NEW_COVERED.excluded.sequence == covered_alerts.c.sequence)
            & (_NEW_COVERED.excluded.ordinal > covered_alerts.c.ordinal),
        ),
    )
)


_OF_MESSAGE = Prepared(
    sa.select(covered_alerts)
    .where(covered_alerts.c.message_id == sa.bindparam("which"))
    .order_by(covered_alerts.c.incident_id)
)


_FORGET_COVERED = Prepared(sa.delete(covered_alerts).where(covered_alerts.c.message_id == sa.bindparam("which")))


_OF_EARLIER = (
    sa.select(messages.c.message_id)
    .where(
        messages.c.person_id == sa.bindparam("to"),
        messages.c.due_ms <= sa.bindparam("until_ms"),
        messages.c.issued_ms.is_not(None),
        messages.c.ground == "",
    )
    .scalar_subquery()
)


_UNACKNOWLEDGED = Prepared(
    sa.select(covered_alerts)
    .where(covered_alerts.c.message_id.in_(_OF_EARLIER), sa.not_(covered_alerts.c.acknowledged))
    .order_by(covered_alerts.c.incident_id)
)


_ACKNOWLEDGE_COVERED = Prepared(
    sa.update(covered_alerts)
    .where(covered_alerts.c.message_id.in_(_OF_EARLIER), sa.not_(covered_alerts.c.acknowledged))
    .values(acknowledged=True)
)


_ADD_LEG_UPDATE = Prepared(
    sa.insert(to_leg).values({column.name: sa.bindparam(column.name) for column in to_leg.c if column.name != "id"})
)

"""What alerts make of messages, within one transaction: whom each is told to, in whose place, and until when a receipt is awaited."""

from __future__ import annotations

from dataclasses import asdict, replace

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from services.common import ids
from services.dispatch.domain.events import Demand
from services.dispatch.domain.warning import (
    NO_RECEIPT_AWAITED,
    PASSING,
    READ_MS,
    Notice,
    Occurrence,
    Told,
    WarningMessage,
    decide,
)
from services.dispatch.warning.tables import REPLACED, WAITING, MessageRow, contacts, messages, taken, told
from services.dispatch.warning.translate import WarnableAlert, told_from_json, told_to_json

RECEIPT_WITHIN_MS = 30_000
"""The police are told of a warning for which no receipt came after so long, mesh time."""
TTL_MS = 600_000
"""A message that nobody has taken for so long isn't sent any more, mesh time."""


def take(connection: sa.Connection, seen: WarnableAlert, now_ms: int) -> None:
    """Takes an alert in, with what each person is to be told. One that was taken before changes nothing."""
    if _is_new(connection, seen.occurrence.alert_id, now_ms):
        for person_id in _concerned(connection, seen):
            _take(connection, seen, person_id, now_ms)


def take_advice(connection: sa.Connection, seen: WarnableAlert, now_ms: int) -> None:
    """The same of advice, which goes to those who were told of its order, or whom it names."""
    if _is_new(connection, seen.occurrence.alert_id, now_ms):
        for person_id, partition, drill in _told_before(connection, seen):
            _take(connection, replace(seen, partition=partition, drill=drill), person_id, now_ms)


def of_person(message: MessageRow) -> sa.ColumnElement[bool]:
    """All messages to the same person in the same incident."""
    return (messages.c.incident_id == message.incident_id) & (messages.c.person_id == message.person_id)


def _is_new(connection: sa.Connection, alert_id: str, now_ms: int) -> bool:
    return bool(connection.execute(_TAKE, {"alert_id": alert_id, "at_ms": now_ms}).rowcount)


def _concerned(connection: sa.Connection, seen: WarnableAlert) -> list[str]:
    """Whom an alert is told to, or taken back from: what is over may come without saying whom it was told to."""
    occurrence = seen.occurrence
    if not (occurrence.ends or occurrence.demand is Demand.RECORD):
        return list(seen.person_ids)
    in_it = connection.scalars(_TOLD_IN, {"incident_id": occurrence.incident_id})
    return list(dict.fromkeys((*seen.person_ids, *in_it)))


def _told_before(connection: sa.Connection, seen: WarnableAlert) -> list[tuple[str, int, bool]]:
    """(person, partition, whether it is a drill) of those whom advice is for."""
    columns = (messages.c.person_id, messages.c.partition, messages.c.drill)
    query = sa.select(*columns).distinct().where(messages.c.incident_id == seen.occurrence.incident_id)
    if seen.person_ids:
        query = query.where(messages.c.person_id.in_(seen.person_ids))
    else:
        query = query.where(messages.c.order_id == seen.order_id)
    return [(row.person_id, row.partition, row.drill) for row in connection.execute(query)]


def _take(connection: sa.Connection, seen: WarnableAlert, person_id: str, now_ms: int) -> None:
    occurrence = seen.occurrence
    if occurrence.notice is Notice.PHONE_SILENT:
        if _has_device(connection, person_id) and not _is_stale(seen, now_ms):
            message = WarningMessage(Notice.PHONE_SILENT, Demand.NOTIFY, now_ms)
            _insert(connection, _row(replace(seen, occurrence=_of_none(occurrence)), person_id, message, "", now_ms))
        return
    row = connection.execute(_TOLD, {"incident_id": occurrence.incident_id, "person_id": person_id}).first()
    before = told_from_json(row.state) if row else Told()
    after, message_or_none = decide(before, occurrence, now_ms)
    figure = row.figure_alert_id if row else ""
    if message_or_none:
        made = _row(seen, person_id, message_or_none, figure, now_ms)
        _replace_waiting(connection, made)
        if _is_worth_telling(seen, message_or_none, now_ms):
            _insert(connection, made)
        if not occurrence.of_place and occurrence.ring_m:
            figure = occurrence.alert_id
    if row or after != before:
        values = {"state": told_to_json(after), "figure_alert_id": figure, "flag": 0, "flag_ms": 0, "duress": False}
        key = {"incident_id": occurrence.incident_id, "person_id": person_id}
        connection.execute(_TELL, {**key, **values})


def _is_worth_telling(seen: WarnableAlert, message: WarningMessage, now_ms: int) -> bool:
    """After an outage, or with an empty database, a person is told of what still holds, and not of what has passed."""
    return not _is_stale(seen, now_ms) or message.notice not in (*PASSING, *NO_RECEIPT_AWAITED)


def _is_stale(seen: WarnableAlert, now_ms: int) -> bool:
    return seen.decided_ms is not None and seen.decided_ms < now_ms - TTL_MS


def _of_none(occurrence: Occurrence) -> Occurrence:
    return replace(occurrence, incident_id="")


def _row(seen: WarnableAlert, person_id: str, message: WarningMessage, before_alert_id: str, now_ms: int) -> MessageRow:
    occurrence = seen.occurrence
    awaited = message.notice not in NO_RECEIPT_AWAITED
    # What is behind it in the stream may take its place: it is told once that is known.
    due_ms = max(message.due_ms, now_ms + READ_MS) if _is_stale(seen, now_ms) else message.due_ms
    return MessageRow(
        message_id=ids.hash_id("warning", occurrence.alert_id, person_id),
        incident_id=occurrence.incident_id,
        person_id=person_id,
        order_id=seen.order_id,
        partition=seen.partition,
        alert_id=occurrence.alert_id,
        sequence=occurrence.place[0],
        ordinal=occurrence.place[1],
        before_alert_id=before_alert_id,
        notice=message.notice.value,
        demand=int(message.demand),
        ring_m=message.ring_m,
        of_place=message.of_place,
        drill=seen.drill,
        made_ms=now_ms,
        due_ms=due_ms,
        receipt_due_ms=due_ms + RECEIPT_WITHIN_MS if awaited else None,
        state=WAITING,
    )


def _insert(connection: sa.Connection, message: MessageRow) -> None:
    connection.execute(_MAKE, asdict(message))


def _replace_waiting(connection: sa.Connection, newer: MessageRow) -> None:
    """Takes the turn of what waits until then or longer and says no more than it: the same, a change of distance, an end.

    What is due sooner goes out before. A replaced message is never sent, so no receipt of it is awaited.
    """
    values = {"in": newer.incident_id, "to": newer.person_id, "said": newer.notice, "from_ms": newer.due_ms}
    connection.execute(_REPLACE, values)


def _has_device(connection: sa.Connection, person_id: str) -> bool:
    return any(connection.scalars(_DEVICES, {"person_id": person_id}))


# Made once: to build such a statement takes several times as long as to execute it.
_TAKE = insert(taken).on_conflict_do_nothing()
_MAKE = insert(messages).on_conflict_do_nothing()
_TOLD_IN = sa.select(told.c.person_id).where(told.c.incident_id == sa.bindparam("incident_id"))
_TOLD = sa.select(told).where(
    told.c.incident_id == sa.bindparam("incident_id"), told.c.person_id == sa.bindparam("person_id")
)
_TELLING = insert(told)
_TELL = _TELLING.on_conflict_do_update(
    index_elements=["incident_id", "person_id"],
    set_={"state": _TELLING.excluded.state, "figure_alert_id": _TELLING.excluded.figure_alert_id},
)
_REPLACE = (
    sa.update(messages)
    .where(
        messages.c.incident_id == sa.bindparam("in"),
        messages.c.person_id == sa.bindparam("to"),
        messages.c.state == WAITING,
        messages.c.due_ms >= sa.bindparam("from_ms"),
        messages.c.notice.in_([sa.bindparam("said"), Notice.CHANGED.value, Notice.OVER.value]),
    )
    .values(state=REPLACED, receipt_due_ms=None)
)
_DEVICES = sa.select(contacts.c.device_ids).where(contacts.c.person_id == sa.bindparam("person_id"))

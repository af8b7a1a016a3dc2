"""Turns alerts into messages, within one transaction.

The transaction decides who gets a message, which waiting messages the new one replaces, and until when a receipt is awaited.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from services.common import ids
from services.common.deadlines import RECEIPT_WITHIN_MS
from services.common.storage.statements import Prepared
from services.dispatch.domain.enums import Demand
from services.dispatch.notices import store as notices
from services.dispatch.warning.domain import (
    NO_RECEIPT_AWAITED,
    PASSING,
    READ_MS,
    REPLACED_BY_ANY,
    Notice,
    NotifiedState,
    WarningMessage,
    decide,
)
from services.dispatch.warning.tables import (
    REPLACED,
    WAITING,
    MessageRow,
    accepted_alerts,
    contacts,
    messages,
    notified_persons,
)
from services.dispatch.warning.translate import WarnableAlert, notified_from_json, notified_to_json

TTL_MS = 600_000
"""Time after which a channel that hasn't accepted a message gives up, milliseconds of mesh time."""


class _Notified(NamedTuple):
    """A person who was notified in an incident."""

    person_id: str
    partition: int
    drill: bool


def accept(connection: sa.Connection, warnable: WarnableAlert, now_ms: int) -> None:
    """Stores an alert and the messages that it causes. A duplicate changes nothing."""
    if _is_new(connection, warnable.occurrence.alert_id, now_ms):
        for person_id in _concerned(connection, warnable):
            _accept(connection, warnable, person_id, now_ms=now_ms)
        notices.accept(connection, warnable, now_ms, is_stale=_is_stale(warnable, now_ms))


def accept_advice(connection: sa.Connection, warnable: WarnableAlert, now_ms: int) -> None:
    """Stores advice and its messages: to the named persons, or if none is named, to all persons who were warned under its order."""
    if _is_new(connection, warnable.occurrence.alert_id, now_ms):
        for before in _notified_before(connection, warnable):
            advice = replace(warnable, partition=before.partition, drill=before.drill)
            _accept(connection, advice, before.person_id, now_ms=now_ms)


def _is_new(connection: sa.Connection, alert_id: str, now_ms: int) -> bool:
    return bool(_ACCEPT.execute(connection, {"alert_id": alert_id, "at_ms": now_ms}))


def _concerned(connection: sa.Connection, warnable: WarnableAlert) -> list[str]:
    """Returns the persons whom an alert concerns. If the alert ends a threat, these include all who were warned in the incident."""
    occurrence = warnable.occurrence
    if not occurrence.clears:
        return list(warnable.person_ids)
    notified = _PERSONS_IN.fetch(connection, {"incident_id": occurrence.incident_id})
    return list(dict.fromkeys((*warnable.person_ids, *(person_id for (person_id,) in notified))))


def _notified_before(connection: sa.Connection, warnable: WarnableAlert) -> list[_Notified]:
    """Returns the persons who get a piece of advice. All of them got an earlier message in the incident."""
    found = _MESSAGES_IN.fetch(connection, {"incident_id": warnable.occurrence.incident_id})
    return list(
        dict.fromkeys(
            _Notified(person_id, partition, bool(drill))
            for person_id, partition, drill, order_id in found
            if (person_id in warnable.person_ids if warnable.person_ids else order_id == warnable.order_id)
        )
    )


def _accept(connection: sa.Connection, warnable: WarnableAlert, person_id: str, *, now_ms: int) -> None:
    occurrence = warnable.occurrence
    if occurrence.notice is Notice.PHONE_SILENT:
        _accept_phone_silent(connection, warnable, person_id, now_ms=now_ms)
        return
    key = {"incident_id": occurrence.incident_id, "person_id": person_id}
    rows = _STATE_OF.fetch(connection, key)
    known_state, distance_alert_id = rows[0] if rows else (None, "")
    before = notified_from_json(json.loads(known_state)) if known_state else NotifiedState()
    after, message = decide(before, occurrence, now_ms)
    if message:
        new_row = _row(warnable, person_id, message, before_alert_id=distance_alert_id, now_ms=now_ms)
        if message.notice is Notice.APPROACH:
            new_row = _with_nearest(connection, new_row)
        _replace_waiting(connection, new_row)
        if message.notice is Notice.OVER:
            _drop_unsent(connection, new_row, now_ms)
            is_relevant = _was_warned(connection, new_row)
        else:
            is_relevant = _is_relevant(warnable, message, now_ms)
        if is_relevant:
            _insert(connection, new_row)
        if not occurrence.of_place and occurrence.ring_m:
            distance_alert_id = occurrence.alert_id
    if rows or after != before:
        state = {"state": json.dumps(notified_to_json(after)), "figure_alert_id": distance_alert_id}
        _UPSERT_STATE.execute(connection, {**key, **state, "flag": 0, "flag_ms": 0, "duress": False})


def _accept_phone_silent(connection: sa.Connection, warnable: WarnableAlert, person_id: str, *, now_ms: int) -> None:
    """Stores the message that a person's own device isn't reporting. The message belongs to no incident."""
    if not _has_device(connection, person_id) or _is_stale(warnable, now_ms):
        return
    message = WarningMessage(Notice.PHONE_SILENT, Demand.NOTIFY, now_ms)
    without_incident = replace(warnable, occurrence=replace(warnable.occurrence, incident_id=""))
    _insert(connection, _row(without_incident, person_id, message, before_alert_id="", now_ms=now_ms))


def _drop_unsent(connection: sa.Connection, over: MessageRow, now_ms: int) -> None:
    """Drops messages that aren't due yet: after OVER they would warn of a threat that is over."""
    _DROP_UNSENT.execute(connection, {"in": over.incident_id, "to": over.person_id, "now_ms": now_ms})


def _was_warned(connection: sa.Connection, over: MessageRow) -> bool:
    """Whether a person got a message that OVER ends, however long ago.

    After an outage, an incident may have begun and ended among the alerts that are read together. Nobody was warned of it.
    """
    return bool(_SENT_IN.fetch(connection, {"in": over.incident_id, "to": over.person_id}))


def _is_relevant(warnable: WarnableAlert, message: WarningMessage, now_ms: int) -> bool:
    """Whether to send a warning. A stale alert, read after an outage, warns only of a threat that may still be active."""
    return not _is_stale(warnable, now_ms) or message.notice not in PASSING


def _is_stale(warnable: WarnableAlert, now_ms: int) -> bool:
    return warnable.decided_ms is not None and warnable.decided_ms < now_ms - TTL_MS


def _row(
    warnable: WarnableAlert, person_id: str, message: WarningMessage, *, before_alert_id: str, now_ms: int
) -> MessageRow:
    occurrence = warnable.occurrence
    awaited = message.notice not in NO_RECEIPT_AWAITED
    # A later alert in the stream may replace a stale one. So the message waits until the later alerts have been read.
    due_ms = max(message.due_ms, now_ms + READ_MS) if _is_stale(warnable, now_ms) else message.due_ms
    return MessageRow(
        message_id=ids.hash_id("warning", occurrence.alert_id, person_id),
        incident_id=occurrence.incident_id,
        person_id=person_id,
        order_id=warnable.order_id,
        partition=warnable.partition,
        alert_id=occurrence.alert_id,
        sequence=occurrence.place[0],
        ordinal=occurrence.place[1],
        before_alert_id=before_alert_id,
        notice=message.notice.value,
        demand=int(message.demand),
        ring_m=message.ring_m,
        of_place=message.of_place,
        drill=warnable.drill,
        made_ms=now_ms,
        due_ms=due_ms,
        receipt_due_ms=due_ms + RECEIPT_WITHIN_MS if awaited else None,
        state=WAITING,
    )


def _insert(connection: sa.Connection, message: MessageRow) -> None:
    _INSERT.execute(connection, asdict(message))


def _with_nearest(connection: sa.Connection, newer: MessageRow) -> MessageRow:
    """Returns a message about a ring with the nearest of the rings that the messages which it replaces are about.

    A wearer may come within 100 m of a person while he is within 100 m of her home. If he then comes within 1 km of another place, she
    must still hear of the 100 m.
    """
    rings = _NEAREST_WAITING.fetch(connection, _replaced_by(newer))
    if not rings or rings[0][0] >= newer.ring_m:
        return newer
    [(ring_m, of_place, demand)] = rings
    return replace(newer, ring_m=ring_m, of_place=bool(of_place), demand=max(demand, newer.demand))


def _replaced_by(newer: MessageRow) -> dict[str, object]:
    return {"in": newer.incident_id, "to": newer.person_id, "said": newer.notice, "from_ms": newer.due_ms}


def _replace_waiting(connection: sa.Connection, newer: MessageRow) -> None:
    """Replaces waiting messages that are due no sooner and add nothing: the same notice, CHANGED, or OVER.

    A message that is due sooner is still sent. A replaced message is never sent, so no receipt is awaited.
    """
    _REPLACE.execute(connection, _replaced_by(newer))


def _has_device(connection: sa.Connection, person_id: str) -> bool:
    return any(connection.scalars(_DEVICES, {"person_id": person_id}))


_ACCEPT = Prepared(insert(accepted_alerts).on_conflict_do_nothing())
_INSERT = Prepared(insert(messages).on_conflict_do_nothing())
_PERSONS_IN = Prepared(
    sa.select(notified_persons.c.person_id).where(notified_persons.c.incident_id == sa.bindparam("incident_id"))
)
_MESSAGES_IN = Prepared(
    sa.select(messages.c.person_id, messages.c.partition, messages.c.drill, messages.c.order_id)
    .distinct()
    .where(messages.c.incident_id == sa.bindparam("incident_id"))
)
_STATE_OF = Prepared(
    sa.select(notified_persons.c.state, notified_persons.c.figure_alert_id).where(
        notified_persons.c.incident_id == sa.bindparam("incident_id"),
        notified_persons.c.person_id == sa.bindparam("person_id"),
    )
)
_NEW_STATE = insert(notified_persons)
_UPSERT_STATE = Prepared(
    _NEW_STATE.on_conflict_do_update(
        index_elements=["incident_id", "person_id"],
        set_={"state": _NEW_STATE.excluded.state, "figure_alert_id": _NEW_STATE.excluded.figure_alert_id},
    )
)
_NEAREST_WAITING = Prepared(
    sa.select(messages.c.ring_m, messages.c.of_place, messages.c.demand)
    .where(
        messages.c.incident_id == sa.bindparam("in"),
        messages.c.person_id == sa.bindparam("to"),
        messages.c.state == WAITING,
        messages.c.due_ms >= sa.bindparam("from_ms"),
        messages.c.notice == sa.bindparam("said"),
        messages.c.ring_m > 0,
    )
    .order_by(messages.c.ring_m, messages.c.of_place)
    .limit(1)
)
_REPLACE = Prepared(
    sa.update(messages)
    .where(
        messages.c.incident_id == sa.bindparam("in"),
        messages.c.person_id == sa.bindparam("to"),
        messages.c.state == WAITING,
        messages.c.due_ms >= sa.bindparam("from_ms"),
        messages.c.notice.in_([sa.bindparam("said"), *sorted(notice.value for notice in REPLACED_BY_ANY)]),
    )
    .values(state=REPLACED, receipt_due_ms=None)
)
_DROP_UNSENT = Prepared(
    sa.update(messages)
    .where(
        messages.c.incident_id == sa.bindparam("in"),
        messages.c.person_id == sa.bindparam("to"),
        messages.c.state == WAITING,
        messages.c.due_ms > sa.bindparam("now_ms"),
        messages.c.ground == "",
    )
    .values(state=REPLACED, receipt_due_ms=None)
)
_SENT_IN = Prepared(
    sa.select(messages.c.message_id)
    .where(
        messages.c.incident_id == sa.bindparam("in"),
        messages.c.person_id == sa.bindparam("to"),
        messages.c.state != REPLACED,
        messages.c.ground == "",
    )
    .limit(1)
)
_DEVICES = sa.select(contacts.c.device_ids).where(contacts.c.person_id == sa.bindparam("person_id"))

"""Turns the Ministry's notices in alerts into messages, within the transaction in which the warnings accept the alerts."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from services.common import ids
from services.common.observability.telemetry import logger
from services.common.storage.statements import Prepared
from services.dispatch.domain.enums import Demand
from services.dispatch.notices.domain import NoticeAlert, NoticeMessage, NoticeRefusal, NoticeState, decide
from services.dispatch.warning.domain import Notice
from services.dispatch.warning.tables import REFUSED, REPLACED, WAITING, MessageRow, messages, ministry_notices
from services.dispatch.warning.translate import WarnableAlert

_NOTICES = {NoticeMessage.GIVEN: Notice.MINISTRY, NoticeMessage.ENDED: Notice.MINISTRY_OVER}


def accept(connection: sa.Connection, warnable: WarnableAlert, now_ms: int, *, is_stale: bool) -> None:
    """Stores the messages of the notice in an alert, and of the end of the incident's notices if the alert ends the incident."""
    alert, incident_id = warnable.notice, warnable.occurrence.incident_id
    if alert is not None and (refusal := _refusal(warnable, alert, is_stale=is_stale)) is not None:
        log_refusal(refusal, warnable.occurrence.alert_id)
        alert = None
    if alert is not None:
        for person_id in alert.person_ids:
            _accept(connection, warnable, person_id, ended=alert.ended, now_ms=now_ms)
    if warnable.occurrence.ends:
        for (person_id,) in connection.execute(_OF_INCIDENT, {"incident_id": incident_id}).all():
            _accept(connection, warnable, person_id, ended=True, now_ms=now_ms)


def log_refusal(refusal: NoticeRefusal, alert_id: str) -> None:
    """Logs that a notice isn't given, and why."""
    logger().warning("notice_refused", reason=refusal.value, alert_id=alert_id)


def _refusal(warnable: WarnableAlert, alert: NoticeAlert, *, is_stale: bool) -> NoticeRefusal | None:
    if alert.ended:
        return None  # a person who was notified learns of the end
    if alert.ground is None:
        return NoticeRefusal.NO_GROUND
    if warnable.drill:
        return NoticeRefusal.EXERCISE
    return NoticeRefusal.OUTDATED if is_stale else None


def _accept(connection: sa.Connection, warnable: WarnableAlert, person_id: str, *, ended: bool, now_ms: int) -> None:
    occurrence = warnable.occurrence
    key = {"incident_id": occurrence.incident_id, "person_id": person_id}
    rows = _STATE_OF.fetch(connection, key)
    ground, wearer_id, case_id = "", "", ""
    before = NoticeState()
    if rows:
        ground, wearer_id, case_id, *positions = rows[0]
        before = NoticeState((positions[0], positions[1]), (positions[2], positions[3]))
    if warnable.notice is not None and warnable.notice.ground is not None:
        ground, wearer_id, case_id = warnable.notice.ground.value, warnable.notice.wearer_id, warnable.notice.case_id
    after, message = decide(before, occurrence.place, ended=ended)
    if after != before:
        (due_sequence, due_ordinal), (ended_sequence, ended_ordinal) = after.due, after.ended
        values = {"ground": ground, "wearer_id": wearer_id, "case_id": case_id}
        values_of_state = {
            "due_sequence": due_sequence,
            "due_ordinal": due_ordinal,
            "ended_sequence": ended_sequence,
            "ended_ordinal": ended_ordinal,
        }
        _UPSERT_STATE.execute(connection, {**key, **values, **values_of_state})
    if message is None:
        return
    to_her = {"in": occurrence.incident_id, "to": person_id}
    _REPLACE.execute(connection, to_her)
    if message is NoticeMessage.ENDED and not _GIVEN_IN.fetch(connection, to_her):
        return  # the notice was refused, or waited for its ledger row until it had ended
    new = MessageRow(
        message_id=ids.hash_id("warning", occurrence.alert_id, person_id, "ministry"),
        incident_id=occurrence.incident_id,
        person_id=person_id,
        order_id=warnable.order_id,
        partition=warnable.partition,
        alert_id=occurrence.alert_id,
        sequence=occurrence.place[0],
        ordinal=occurrence.place[1],
        before_alert_id="",
        notice=_NOTICES[message].value,
        demand=int(occurrence.demand if message is NoticeMessage.GIVEN else Demand.RECORD),
        ring_m=occurrence.ring_m,
        of_place=occurrence.of_place,
        drill=warnable.drill,
        made_ms=now_ms,
        due_ms=now_ms,
        # The police's own warning of the same alert awaits a receipt.
        receipt_due_ms=None,
        state=WAITING,
        ground=ground,
        wearer_id=wearer_id,
        case_id=case_id,
    )
    _INSERT.execute(connection, asdict(new))


_INSERT = Prepared(insert(messages).on_conflict_do_nothing())
_OF_INCIDENT = sa.select(ministry_notices.c.person_id).where(
    ministry_notices.c.incident_id == sa.bindparam("incident_id")
)
_STATE_OF = Prepared(
    sa.select(
        ministry_notices.c.ground,
        ministry_notices.c.wearer_id,
        ministry_notices.c.case_id,
        ministry_notices.c.due_sequence,
        ministry_notices.c.due_ordinal,
        ministry_notices.c.ended_sequence,
        ministry_notices.c.ended_ordinal,
    ).where(
        ministry_notices.c.incident_id == sa.bindparam("incident_id"),
        ministry_notices.c.person_id == sa.bindparam("person_id"),
    )
)
_NEW_STATE = insert(ministry_notices)
_UPSERT_STATE = Prepared(
    _NEW_STATE.on_conflict_do_update(
        index_elements=["incident_id", "person_id"],
        set_={column.name: _NEW_STATE.excluded[column.name] for column in ministry_notices.c if not column.primary_key},
    )
)
_REPLACE = Prepared(
    sa.update(messages)
    .where(
        messages.c.incident_id == sa.bindparam("in"),
        messages.c.person_id == sa.bindparam("to"),
        messages.c.state == WAITING,
        messages.c.ground != "",
    )
    .values(state=REPLACED)
)
_GIVEN_IN = Prepared(
    sa.select(messages.c.message_id)
    .where(
        messages.c.incident_id == sa.bindparam("in"),
        messages.c.person_id == sa.bindparam("to"),
        messages.c.notice == Notice.MINISTRY.value,
        messages.c.state.not_in((REPLACED, REFUSED)),
    )
    .limit(1)
)

"""Turns the Ministry's notices in alerts into messages, within the transaction in which the warnings accept the alerts."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from services.common import ids
from services.common.observability.telemetry import logger
from services.common.storage.statements import Prepared
from services.dispatch.warning.domain import (
    MessageKind,
    NoticeAlert,
    NoticeRefusal,
    NoticeState,
    decide_notice,
)
from services.dispatch.warning.tables import (
    REFUSED,
    REPLACED,
    WAITING,
    MessageRow,
    messages,
    ministry_notices,
)
from services.dispatch.warning.translate import WarnableAlert


def accept_notice(
    connection: sa.Connection,
    warnable: WarnableAlert,
    now_ms: int,
    *,
    is_stale: bool,
    silent_callers: Container[str] = (),
) -> None:
    """Stores the messages of the notice in an alert, and of the end of the incident's notices if the alert ends the incident.

    Nothing may be sent to the phones of `silent_callers`: they have called for help in silence.
    """
    alert, incident_id = warnable.notice, warnable.incident_id
    if alert is not None and (refusal := _refusal(warnable, alert, is_stale=is_stale)) is not None:
        log_refusal(refusal, warnable.alert_id)
        alert = None
    if alert is not None:
        for person_id in alert.person_ids:
            is_silent = person_id in silent_callers
            _accept(connection, warnable, person_id, ended=alert.ended, in_app_only=is_silent, now_ms=now_ms)
    if warnable.ends_incident:
        for (person_id,) in connection.execute(_OF_INCIDENT, {"incident_id": incident_id}).all():
            is_silent = person_id in silent_callers
            _accept(connection, warnable, person_id, ended=True, in_app_only=is_silent, now_ms=now_ms)


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


def _accept(
    connection: sa.Connection,
    warnable: WarnableAlert,
    person_id: str,
    *,
    ended: bool,
    in_app_only: bool,
    now_ms: int,
) -> None:
    key = {"incident_id": warnable.incident_id, "person_id": person_id}
    rows = _STATE_OF.fetch(connection, key)
    ground = ""
    wearer_id = ""
    case_id = ""
    before = NoticeState()
    if rows:
        ground, wearer_id, case_id, *positions = rows[0]
        before = NoticeState((positions[0], positions[1]), (positions[2], positions[3]))
    if warnable.notice is not None and warnable.notice.ground is not None:
        ground = warnable.notice.ground.value
        wearer_id = warnable.notice.wearer_id
        case_id = warnable.notice.case_id
    after, message = decide_notice(before, warnable.place, ended=ended)
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
    to_her = {"in": warnable.incident_id, "to": person_id}
    _REPLACE.execute(connection, {**to_her, "now_ms": now_ms})
    if message is MessageKind.MINISTRY_OVER and not _GIVEN_IN.fetch(connection, to_her):
        return  # the notice was refused, or waited for its ledger row until it had ended
    new = MessageRow(
        message_id=ids.hash_id("warning", warnable.alert_id, person_id, "ministry"),
        incident_id=warnable.incident_id,
        person_id=person_id,
        order_id=warnable.order_id,
        partition=warnable.partition,
        alert_id=warnable.alert_id,
        sequence=warnable.place[0],
        ordinal=warnable.place[1],
        kind=message.value,
        drill=warnable.drill,
        made_ms=now_ms,
        due_ms=now_ms,
        # The police's own warning of the same alert awaits a receipt.
        receipt_due_ms=None,
        state=WAITING,
        in_app_only=in_app_only,
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
    .values(state=REPLACED, past_ms=sa.bindparam("now_ms"))
)
_GIVEN_IN = Prepared(
    sa.select(messages.c.message_id)
    .where(
        messages.c.incident_id == sa.bindparam("in"),
        messages.c.person_id == sa.bindparam("to"),
        messages.c.kind == MessageKind.MINISTRY.value,
        messages.c.state.not_in((REPLACED, REFUSED)),
    )
    .limit(1)
)

"""SQL of receipts, and of the updates that receipts cause in the leg. Each method is one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa

from services.common.storage.db import Database
from services.common.storage.statements import Prepared
from services.dispatch.domain.answers import Acknowledge, WarnedOf
from services.dispatch.domain.assignment import assignment_id
from services.dispatch.domain.enums import WarningFlag
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate as leg_translate
from services.dispatch.leg.tables import AssignmentRow, StreamPosition
from services.dispatch.warning import translate
from services.dispatch.warning.consumer import acknowledge_covered, add_leg_update, own_alert
from services.dispatch.warning.domain import ReceiptKind, repeat_after_ms
from services.dispatch.warning.store import OF_COMMAND, fetch_rows, read_rows, write_position
from services.dispatch.warning.tables import (
    NO_WAY,
    REPLACED,
    CoveredAlert,
    MessageRow,
    PendingLegUpdate,
    covered_alert_of,
    covered_alerts,
    leg_update_of,
    message_of,
    messages,
    notified_persons,
    to_leg,
)

BY_RECEIPT = "receipt/"
"""Prefix of `acknowledged_by` in an assignment that was acknowledged by a receipt of a message, not by a gateway."""
LATE_RECEIPT_MS = 3_600_000
"""Time for which a gateway may still acknowledge an assignment after a flag, milliseconds of mesh time. Such a gateway follows the
leg's steps."""
UNREACHED = (int(WarningFlag.NO_RECEIPT), int(WarningFlag.NO_CONTACT))
"""Flags which say that nobody knows whether the person was reached."""


@dataclass(frozen=True, slots=True)
class ReceiptWork:
    """Work that receipts cause. Most of the time there is none, and this answer is all that is read."""

    due_ms: int | None
    """Time at which the next receipt is overdue, mesh time; None if none is awaited."""
    may_be_reached: bool
    """A person has a recent flag of UNREACHED, so a gateway may still acknowledge."""
    leg_updates: Sequence[PendingLegUpdate] = ()
    """Pending updates of the leg, in order, at most 500."""


class InformedOf(NamedTuple):
    """A message, and one of the alerts of which it informs."""

    message: MessageRow
    alert: CoveredAlert

    @property
    def assignment_id(self) -> str:
        """Id of the warning leg's assignment that the alert belongs to."""
        return assignment_id(self.alert.incident_id, Leg.WARNING, self.message.person_id)


class EndedWait(NamedTuple):
    """The end of the wait for a message's receipt, for one of the alerts of which it informs."""

    informed: InformedOf
    reached: bool
    """A gateway confirms that the person was reached."""


class ReceiptStore:
    """Receipts in the database of the warnings. All methods raise Unavailable if the database refuses."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changed = asyncio.Event()
        """Set when a receipt was stored, which may have caused an update of the leg."""

    async def put(self, message: MessageRow, receipt: ReceiptKind, now_ms: int, *, duress: bool = False) -> None:
        """Stores a receipt. Only the first receipt of each kind is kept.

        A receipt also counts for each earlier message to the person. `duress` says that the answer is the agreed duress choice. A
        duress answer must look like any other answer, and take the same work.
        """

        def work(connection: sa.Connection) -> None:
            _put(connection, message, receipt, now_ms=now_ms, duress=duress)

        await self._database.visit(work)
        self.changed.set()

    async def put_delivered(self, command_ids: Sequence[str], now_ms: int, position: StreamPosition) -> None:
        """Stores the receipts of devices, by the commands that carried the messages, and the position in the stream of commands."""

        def work(connection: sa.Connection) -> bool:
            found = [row for id_ in command_ids for row in OF_COMMAND.fetch(connection, {"command_id": id_})]
            for row in found:
                _put(connection, message_of(row), ReceiptKind.DELIVERED, now_ms=now_ms)
            write_position(connection, position)
            return bool(found)

        if await self._database.visit(work):
            self.changed.set()

    async def work(self, now_ms: int, recorded: Sequence[PendingLegUpdate] = ()) -> ReceiptWork:
        """Returns the work that receipts cause now, and when a receipt will be overdue next. Deletes the updates that the leg has
        `recorded`."""

        def work(connection: sa.Connection) -> ReceiptWork:
            for update in recorded:
                _DELETE_LEG_UPDATE.execute(connection, {"which": update.id})
            [(due_ms, is_pending, may_be_reached)] = _WORK.fetch(connection, {"since_ms": now_ms - LATE_RECEIPT_MS})
            rows = _LEG_UPDATES.fetch(connection) if is_pending else ()
            return ReceiptWork(due_ms, bool(may_be_reached), [leg_update_of(row) for row in rows])

        return await self._database.visit(work)

    async def overdue(self, now_ms: int) -> list[InformedOf]:
        """Returns the messages whose receipt is overdue, at most 500, with each alert of which they inform."""
        return [_informed(row) for row in await fetch_rows(self._database, _OVERDUE, {"now_ms": now_ms})]

    async def unreached(self, now_ms: int, incident_ids: Collection[str] | None = None) -> list[InformedOf]:
        """Returns the newest message to each person who has a recent flag of UNREACHED, in these incidents or in all."""
        values: dict[str, object] = {"since_ms": now_ms - LATE_RECEIPT_MS}
        if incident_ids is None:
            rows = await fetch_rows(self._database, _UNREACHED, values)
        else:
            rows = await read_rows(self._database, _UNREACHED_IN, {**values, "incident_ids": list(incident_ids)})
        found = [_informed(tuple(row)) for row in rows]
        return list({(each.alert.incident_id, each.message.person_id): each for each in found}.values())

    async def is_newest(self, message_id: str, now_ms: int) -> bool:
        """Whether no newer message of the same giver to the person is due."""

        def work(connection: sa.Connection) -> bool:
            [row] = _MESSAGE.fetch(connection, {"which": message_id})
            return not _newer(connection, message_of(row), now_ms=now_ms)

        return await self._database.visit(work)

    async def expire(self, ended: Sequence[EndedWait], now_ms: int) -> None:
        """Ends waits for receipts in one transaction, also those for the earlier messages to each person.

        The police are notified of each person who wasn't reached, and not a second time before a receipt arrives.
        """

        def work(connection: sa.Connection) -> None:
            waited: dict[str, bool] = {}
            for (message, alert), reached in ended:
                if message.message_id not in waited:
                    end_wait = _OF_GIVER[bool(message.ground)].end_wait
                    waited[message.message_id] = bool(end_wait.execute(connection, _up_to(message)))
                flag, _ = _state_of(connection, alert.incident_id, message.person_id)
                if reached and flag in UNREACHED:
                    _flag(connection, message, alert, flag=WarningFlag.REACHED, now_ms=now_ms)
                elif not reached and waited[message.message_id] and flag not in UNREACHED:
                    _flag(connection, message, alert, flag=_unreached_flag(connection, message), now_ms=now_ms)

        if ended:
            await self._database.visit(work)


def acknowledgement_of(update: PendingLegUpdate) -> Acknowledge:
    """Returns the command by which a receipt acknowledges an assignment in the leg."""
    alert = update.alert
    return Acknowledge(
        assignment_id(alert.incident_id, Leg.WARNING, update.person_id),
        BY_RECEIPT + update.message_id,
        warned_of=WarnedOf(place=alert.place, alert_id=alert.alert_id),
    )


def flag_of(update: PendingLegUpdate, flag: WarningFlag = WarningFlag.REACHED) -> Flag:
    """Returns the flag that tells the leg about the person of an update."""
    alert = update.alert
    return Flag(
        subject_id=update.person_id, flag=flag, alert_id=alert.alert_id, place=alert.place, order_id=alert.order_id
    )


def was_acknowledged_by_gateway(row: AssignmentRow) -> bool:
    """Whether a gateway acknowledged an assignment. A receipt of a message does so, too, but it isn't a gateway's word."""
    acknowledged_by = leg_translate.stored_assignment(row).acknowledged_by
    return bool(acknowledged_by) and not acknowledged_by.startswith(BY_RECEIPT)


# ── within a transaction ─────────────────────────────────────────────────────────────────────────────────────────────


def _put(
    connection: sa.Connection, message: MessageRow, receipt: ReceiptKind, *, now_ms: int, duress: bool = False
) -> None:
    is_first = _FIRST[receipt].execute(connection, {"which": message.message_id, "now_ms": now_ms})
    _OF_GIVER[bool(message.ground)].end_wait.execute(connection, _up_to(message))
    if is_first:
        [row] = _MESSAGE.fetch(connection, {"which": message.message_id})
        _repeat_later(connection, message_of(row))
    if message.ground:
        # The leg's assignment is the police's own warning. A duress answer to a notice counts all the same.
        alerts = [own_alert(message)]
    else:
        acknowledge_covered(connection, message, now_ms=now_ms)
        alerts = _flagged_alerts(connection, message)
    is_newest = not _newer(connection, message, now_ms=now_ms)
    for alert in alerts:
        flag, _ = _state_of(connection, alert.incident_id, message.person_id)
        if flag in UNREACHED and is_newest:
            _flag(connection, message, alert, flag=WarningFlag.REACHED, now_ms=now_ms)
    if duress and message.incident_id:
        _, had_duress = _state_of(connection, message.incident_id, message.person_id)
        if not had_duress:
            own = own_alert(message)
            add_leg_update(connection, message, own, flag=WarningFlag.DURESS, now_ms=now_ms)
            _NOTE_DURESS.execute(connection, _person(message.incident_id, message.person_id))


def _repeat_later(connection: sa.Connection, message: MessageRow) -> None:
    """Sets when a message with a new receipt is repeated next."""
    if message.repeat_ms is None or not message.instruction or message.issued_ms is None:
        return
    after_ms = repeat_after_ms(
        translate.instruction_from_json(message.instruction), message.receipt, message.repetitions
    )
    last_ms = message.repeated_ms or message.issued_ms
    repeat_ms = None if after_ms is None else last_ms + after_ms
    _SET_REPEAT.execute(connection, {"which": message.message_id, "then_ms": repeat_ms})


def _flagged_alerts(connection: sa.Connection, message: MessageRow) -> list[CoveredAlert]:
    """The newest alert of each incident in which the person of a message has a flag of UNREACHED, and was told of the alert."""
    rows = _FLAGGED_ALERTS.fetch(connection, {"to": message.person_id, "until_ms": message.due_ms})
    alerts = [covered_alert_of(dict(zip(covered_alerts.c.keys(), row, strict=True))) for row in rows]
    return list({alert.incident_id: alert for alert in sorted(alerts, key=lambda each: each.place)}.values())


def _newer(connection: sa.Connection, message: MessageRow, *, now_ms: int) -> bool:
    """Whether a newer message of the same giver to the person is due."""
    return bool(_OF_GIVER[bool(message.ground)].newer.fetch(connection, {**_up_to(message), "now_ms": now_ms}))


def _informed(row: Sequence[object]) -> InformedOf:
    count = len(messages.c)
    alert = covered_alert_of(dict(zip(covered_alerts.c.keys(), row[count:], strict=True)))
    return InformedOf(message_of(row[:count]), alert)


def _person(incident_id: str, person_id: str) -> dict[str, object]:
    """Parameters that name a person within an incident."""
    return {"in": incident_id, "to": person_id}


def _up_to(message: MessageRow) -> dict[str, object]:
    """Parameters that name a message and the earlier messages to the person."""
    return {"to": message.person_id, "until_ms": message.due_ms}


def _state_of(connection: sa.Connection, incident_id: str, person_id: str) -> tuple[int | None, bool]:
    """The flag of a person in an incident, and whether she gave a duress answer; None if she isn't known there."""
    rows = _STATE_OF.fetch(connection, _person(incident_id, person_id))
    return (rows[0][0], bool(rows[0][1])) if rows else (None, False)


def _unreached_flag(connection: sa.Connection, message: MessageRow) -> WarningFlag:
    [row] = _MESSAGE.fetch(connection, {"which": message.message_id})
    return WarningFlag.NO_CONTACT if message_of(row).state == NO_WAY else WarningFlag.NO_RECEIPT


def _flag(
    connection: sa.Connection, message: MessageRow, alert: CoveredAlert, *, flag: WarningFlag, now_ms: int
) -> None:
    add_leg_update(connection, message, alert, flag=flag, now_ms=now_ms)
    key = _person(alert.incident_id, message.person_id)
    _SET_FLAG.execute(connection, {**key, "new": int(flag), "now_ms": now_ms})


# ── frequent statements, built once: building one takes several times as long as executing it ────────────────────────

_WHICH: sa.BindParameter[str] = sa.bindparam("which")
_NOW_MS: sa.BindParameter[int] = sa.bindparam("now_ms")
_UNTIL_MS: sa.BindParameter[int] = sa.bindparam("until_ms")
_PERSON = notified_persons.c.person_id == sa.bindparam("to")
_OF_PERSON = (notified_persons.c.incident_id == sa.bindparam("in")) & _PERSON
_STATE_OF = Prepared(sa.select(notified_persons.c.flag, notified_persons.c.duress).where(_OF_PERSON))
_SET_FLAG = Prepared(sa.update(notified_persons).where(_OF_PERSON).values(flag=sa.bindparam("new"), flag_ms=_NOW_MS))
_NOTE_DURESS = Prepared(sa.update(notified_persons).where(_OF_PERSON).values(duress=True))
_MESSAGE = Prepared(sa.select(messages).where(messages.c.message_id == _WHICH))
_SET_REPEAT = Prepared(
    sa.update(messages)
    .where(messages.c.message_id == _WHICH, messages.c.past_ms.is_(None))
    .values(repeat_ms=sa.bindparam("then_ms"))
)
_DELETE_LEG_UPDATE = Prepared(sa.delete(to_leg).where(to_leg.c.id == _WHICH))
_FIRST = {
    kind: Prepared(
        sa.update(messages)
        .where(messages.c.message_id == _WHICH, messages.c[f"{kind.value}_ms"].is_(None))
        .values({f"{kind.value}_ms": _NOW_MS})
    )
    for kind in ReceiptKind
}


@dataclass(frozen=True, slots=True)
class _OfGiver:
    """Statements about the messages of one giver, the police or the Ministry, to a person."""

    end_wait: Prepared
    """Ends the wait for the receipts of a message and of the earlier messages."""
    newer: Prepared
    """Finds a message that is newer than another one and due now."""


def _of_giver(giver: sa.ColumnElement[bool]) -> _OfGiver:
    of_person = (messages.c.person_id == sa.bindparam("to")) & giver
    is_awaited = messages.c.receipt_due_ms.is_not(None)
    until_now = (messages.c.due_ms <= _NOW_MS) & (messages.c.incident_id != "")
    return _OfGiver(
        end_wait=Prepared(
            sa.update(messages).where(of_person, messages.c.due_ms <= _UNTIL_MS, is_awaited).values(receipt_due_ms=None)
        ),
        newer=Prepared(
            sa.select(messages.c.message_id)
            .where(of_person, messages.c.due_ms > _UNTIL_MS, until_now, messages.c.state != REPLACED)
            .limit(1)
        ),
    )


_OF_GIVER = {False: _of_giver(messages.c.ground == ""), True: _of_giver(messages.c.ground != "")}
"""By whether a message has a ground, so that it is a notice of the Ministry."""
_FLAGGED_ALERTS = Prepared(
    sa.select(*covered_alerts.c)
    .select_from(
        covered_alerts.join(messages, messages.c.message_id == covered_alerts.c.message_id).join(
            notified_persons,
            (notified_persons.c.incident_id == covered_alerts.c.incident_id)
            & (notified_persons.c.person_id == messages.c.person_id),
        )
    )
    .where(
        messages.c.person_id == sa.bindparam("to"),
        messages.c.due_ms <= _UNTIL_MS,
        notified_persons.c.flag.in_(UNREACHED),
    )
)
_WORK = Prepared(
    sa.select(
        sa.select(sa.func.min(messages.c.receipt_due_ms)).scalar_subquery(),
        sa.exists(sa.select(to_leg.c.id)),
        sa.exists(
            sa.select(notified_persons.c.person_id).where(
                notified_persons.c.flag.in_(UNREACHED), notified_persons.c.flag_ms > sa.bindparam("since_ms")
            )
        ),
    )
)
_WITH_ALERTS = messages.join(covered_alerts, covered_alerts.c.message_id == messages.c.message_id)
_OVERDUE = Prepared(
    sa.select(*messages.c, *covered_alerts.c)
    .select_from(_WITH_ALERTS)
    .where(messages.c.receipt_due_ms <= sa.bindparam("now_ms"))
    .order_by(messages.c.due_ms, covered_alerts.c.incident_id)
    .limit(500)
)
_OF_UNREACHED = (
    sa.select(*messages.c, *covered_alerts.c)
    .select_from(
        _WITH_ALERTS.join(
            notified_persons,
            (notified_persons.c.incident_id == covered_alerts.c.incident_id)
            & (notified_persons.c.person_id == messages.c.person_id),
        )
    )
    .where(notified_persons.c.flag.in_(UNREACHED), notified_persons.c.flag_ms > sa.bindparam("since_ms"))
    .order_by(messages.c.due_ms)
)
_UNREACHED = Prepared(_OF_UNREACHED)
_UNREACHED_IN = _OF_UNREACHED.where(notified_persons.c.incident_id.in_(sa.bindparam("incident_ids", expanding=True)))
_LEG_UPDATES = Prepared(sa.select(*to_leg.c).order_by(to_leg.c.id).limit(500))

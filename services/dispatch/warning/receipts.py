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
from services.dispatch.leg.rows import AssignmentRow, StreamPosition
from services.dispatch.warning.domain import Notice, ReceiptKind
from services.dispatch.warning.store import OF_COMMAND, fetch_rows, read_rows, write_position
from services.dispatch.warning.tables import (
    NO_WAY,
    MessageRow,
    PendingLegUpdate,
    leg_update_of,
    message_of,
    messages,
    name_of_update,
    notified_persons,
    to_leg,
)

BY_RECEIPT = "receipt/"
"""Prefix of `acknowledged_by` in an assignment that was acknowledged by a receipt of a message, not by a gateway."""
LATE_RECEIPT_MS = 3_600_000
"""Time for which a gateway may still acknowledge an assignment after a flag, milliseconds of mesh time. Such a gateway follows the
leg's steps."""
_WITHOUT_OFFER = frozenset((Notice.OVER, Notice.ONE_OVER, Notice.STAY_INSIDE, Notice.LEAVE))
"""Notices of an all-clear or of advice, which cause no offer, so that the leg needn't know what caused them."""
UNREACHED = (int(WarningFlag.NO_RECEIPT), int(WarningFlag.NO_CONTACT))
"""Flags which say that nobody knows whether the person was reached."""


@dataclass(frozen=True, slots=True)
class ReceiptWork:
    """Work that receipts cause. Most of the time there is none, and this answer is all that is read."""

    due_ms: int | None
    """Time at which the next receipt is overdue, mesh time; None if none is awaited."""
    may_be_reached: bool
    """A person has a recent flag of UNREACHED, so a gateway may still acknowledge."""
    leg_updates: Sequence[LegUpdate] = ()
    """Pending updates of the leg, in order, at most 500."""


class LegUpdate(NamedTuple):
    """A pending update of the leg, with its message."""

    update: PendingLegUpdate
    message: MessageRow


class EndedWait(NamedTuple):
    """The end of the wait for a message's receipt."""

    message: MessageRow
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
            rows, count = _LEG_UPDATES.fetch(connection) if is_pending else (), len(to_leg.c)
            updates = [LegUpdate(leg_update_of(row[:count]), message_of(row[count:])) for row in rows]
            return ReceiptWork(due_ms, bool(may_be_reached), updates)

        return await self._database.visit(work)

    async def overdue(self, now_ms: int) -> list[MessageRow]:
        """Returns the messages whose receipt is overdue, at most 500."""
        return [message_of(row) for row in await fetch_rows(self._database, _OVERDUE, {"now_ms": now_ms})]

    async def unreached(self, now_ms: int, incident_ids: Collection[str] | None = None) -> list[MessageRow]:
        """Returns the newest message to each person who has a recent flag of UNREACHED, in these incidents or in all."""
        values: dict[str, object] = {"since_ms": now_ms - LATE_RECEIPT_MS}
        if incident_ids is None:
            rows = await fetch_rows(self._database, _UNREACHED, values)
        else:
            rows = await read_rows(self._database, _UNREACHED_IN, {**values, "incident_ids": list(incident_ids)})
        found = [message_of(row) for row in rows]
        return list({(message.incident_id, message.person_id): message for message in found}.values())

    async def is_newest(self, message: MessageRow, now_ms: int) -> bool:
        """Whether no newer message of the same giver to the person is due."""
        newer = _OF_GIVER[bool(message.ground)].newer
        return not await fetch_rows(self._database, newer, {**_up_to(message), "now_ms": now_ms})

    async def expire(self, ended: Sequence[EndedWait], now_ms: int) -> None:
        """Ends waits for receipts in one transaction, also those for the earlier messages to each person.

        The police are notified of each person who wasn't reached, and not a second time before a receipt arrives.
        """

        def work(connection: sa.Connection) -> None:
            for message, reached in ended:
                waited = _OF_GIVER[bool(message.ground)].end_wait.execute(connection, _up_to(message))
                [(flag, _)] = _STATE_OF.fetch(connection, _person(message)) or [(None, False)]
                if reached and flag in UNREACHED:
                    _flag(connection, message, WarningFlag.REACHED, now_ms=now_ms)
                elif not reached and waited and flag not in UNREACHED:
                    _flag(connection, message, _unreached_flag(connection, message), now_ms=now_ms)

        if ended:
            await self._database.visit(work)


def assignment_of(message: MessageRow) -> str:
    """Returns the id of the warning leg's assignment that a message belongs to."""
    return assignment_id(message.incident_id, Leg.WARNING, message.person_id)


def acknowledgement_of(message: MessageRow) -> Acknowledge:
    """Returns the command by which the receipt of a message acknowledges its assignment in the leg."""
    alert_id = "" if Notice(message.notice) in _WITHOUT_OFFER else message.alert_id
    return Acknowledge(
        assignment_of(message),
        BY_RECEIPT + message.message_id,
        warned_of=WarnedOf(place=(message.sequence, message.ordinal), alert_id=alert_id),
    )


def flag_of(message: MessageRow, flag: WarningFlag = WarningFlag.REACHED) -> Flag:
    """Returns the flag that tells the leg about the person of a message."""
    return Flag(
        subject_id=message.person_id,
        flag=flag,
        alert_id=message.alert_id,
        place=(message.sequence, message.ordinal),
        order_id=message.order_id,
    )


def was_acknowledged_by_gateway(row: AssignmentRow) -> bool:
    """Whether a gateway acknowledged an assignment. A receipt of a message does so, too, but it isn't a gateway's word."""
    acknowledged_by = leg_translate.stored_assignment(row).acknowledged_by
    return bool(acknowledged_by) and not acknowledged_by.startswith(BY_RECEIPT)


# ── within a transaction ─────────────────────────────────────────────────────────────────────────────────────────────


def _put(
    connection: sa.Connection, message: MessageRow, receipt: ReceiptKind, *, now_ms: int, duress: bool = False
) -> None:
    of_giver, now = _OF_GIVER[bool(message.ground)], {"now_ms": now_ms}
    is_first = _FIRST[receipt].execute(connection, {"which": message.message_id, **now})
    of_giver.end_wait.execute(connection, _up_to(message))
    if not message.incident_id:
        return
    [(flag, had_duress)] = _STATE_OF.fetch(connection, _person(message))
    if is_first and not message.ground:  # the leg's assignment is the police's own warning
        _add_leg_update(connection, message, None, now_ms=now_ms)
    if flag in UNREACHED and not of_giver.newer.fetch(connection, {**_up_to(message), **now}):
        _flag(connection, message, WarningFlag.REACHED, now_ms=now_ms)
    if duress and not had_duress:
        _add_leg_update(connection, message, WarningFlag.DURESS, now_ms=now_ms)
        _NOTE_DURESS.execute(connection, _person(message))


def _person(message: MessageRow) -> dict[str, object]:
    """Parameters that name the person of a message within its incident."""
    return {"in": message.incident_id, "to": message.person_id}


def _up_to(message: MessageRow) -> dict[str, object]:
    """Parameters that name a message and the earlier messages to the person within its incident."""
    return {**_person(message), "until_ms": message.due_ms}


def _unreached_flag(connection: sa.Connection, message: MessageRow) -> WarningFlag:
    [(state,)] = _MESSAGE_STATE.fetch(connection, {"which": message.message_id})
    return WarningFlag.NO_CONTACT if state == NO_WAY else WarningFlag.NO_RECEIPT


def _flag(connection: sa.Connection, message: MessageRow, flag: WarningFlag, *, now_ms: int) -> None:
    _add_leg_update(connection, message, flag, now_ms=now_ms)
    _SET_FLAG.execute(connection, {**_person(message), "new": int(flag), "now_ms": now_ms})


def _add_leg_update(connection: sa.Connection, message: MessageRow, flag: WarningFlag | None, *, now_ms: int) -> None:
    values = {"which": message.message_id, "change": name_of_update(flag), "now_ms": now_ms}
    _ADD_LEG_UPDATE.execute(connection, values)


# ── frequent statements, built once: building one takes several times as long as executing it ────────────────────────

_WHICH: sa.BindParameter[str] = sa.bindparam("which")
_NOW_MS: sa.BindParameter[int] = sa.bindparam("now_ms")
_UNTIL_MS: sa.BindParameter[int] = sa.bindparam("until_ms")
_PERSON = notified_persons.c.person_id == sa.bindparam("to")
_OF_PERSON = (notified_persons.c.incident_id == sa.bindparam("in")) & _PERSON
_STATE_OF = Prepared(sa.select(notified_persons.c.flag, notified_persons.c.duress).where(_OF_PERSON))
_SET_FLAG = Prepared(sa.update(notified_persons).where(_OF_PERSON).values(flag=sa.bindparam("new"), flag_ms=_NOW_MS))
_NOTE_DURESS = Prepared(sa.update(notified_persons).where(_OF_PERSON).values(duress=True))
_MESSAGE_STATE = Prepared(sa.select(messages.c.state).where(messages.c.message_id == _WHICH))
_ADD_LEG_UPDATE = Prepared(sa.insert(to_leg).values(message_id=_WHICH, what=sa.bindparam("change"), since_ms=_NOW_MS))
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
    """Statements about the messages of one giver, the police or the Ministry, to a person within an incident."""

    end_wait: Prepared
    """Ends the wait for the receipts of a message and of the earlier messages."""
    newer: Prepared
    """Finds a message that is newer than another one and due now."""


def _of_giver(giver: sa.ColumnElement[bool]) -> _OfGiver:
    of_person = (messages.c.incident_id == sa.bindparam("in")) & (messages.c.person_id == sa.bindparam("to")) & giver
    is_awaited = messages.c.receipt_due_ms.is_not(None)
    until_now = messages.c.due_ms <= _NOW_MS
    return _OfGiver(
        end_wait=Prepared(
            sa.update(messages).where(of_person, messages.c.due_ms <= _UNTIL_MS, is_awaited).values(receipt_due_ms=None)
        ),
        newer=Prepared(
            sa.select(messages.c.message_id).where(of_person, messages.c.due_ms > _UNTIL_MS, until_now).limit(1)
        ),
    )


_OF_GIVER = {False: _of_giver(messages.c.ground == ""), True: _of_giver(messages.c.ground != "")}
"""By whether a message has a ground, so that it is a notice of the Ministry."""
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
_OVERDUE = Prepared(
    sa.select(messages)
    .where(messages.c.receipt_due_ms <= sa.bindparam("now_ms"))
    .order_by(messages.c.due_ms)
    .limit(500)
)
_OF_UNREACHED = (
    sa.select(*messages.c)
    .select_from(
        messages.join(
            notified_persons,
            (notified_persons.c.incident_id == messages.c.incident_id)
            & (notified_persons.c.person_id == messages.c.person_id),
        )
    )
    .where(notified_persons.c.flag.in_(UNREACHED), notified_persons.c.flag_ms > sa.bindparam("since_ms"))
    .order_by(messages.c.due_ms)
)
_UNREACHED = Prepared(_OF_UNREACHED)
_UNREACHED_IN = _OF_UNREACHED.where(notified_persons.c.incident_id.in_(sa.bindparam("incident_ids", expanding=True)))
_LEG_UPDATES = Prepared(
    sa.select(*to_leg.c, *messages.c)
    .select_from(to_leg.join(messages, to_leg.c.message_id == messages.c.message_id))
    .order_by(to_leg.c.id)
    .limit(500)
)

"""SQL of the warnings. Each method is one transaction, and leaves decisions to the pure functions that it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import OperationalError

from services.common.rpc.errors import Unavailable
from services.common.storage.db import Database
from services.dispatch.domain.enums import WarningFlag
from services.dispatch.leg.rows import StreamPosition
from services.dispatch.warning.consumer import accept, accept_advice, of_person
from services.dispatch.warning.tables import (
    NO_WAY,
    OPEN,
    OUTDATED,
    SENDING,
    WAITING,
    ContactRow,
    MessageRow,
    PendingLegUpdate,
    Sending,
    accepted_alerts,
    contacts,
    messages,
    notified_persons,
    positions,
    sendings,
    to_leg,
)
from services.dispatch.warning.translate import WarnableAlert

CONTACT_RETENTION_MS = 86_400_000
"""Time after the end of its order at which a contact is deleted, mesh time. Until then the end may still have to be sent."""
ALERT_ID_RETENTION_MS = 40 * 86_400_000
"""Retention of the ids of accepted alerts, mesh time: longer than ALERTS keeps an alert."""
LATE_RECEIPT_MS = 3_600_000
"""Time after a flag in which a late acknowledgement by a gateway that follows the leg's steps still counts, mesh time."""
UNREACHED = (int(WarningFlag.NO_RECEIPT), int(WarningFlag.NO_CONTACT))
"""Flags that say that nobody knows whether the person was reached."""
_NOTHING: Mapping[str, object] = {}
T = TypeVar("T")


class WarningStore:
    """Database of the warnings."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._database.visit(work)
        except OperationalError as error:
            raise Unavailable("the warning database doesn't answer") from error

    async def _rows(
        self, query: sa.Select[*tuple[Any, ...]], values: Mapping[str, object] = _NOTHING
    ) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        return await self._transaction(lambda connection: connection.execute(query, values).all())

    # ── incoming ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def position(self, stream: str, log_id: str) -> int:
        """Returns the last accepted sequence of a stream; 0 if there is none."""
        return (await self.cursor(stream, log_id)).sequence

    async def cursor(self, stream: str, log_id: str) -> StreamPosition:
        """Returns the position of a stream with its trail; the beginning if nothing was accepted."""
        rows = await self._rows(sa.select(positions).where(positions.c.stream == stream, positions.c.log_id == log_id))
        return StreamPosition(*rows[0]) if rows else StreamPosition(stream, log_id, 0)

    async def accept(self, alerts: Sequence[WarnableAlert], now_ms: int, position: StreamPosition) -> None:
        """Stores alerts, in the order of the log, with the messages that they cause. A duplicate alert counts once."""

        def work(connection: sa.Connection) -> None:
            for warnable in sorted(alerts, key=lambda warnable: warnable.occurrence.place):
                accept(connection, warnable, now_ms)
            _put_position(connection, position)

        await self._transaction(work)

    async def accept_advice(self, advice: Sequence[WarnableAlert], now_ms: int, position: StreamPosition) -> None:
        """Stores advice with the messages that it causes: to the persons it names, or else to all persons notified of its order."""

        def work(connection: sa.Connection) -> None:
            for warnable in advice:
                accept_advice(connection, warnable, now_ms)
            _put_position(connection, position)

        await self._transaction(work)

    async def put_contacts(
        self, cases: Sequence[tuple[str, int, Sequence[ContactRow]]], position: StreamPosition
    ) -> None:
        """Stores the contacts of cases, given by id, version and contacts. Skips a version that isn't newer than the stored one."""

        def work(connection: sa.Connection) -> None:
            for case_id, version, persons in cases:
                of_case = contacts.c.case_id == case_id
                known = connection.scalar(sa.select(sa.func.max(contacts.c.version)).where(of_case))
                if known is None or version > known:
                    connection.execute(sa.delete(contacts).where(of_case))
                    if persons:
                        connection.execute(sa.insert(contacts), [asdict(person) for person in persons])
            _put_position(connection, position)

        await self._transaction(work)

    async def put_position(self, position: StreamPosition) -> None:
        """Stores the position of a stream without any other rows."""
        await self._transaction(lambda connection: _put_position(connection, position))

    async def contacts_of(self, *person_ids: str) -> dict[str, list[ContactRow]]:
        """Returns the contacts of persons, by person id, the newest case version first."""

        def work(connection: sa.Connection) -> dict[str, list[ContactRow]]:
            contacts_by_person: dict[str, list[ContactRow]] = {}
            for person_id in person_ids:
                rows = connection.execute(_CONTACTS, {"person_id": person_id})
                contacts_by_person[person_id] = [ContactRow(*row) for row in rows]
            return contacts_by_person

        return await self._transaction(work)

    # ── outgoing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def due(self, now_ms: int) -> list[MessageRow]:
        """Returns the waiting messages that are due, at most 500."""
        return [MessageRow(*row) for row in await self._rows(_DUE, {"now_ms": now_ms})]

    async def next_ms(self) -> int | None:
        """Returns the time at which the next message or sending is due, mesh time; None if there is none."""

        def work(connection: sa.Connection) -> int | None:
            times_ms = [connection.scalar(query) for query in (_NEXT_WAITING, _NEXT_SENDING)]
            return min((time_ms for time_ms in times_ms if time_ms is not None), default=None)

        return await self._transaction(work)

    async def open(self, opened: Sequence[tuple[MessageRow, str, str, Sequence[Sending]]]) -> None:
        """Stores text, language and sendings of messages. Each replaces the open sendings of earlier messages to the same person."""

        def work(connection: sa.Connection) -> None:
            for message, text, language, ways in opened:
                _open(connection, message, text, language=language, ways=ways)

        await self._transaction(work)

    async def to_try(self, now_ms: int) -> list[tuple[Sending, MessageRow]]:
        """Returns the sendings that are due, with their messages."""
        count, rows = len(sendings.c), await self._rows(_TO_TRY, {"now_ms": now_ms})
        return [(Sending(*row[:count]), MessageRow(*row[count:])) for row in rows]

    async def tried(self, tried: Sequence[tuple[Sending, str, int]]) -> None:
        """Stores attempts, each with its outcome and the time of the next attempt."""

        def work(connection: sa.Connection) -> None:
            for sending, outcome, next_ms in tried:
                this = (sendings.c.message_id == sending.message_id) & (sendings.c.way == sending.way)
                values = {"tries": sending.tries + 1, "outcome": outcome, "next_ms": next_ms}
                connection.execute(sa.update(sendings).where(this, sendings.c.outcome == OPEN).values(values))

        await self._transaction(work)

    # ── receipts ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def message(self, message_id: str) -> MessageRow | None:
        """Returns a message by its id; None if there is none."""
        rows = await self._rows(sa.select(messages).where(messages.c.message_id == message_id))
        return MessageRow(**rows[0]._mapping) if rows else None

    async def sent_over(self, message_id: str, way: str) -> bool:
        """Whether a message was sent over a channel (`gateway/NAME` or `device/ID`)."""
        query = sa.select(sendings.c.way).where(sendings.c.message_id == message_id, sendings.c.way == way)
        return bool(await self._rows(query))

    async def message_of_command(self, command_id: str) -> str | None:
        """Returns the id of the message that a device command carries; None for a command of another service."""
        query = sa.select(sendings.c.message_id).where(sendings.c.command_id == command_id)
        message_id: str | None = await self._transaction(lambda connection: connection.scalar(query))
        return message_id

    async def receipt(self, message: MessageRow, what: str, now_ms: int, *, duress: bool = False) -> None:
        """Stores a receipt: `what` is delivered, displayed or acknowledged. Only the first time of each is kept.

        A receipt also counts for each earlier message to the person. `duress` is whether the answer is the agreed duress choice. It
        must look like any other answer, and take the same work.
        """
        columns = {"delivered": "delivered_ms", "displayed": "displayed_ms", "acknowledged": "acknowledged_ms"}

        def work(connection: sa.Connection) -> None:
            column = messages.c[columns[what]]
            first = sa.and_(messages.c.message_id == message.message_id, column.is_(None))
            is_first = connection.execute(sa.update(messages).where(first).values({column: now_ms})).rowcount
            answered = of_person(message) & (messages.c.due_ms <= message.due_ms)
            connection.execute(sa.update(messages).where(answered).values(receipt_due_ms=None))
            if not message.incident_id:
                return
            [row] = connection.execute(sa.select(notified_persons).where(_notified_person(message)))
            if is_first:
                _add_leg_update(connection, message.message_id, "receipt", now_ms=now_ms)
            if row.flag in UNREACHED and _is_newest(connection, message, now_ms):
                _flag(connection, message, WarningFlag.REACHED, now_ms=now_ms)
            if duress and not row.duress:
                _add_leg_update(connection, message.message_id, WarningFlag.DURESS.name, now_ms=now_ms)
                connection.execute(sa.update(notified_persons).where(_notified_person(message)).values(duress=True))

        await self._transaction(work)

    async def without_receipt(self, now_ms: int) -> list[MessageRow]:
        """Returns the messages whose receipt is overdue."""
        return [MessageRow(*row) for row in await self._rows(_WITHOUT_RECEIPT, {"now_ms": now_ms})]

    async def unreached(self, now_ms: int) -> list[MessageRow]:
        """Returns the newest message of each person with a recent flag of UNREACHED."""
        rows = await self._rows(_UNREACHED, {"since_ms": now_ms - LATE_RECEIPT_MS})
        return list({(row.incident_id, row.person_id): MessageRow(*row) for row in rows}.values())

    async def expire_receipt(self, message: MessageRow, now_ms: int, reached: bool) -> None:
        """Ends the wait for receipts of a message and of the earlier messages to the person.

        `reached` is whether somebody else confirms that the person was reached. If not, the police are notified, once until a
        receipt arrives.
        """

        def work(connection: sa.Connection) -> None:
            late = of_person(message) & (messages.c.due_ms <= message.due_ms) & messages.c.receipt_due_ms.is_not(None)
            waited = connection.execute(sa.update(messages).where(late).values(receipt_due_ms=None)).rowcount
            flag = connection.scalar(sa.select(notified_persons.c.flag).where(_notified_person(message)))
            if reached and flag in UNREACHED:
                _flag(connection, message, WarningFlag.REACHED, now_ms=now_ms)
            elif not reached and waited and flag not in UNREACHED:
                state = connection.scalar(
                    sa.select(messages.c.state).where(messages.c.message_id == message.message_id)
                )
                _flag(
                    connection,
                    message,
                    WarningFlag.NO_CONTACT if state == NO_WAY else WarningFlag.NO_RECEIPT,
                    now_ms=now_ms,
                )

        await self._transaction(work)

    async def pending_leg_updates(self) -> list[tuple[PendingLegUpdate, MessageRow]]:
        """Returns the pending updates of the leg with their messages, in order, at most 500."""
        count = len(to_leg.c)
        return [(PendingLegUpdate(*row[:count]), MessageRow(*row[count:])) for row in await self._rows(_LEG_UPDATES)]

    async def delete_leg_update(self, update: PendingLegUpdate) -> None:
        """Deletes an update that the leg has recorded."""
        delete = sa.delete(to_leg).where(to_leg.c.id == update.id)
        await self._transaction(lambda connection: connection.execute(delete))

    async def forget(self, now_ms: int) -> None:
        """Deletes contacts of ended orders, and ids of alerts that ALERTS no longer holds."""

        def work(connection: sa.Connection) -> None:
            over = contacts.c.valid_until_ms < now_ms - CONTACT_RETENTION_MS
            connection.execute(sa.delete(contacts).where(over))
            connection.execute(
                sa.delete(accepted_alerts).where(accepted_alerts.c.at_ms < now_ms - ALERT_ID_RETENTION_MS)
            )

        await self._transaction(work)


# ── within a transaction ─────────────────────────────────────────────────────────────────────────────────────────────


def _open(connection: sa.Connection, message: MessageRow, text: str, *, language: str, ways: Sequence[Sending]) -> None:
    opened = {"state": SENDING if ways else NO_WAY, "text": text, "language": language}
    if not connection.execute(_OPEN, {"which": message.message_id, **opened}).rowcount:
        return  # replaced by a newer message
    before = {"in": message.incident_id, "to": message.person_id, "until_ms": message.due_ms}
    connection.execute(_OUTDATE, before)
    if ways:
        connection.execute(sa.insert(sendings), [asdict(way) for way in ways])


def _put_position(connection: sa.Connection, position: StreamPosition) -> None:
    connection.execute(_PUT_POSITION, position._asdict())


def _notified_person(message: MessageRow) -> sa.ColumnElement[bool]:
    return (notified_persons.c.incident_id == message.incident_id) & (notified_persons.c.person_id == message.person_id)


def _is_newest(connection: sa.Connection, message: MessageRow, now_ms: int) -> bool:
    newer = of_person(message) & (messages.c.due_ms > message.due_ms) & (messages.c.due_ms <= now_ms)
    return connection.scalar(sa.select(sa.func.count()).select_from(messages).where(newer)) == 0


def _add_leg_update(connection: sa.Connection, message_id: str, what: str, *, now_ms: int) -> None:
    connection.execute(sa.insert(to_leg).values(message_id=message_id, what=what, since_ms=now_ms))


def _flag(connection: sa.Connection, message: MessageRow, flag: WarningFlag, *, now_ms: int) -> None:
    _add_leg_update(connection, message.message_id, flag.name, now_ms=now_ms)
    connection.execute(
        sa.update(notified_persons).where(_notified_person(message)).values(flag=int(flag), flag_ms=now_ms)
    )


# ── frequent statements, built once: building one takes several times as long as executing it ────────────────────────

_NOW_MS: sa.BindParameter[int] = sa.bindparam("now_ms")
_NEW_POSITION = insert(positions)
_PUT_POSITION = _NEW_POSITION.on_conflict_do_update(
    index_elements=["stream"],
    set_={name: _NEW_POSITION.excluded[name] for name in ("log_id", "sequence", "trail")},
)
_CONTACTS = (
    sa.select(contacts).where(contacts.c.person_id == sa.bindparam("person_id")).order_by(contacts.c.version.desc())
)
# The indices are partial (waiting messages, open sendings). SQLite uses them only if the statement repeats their condition literally.
_IS_WAITING, _IS_OPEN = sa.text("state = 'waiting'"), sa.text("outcome = ''")
_DUE = sa.select(messages).where(_IS_WAITING, messages.c.due_ms <= _NOW_MS).order_by(messages.c.due_ms).limit(500)
_NEXT_WAITING = sa.select(sa.func.min(messages.c.due_ms)).where(_IS_WAITING)
_NEXT_SENDING = sa.select(sa.func.min(sendings.c.next_ms)).where(_IS_OPEN)
_OPEN = (
    sa.update(messages)
    .where(messages.c.message_id == sa.bindparam("which"), messages.c.state == WAITING)
    .values(state=sa.bindparam("state"), text=sa.bindparam("text"), language=sa.bindparam("language"))
)
_BEFORE = sa.select(messages.c.message_id).where(
    messages.c.incident_id == sa.bindparam("in"),
    messages.c.person_id == sa.bindparam("to"),
    messages.c.state == SENDING,
    messages.c.due_ms < sa.bindparam("until_ms"),
)
_OUTDATE = (
    sa.update(sendings).where(sendings.c.message_id.in_(_BEFORE), sendings.c.outcome == OPEN).values(outcome=OUTDATED)
)
_TO_TRY = (
    sa.select(*sendings.c, *messages.c)
    .select_from(sendings.join(messages, sendings.c.message_id == messages.c.message_id))
    .where(_IS_OPEN, sendings.c.next_ms <= _NOW_MS)
    .order_by(sendings.c.next_ms)
    .limit(5_000)
)
_WITHOUT_RECEIPT = (
    sa.select(messages).where(messages.c.receipt_due_ms <= _NOW_MS).order_by(messages.c.due_ms).limit(500)
)
_UNREACHED = (
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
_LEG_UPDATES = (
    sa.select(*to_leg.c, *messages.c)
    .select_from(to_leg.join(messages, to_leg.c.message_id == messages.c.message_id))
    .order_by(to_leg.c.id)
    .limit(500)
)

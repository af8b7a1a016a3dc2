"""SQL of the warnings. Each method is one transaction; what is decided in it is decided by the pure code that it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import OperationalError

from services.common.rpc.errors import Unavailable
from services.common.storage.db import Database
from services.dispatch.domain.events import WarningFlag
from services.dispatch.leg.store import StreamPosition
from services.dispatch.warning.consumer import of_person, take, take_advice
from services.dispatch.warning.tables import (
    NO_WAY,
    OPEN,
    OUTDATED,
    SENDING,
    WAITING,
    ContactRow,
    MessageRow,
    Owed,
    Sending,
    contacts,
    messages,
    positions,
    sendings,
    taken,
    to_leg,
    told,
)
from services.dispatch.warning.translate import WarnableAlert

KEPT_AFTER_ORDER_MS = 86_400_000
"""A contact goes so long after the end of its order; until then the end itself may have to be told."""
TAKEN_KEPT_MS = 40 * 86_400_000
"""Longer than ALERTS keeps an alert."""
LATE_RECEIPT_MS = 3_600_000
"""So long it is looked whether a gateway that follows the leg's steps has taken what was flagged."""
UNREACHED = (int(WarningFlag.NO_RECEIPT), int(WarningFlag.NO_CONTACT))
_NOTHING: Mapping[str, object] = {}
T = TypeVar("T")


class WarningStore:
    """The warning leg's own database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _do(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._database.visit(work)
        except OperationalError as error:
            raise Unavailable("the store of warnings doesn't answer") from error

    async def _rows(
        self, query: sa.Select[*tuple[Any, ...]], values: Mapping[str, object] = _NOTHING
    ) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        return await self._do(lambda connection: connection.execute(query, values).all())

    # ── what comes in ────────────────────────────────────────────────────────────────────────────────────────────────

    async def position(self, stream: str, log_id: str) -> int:
        """The last sequence of a stream that was taken in; 0 where none was."""
        return (await self.reading(stream, log_id)).sequence

    async def reading(self, stream: str, log_id: str) -> StreamPosition:
        """How far a stream was taken in, with the trail; the beginning where nothing was."""
        rows = await self._rows(sa.select(positions).where(positions.c.stream == stream, positions.c.log_id == log_id))
        return StreamPosition(*rows[0]) if rows else StreamPosition(stream, log_id, 0)

    async def take(self, seen: Sequence[WarnableAlert], now_ms: int, position: StreamPosition) -> None:
        """Takes alerts in, in the order of the log, with what each person is to be told. An alert that was taken before counts once."""

        def work(connection: sa.Connection) -> None:
            for one in sorted(seen, key=lambda one: one.occurrence.place):
                take(connection, one, now_ms)
            _put_position(connection, position)

        await self._do(work)

    async def take_advice(self, seen: Sequence[WarnableAlert], now_ms: int, position: StreamPosition) -> None:
        """The same of advice: it goes to those who were told of its order, or whom it names, as part of what they were told."""

        def work(connection: sa.Connection) -> None:
            for one in seen:
                take_advice(connection, one, now_ms)
            _put_position(connection, position)

        await self._do(work)

    async def put_contacts(
        self, cases: Sequence[tuple[str, int, Sequence[ContactRow]]], position: StreamPosition
    ) -> None:
        """Cases as they stand, each with its version and whom it protects; an older one than is stored changes nothing."""

        def work(connection: sa.Connection) -> None:
            for case_id, version, persons in cases:
                of_case = contacts.c.case_id == case_id
                known = connection.scalar(sa.select(sa.func.max(contacts.c.version)).where(of_case))
                if known is None or version > known:
                    connection.execute(sa.delete(contacts).where(of_case))
                    if persons:
                        connection.execute(sa.insert(contacts), [asdict(person) for person in persons])
            _put_position(connection, position)

        await self._do(work)

    async def put_position(self, position: StreamPosition) -> None:
        """Notes how far a stream has been taken in of which nothing else is kept."""
        await self._do(lambda connection: _put_position(connection, position))

    async def contacts_of(self, *person_ids: str) -> dict[str, list[ContactRow]]:
        """How persons are reached, by their cases, what was put last first."""

        def work(connection: sa.Connection) -> dict[str, list[ContactRow]]:
            found: dict[str, list[ContactRow]] = {}
            for person_id in person_ids:
                rows = connection.execute(_CONTACTS, {"person_id": person_id})
                found[person_id] = [ContactRow(*row) for row in rows]
            return found

        return await self._do(work)

    # ── what goes out ────────────────────────────────────────────────────────────────────────────────────────────────

    async def due(self, now_ms: int) -> list[MessageRow]:
        """Messages whose turn it is."""
        return [MessageRow(*row) for row in await self._rows(_DUE, {"now_ms": now_ms})]

    async def next_ms(self) -> int | None:
        """When something is to be sent next, mesh time."""

        def work(connection: sa.Connection) -> int | None:
            found = [connection.scalar(query) for query in (_NEXT_WAITING, _NEXT_SENDING)]
            return min((one for one in found if one is not None), default=None)

        return await self._do(work)

    async def open(self, opened: Sequence[tuple[MessageRow, str, str, Sequence[Sending]]]) -> None:
        """Puts messages, each with its text and language, on their ways, in place of those that the persons were sent before."""

        def work(connection: sa.Connection) -> None:
            for message, text, language, ways in opened:
                _open(connection, message, text, language, ways)

        await self._do(work)

    async def to_try(self, now_ms: int) -> list[tuple[Sending, MessageRow]]:
        """Sendings whose turn it is, with their messages."""
        count, rows = len(sendings.c), await self._rows(_TO_TRY, {"now_ms": now_ms})
        return [(Sending(*row[:count]), MessageRow(*row[count:])) for row in rows]

    async def tried(self, tried: Sequence[tuple[Sending, str, int]]) -> None:
        """Notes tries: each with its outcome and when the next one is."""

        def work(connection: sa.Connection) -> None:
            for sending, outcome, next_ms in tried:
                this = (sendings.c.message_id == sending.message_id) & (sendings.c.way == sending.way)
                values = {"tries": sending.tries + 1, "outcome": outcome, "next_ms": next_ms}
                connection.execute(sa.update(sendings).where(this, sendings.c.outcome == OPEN).values(values))

        await self._do(work)

    # ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────

    async def message(self, message_id: str) -> MessageRow | None:
        """A message; None where there is none of that id."""
        rows = await self._rows(sa.select(messages).where(messages.c.message_id == message_id))
        return MessageRow(**rows[0]._mapping) if rows else None

    async def sent_over(self, message_id: str, way: str) -> bool:
        """Whether a message went that way."""
        query = sa.select(sendings.c.way).where(sendings.c.message_id == message_id, sendings.c.way == way)
        return bool(await self._rows(query))

    async def message_of_command(self, command_id: str) -> str | None:
        """The message that a device's command carries."""
        query = sa.select(sendings.c.message_id).where(sendings.c.command_id == command_id)
        found: str | None = await self._do(lambda connection: connection.scalar(query))
        return found

    async def receipt(self, message: MessageRow, what: str, now_ms: int, duress: bool = False) -> None:
        """A message was delivered, displayed or acknowledged; of each the first moment is kept.

        It answers for each message before it. `duress` is what the choice of an answer says, whenever it is made: it looks like any
        other, and costs the same.
        """
        columns = {"delivered": "delivered_ms", "displayed": "displayed_ms", "acknowledged": "acknowledged_ms"}

        def work(connection: sa.Connection) -> None:
            column = messages.c[columns[what]]
            first = sa.and_(messages.c.message_id == message.message_id, column.is_(None))
            news = connection.execute(sa.update(messages).where(first).values({column: now_ms})).rowcount
            answered = of_person(message) & (messages.c.due_ms <= message.due_ms)
            connection.execute(sa.update(messages).where(answered).values(receipt_due_ms=None))
            if not message.incident_id:
                return
            row = connection.execute(sa.select(told).where(_told_of(message))).one()
            if news:
                _owe(connection, message.message_id, "receipt", now_ms)
            if row.flag in UNREACHED and _is_newest(connection, message, now_ms):
                _flag(connection, message, WarningFlag.REACHED, now_ms)
            if duress and not row.duress:
                _owe(connection, message.message_id, WarningFlag.DURESS.name, now_ms)
                connection.execute(sa.update(told).where(_told_of(message)).values(duress=True))

        await self._do(work)

    async def without_receipt(self, now_ms: int) -> list[MessageRow]:
        """Messages whose receipt should be here by now."""
        return [MessageRow(*row) for row in await self._rows(_WITHOUT_RECEIPT, {"now_ms": now_ms})]

    async def unreached(self, now_ms: int) -> list[MessageRow]:
        """The newest message of each person of whom the police were told lately that nobody knows whether they were reached."""
        rows = await self._rows(_UNREACHED, {"since_ms": now_ms - LATE_RECEIPT_MS})
        return list({(row.incident_id, row.person_id): MessageRow(*row) for row in rows}.values())

    async def pass_receipt(self, message: MessageRow, now_ms: int, reached: bool) -> None:
        """The time for a receipt is over, of this message and those before it: `reached` where somebody else vouches for it, else the
        police are told, once until a receipt comes."""

        def work(connection: sa.Connection) -> None:
            late = of_person(message) & (messages.c.due_ms <= message.due_ms) & messages.c.receipt_due_ms.is_not(None)
            waited = connection.execute(sa.update(messages).where(late).values(receipt_due_ms=None)).rowcount
            known = connection.scalar(sa.select(told.c.flag).where(_told_of(message)))
            if reached and known in UNREACHED:
                _flag(connection, message, WarningFlag.REACHED, now_ms)
            elif not reached and waited and known not in UNREACHED:
                no_way = connection.scalar(
                    sa.select(messages.c.state).where(messages.c.message_id == message.message_id)
                )
                _flag(
                    connection, message, WarningFlag.NO_CONTACT if no_way == NO_WAY else WarningFlag.NO_RECEIPT, now_ms
                )

        await self._do(work)

    async def owed(self) -> list[tuple[Owed, MessageRow]]:
        """What the leg is to be told, in its order."""
        count = len(to_leg.c)
        return [(Owed(*row[:count]), MessageRow(*row[count:])) for row in await self._rows(_OWED)]

    async def settled(self, owed: Owed) -> None:
        """The leg was told."""
        delete = sa.delete(to_leg).where(to_leg.c.id == owed.id)
        await self._do(lambda connection: connection.execute(delete))

    async def forget(self, now_ms: int) -> None:
        """Deletes contacts whose orders are over, and ids of alerts that can't come again."""

        def work(connection: sa.Connection) -> None:
            over = contacts.c.valid_until_ms < now_ms - KEPT_AFTER_ORDER_MS
            connection.execute(sa.delete(contacts).where(over))
            connection.execute(sa.delete(taken).where(taken.c.at_ms < now_ms - TAKEN_KEPT_MS))

        await self._do(work)


# ── within a transaction ─────────────────────────────────────────────────────────────────────────────────────────────


def _open(connection: sa.Connection, message: MessageRow, text: str, language: str, ways: Sequence[Sending]) -> None:
    opened = {"state": SENDING if ways else NO_WAY, "text": text, "language": language}
    if not connection.execute(_OPEN, {"which": message.message_id, **opened}).rowcount:
        return  # a newer one took its place
    before = {"in": message.incident_id, "to": message.person_id, "until_ms": message.due_ms}
    connection.execute(_OUTDATE, before)
    if ways:
        connection.execute(sa.insert(sendings), [asdict(way) for way in ways])


def _put_position(connection: sa.Connection, position: StreamPosition) -> None:
    connection.execute(_PUT_POSITION, asdict(position))


def _told_of(message: MessageRow) -> sa.ColumnElement[bool]:
    return (told.c.incident_id == message.incident_id) & (told.c.person_id == message.person_id)


def _is_newest(connection: sa.Connection, message: MessageRow, now_ms: int) -> bool:
    newer = of_person(message) & (messages.c.due_ms > message.due_ms) & (messages.c.due_ms <= now_ms)
    return connection.scalar(sa.select(sa.func.count()).select_from(messages).where(newer)) == 0


def _owe(connection: sa.Connection, message_id: str, what: str, now_ms: int) -> None:
    connection.execute(sa.insert(to_leg).values(message_id=message_id, what=what, since_ms=now_ms))


def _flag(connection: sa.Connection, message: MessageRow, flag: WarningFlag, now_ms: int) -> None:
    _owe(connection, message.message_id, flag.name, now_ms)
    connection.execute(sa.update(told).where(_told_of(message)).values(flag=int(flag), flag_ms=now_ms))


# ── statements of what is done often: to build one takes several times as long as to execute it ──────────────────────

_NOW_MS: sa.BindParameter[int] = sa.bindparam("now_ms")
_PUTTING = insert(positions)
_PUT_POSITION = _PUTTING.on_conflict_do_update(
    index_elements=["stream"],
    set_={name: _PUTTING.excluded[name] for name in ("log_id", "sequence", "trail")},
)
_CONTACTS = (
    sa.select(contacts).where(contacts.c.person_id == sa.bindparam("person_id")).order_by(contacts.c.version.desc())
)
# The indices hold what waits and what is open alone; SQLite sees that they serve where the statement says so in so many words.
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
        messages.join(told, (told.c.incident_id == messages.c.incident_id) & (told.c.person_id == messages.c.person_id))
    )
    .where(told.c.flag.in_(UNREACHED), told.c.flag_ms > sa.bindparam("since_ms"))
    .order_by(messages.c.due_ms)
)
_OWED = (
    sa.select(*to_leg.c, *messages.c)
    .select_from(to_leg.join(messages, to_leg.c.message_id == messages.c.message_id))
    .order_by(to_leg.c.id)
    .limit(500)
)

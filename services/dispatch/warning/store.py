"""SQL of the warnings. Each method is one transaction; what is decided in it is decided by the pure code that it calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import OperationalError

from services.common import ids
from services.common.db import Database
from services.common.errors import Unavailable
from services.dispatch.domain.events import Demand, WarningFlag
from services.dispatch.domain.warning import (
    NO_RECEIPT_AWAITED,
    PASSING,
    READ_MS,
    Message,
    Notice,
    Occurrence,
    Told,
    decide,
)
from services.dispatch.warning.tables import (
    NO_WAY,
    OPEN,
    OUTDATED,
    REPLACED,
    SENDING,
    WAITING,
    Contact,
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
from services.dispatch.warning.translate import Seen, told_from_json, told_to_json

RECEIPT_WITHIN_MS = 30_000
"""The police are told of a warning for which no receipt came after so long, mesh time."""
WORTH_MS = 600_000
"""A message that nobody has taken for so long isn't sent any more, mesh time."""
KEPT_AFTER_ORDER_MS = 86_400_000
"""A contact goes so long after the end of its order; until then the end itself may have to be told."""
TAKEN_KEPT_MS = 40 * 86_400_000
"""Longer than ALERTS keeps an alert."""
LATE_RECEIPT_MS = 3_600_000
"""So long it is looked whether a gateway that follows the leg's steps has taken what was flagged."""
UNREACHED = (int(WarningFlag.NO_RECEIPT), int(WarningFlag.NO_CONTACT))
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream has been taken in, as in the leg's own store."""

    stream: str
    log_id: str
    sequence: int


class WarningStore:
    """The warning leg's own database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _do(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._database.visit(work)
        except OperationalError as error:
            raise Unavailable("the store of warnings doesn't answer") from error

    async def _rows(self, query: sa.Select[*tuple[Any, ...]]) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        return await self._do(lambda connection: connection.execute(query).all())

    # ── what comes in ────────────────────────────────────────────────────────────────────────────────────────────────

    async def position(self, stream: str, log_id: str) -> int:
        """The last sequence of a stream that was taken in; 0 where none was."""
        query = sa.select(positions.c.sequence).where(positions.c.stream == stream, positions.c.log_id == log_id)
        return await self._do(lambda connection: connection.scalar(query)) or 0

    async def take(self, seen: Sequence[Seen], now_ms: int, position: Position) -> None:
        """Takes alerts in, in the order of the log, with what each person is to be told. An alert that was taken before counts once."""

        def work(connection: sa.Connection) -> None:
            for one in sorted(seen, key=lambda one: one.occurrence.place):
                if _is_new(connection, one.occurrence.alert_id, now_ms):
                    for person_id in _concerned(connection, one):
                        _take(connection, one, person_id, now_ms)
            _put_position(connection, position)

        await self._do(work)

    async def take_advice(self, seen: Sequence[Seen], now_ms: int, position: Position) -> None:
        """The same of advice: it goes to those who were told of its order, or whom it names, as part of what they were told."""

        def work(connection: sa.Connection) -> None:
            for one in seen:
                if _is_new(connection, one.occurrence.alert_id, now_ms):
                    for person_id, partition, drill in _told_before(connection, one):
                        _take(connection, replace(one, partition=partition, drill=drill), person_id, now_ms)
            _put_position(connection, position)

        await self._do(work)

    async def put_contacts(self, cases: Sequence[tuple[str, int, Sequence[Contact]]], position: Position) -> None:
        """Cases as they stand, each with its version and whom it protects; an older one than is stored changes nothing."""

        def work(connection: sa.Connection) -> None:
            for case_id, version, persons in cases:
                of_case = contacts.c.case_id == case_id
                known = connection.scalar(sa.select(sa.func.max(contacts.c.version)).where(of_case))
                if known is None or version > known:
                    connection.execute(sa.delete(contacts).where(of_case))
                    if persons:
                        connection.execute(sa.insert(contacts), [asdict(one) for one in persons])
            _put_position(connection, position)

        await self._do(work)

    async def put_position(self, position: Position) -> None:
        """Notes how far a stream has been taken in of which nothing else is kept."""
        await self._do(lambda connection: _put_position(connection, position))

    async def contacts_of(self, person_id: str) -> list[Contact]:
        """How a person is reached, by their cases, what was put last first."""
        query = sa.select(contacts).where(contacts.c.person_id == person_id).order_by(contacts.c.version.desc())
        return [Contact(**row._mapping) for row in await self._rows(query)]

    # ── what goes out ────────────────────────────────────────────────────────────────────────────────────────────────

    async def due(self, now_ms: int) -> list[MessageRow]:
        """Messages whose turn it is."""
        query = sa.select(messages).where(sa.text("state = 'waiting'"), messages.c.due_ms <= now_ms)
        return [MessageRow(**row._mapping) for row in await self._rows(query.order_by(messages.c.due_ms).limit(500))]

    async def next_ms(self) -> int | None:
        """When something is to be sent next, mesh time."""

        def work(connection: sa.Connection) -> int | None:
            waiting = sa.select(sa.func.min(messages.c.due_ms)).where(sa.text("state = 'waiting'"))
            sending = sa.select(sa.func.min(sendings.c.next_ms)).where(sa.text("outcome = ''"))
            found = [connection.scalar(query) for query in (waiting, sending)]
            return min((one for one in found if one is not None), default=None)

        return await self._do(work)

    async def open(self, message: MessageRow, text: str, language: str, ways: Sequence[Sending]) -> None:
        """Puts a message on its ways, in place of those that the person was sent before."""

        def work(connection: sa.Connection) -> None:
            state = SENDING if ways else NO_WAY
            this = (messages.c.message_id == message.message_id) & (messages.c.state == WAITING)
            opened = sa.update(messages).where(this).values(state=state, text=text, language=language)
            if not connection.execute(opened).rowcount:
                return  # a newer one took its place
            before = _of_person(message) & (messages.c.state == SENDING) & (messages.c.due_ms < message.due_ms)
            stale = sa.select(messages.c.message_id).where(before)
            outdated = sendings.c.message_id.in_(stale) & (sendings.c.outcome == OPEN)
            connection.execute(sa.update(sendings).where(outdated).values(outcome=OUTDATED))
            if ways:
                connection.execute(sa.insert(sendings), [asdict(one) for one in ways])

        await self._do(work)

    async def to_try(self, now_ms: int) -> list[tuple[Sending, MessageRow]]:
        """Sendings whose turn it is, with their messages."""
        joined = sendings.join(messages, sendings.c.message_id == messages.c.message_id)
        query = sa.select(*sendings.c, *messages.c).select_from(joined)
        query = (
            query.where(sa.text("outcome = ''"), sendings.c.next_ms <= now_ms).order_by(sendings.c.next_ms).limit(500)
        )
        count = len(sendings.c)
        return [(Sending(*row[:count]), MessageRow(*row[count:])) for row in await self._rows(query)]

    async def tried(self, sending: Sending, outcome: str, next_ms: int) -> None:
        """Notes a try, and what came of it."""
        this = (sendings.c.message_id == sending.message_id) & (sendings.c.way == sending.way)
        values = {"tries": sending.tries + 1, "outcome": outcome, "next_ms": next_ms}
        update = sa.update(sendings).where(this, sendings.c.outcome == OPEN).values(values)
        await self._do(lambda connection: connection.execute(update))

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
            answered = _of_person(message) & (messages.c.due_ms <= message.due_ms)
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
        query = sa.select(messages).where(messages.c.receipt_due_ms <= now_ms).order_by(messages.c.due_ms).limit(500)
        return [MessageRow(**row._mapping) for row in await self._rows(query)]

    async def unreached(self, now_ms: int) -> list[MessageRow]:
        """The newest message of each person of whom the police were told lately that nobody knows whether they were reached."""
        joined = messages.join(told, _joined())
        recent = told.c.flag.in_(UNREACHED) & (told.c.flag_ms > now_ms - LATE_RECEIPT_MS)
        query = sa.select(*messages.c).select_from(joined).where(recent).order_by(messages.c.due_ms)
        found = {(row.incident_id, row.person_id): MessageRow(*row) for row in await self._rows(query)}
        return list(found.values())

    async def pass_receipt(self, message: MessageRow, now_ms: int, reached: bool) -> None:
        """The time for a receipt is over, of this message and those before it: `reached` where somebody else vouches for it, else the
        police are told, once until a receipt comes."""

        def work(connection: sa.Connection) -> None:
            late = _of_person(message) & (messages.c.due_ms <= message.due_ms) & messages.c.receipt_due_ms.is_not(None)
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
        joined = to_leg.join(messages, to_leg.c.message_id == messages.c.message_id)
        query = sa.select(*to_leg.c, *messages.c).select_from(joined).order_by(to_leg.c.id).limit(500)
        count = len(to_leg.c)
        return [(Owed(*row[:count]), MessageRow(*row[count:])) for row in await self._rows(query)]

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


def _is_new(connection: sa.Connection, alert_id: str, now_ms: int) -> bool:
    made = insert(taken).values(alert_id=alert_id, at_ms=now_ms).on_conflict_do_nothing()
    return bool(connection.execute(made).rowcount)


def _concerned(connection: sa.Connection, seen: Seen) -> list[str]:
    """Whom an alert is told to, or taken back from: what is over may come without saying whom it was told to."""
    occurrence = seen.occurrence
    if not (occurrence.ends or occurrence.demand is Demand.RECORD):
        return list(seen.person_ids)
    in_it = sa.select(told.c.person_id).where(told.c.incident_id == occurrence.incident_id)
    return list(dict.fromkeys((*seen.person_ids, *connection.scalars(in_it))))


def _told_before(connection: sa.Connection, seen: Seen) -> list[tuple[str, int, bool]]:
    """(person, partition, whether it is a drill) of those whom advice is for."""
    columns = (messages.c.person_id, messages.c.partition, messages.c.drill)
    query = sa.select(*columns).distinct().where(messages.c.incident_id == seen.occurrence.incident_id)
    if seen.person_ids:
        query = query.where(messages.c.person_id.in_(seen.person_ids))
    else:
        query = query.where(messages.c.order_id == seen.order_id)
    return [(row.person_id, row.partition, row.drill) for row in connection.execute(query)]


def _take(connection: sa.Connection, seen: Seen, person_id: str, now_ms: int) -> None:
    occurrence = seen.occurrence
    if occurrence.notice is Notice.PHONE_SILENT:
        if _has_device(connection, person_id) and not _is_stale(seen, now_ms):
            message = Message(Notice.PHONE_SILENT, Demand.NOTIFY, now_ms)
            _insert(connection, _row(replace(seen, occurrence=_of_none(occurrence)), person_id, message, "", now_ms))
        return
    this = (told.c.incident_id == occurrence.incident_id) & (told.c.person_id == person_id)
    row = connection.execute(sa.select(told).where(this)).first()
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
    if row:
        values = {"state": told_to_json(after), "figure_alert_id": figure}
        connection.execute(sa.update(told).where(this).values(values))
    elif after != before:
        connection.execute(
            sa.insert(told).values(
                incident_id=occurrence.incident_id,
                person_id=person_id,
                state=told_to_json(after),
                figure_alert_id=figure,
                flag=0,
                flag_ms=0,
                duress=False,
            )
        )


def _is_worth_telling(seen: Seen, message: Message, now_ms: int) -> bool:
    """After an outage, or with an empty database, a person is told of what still holds, and not of what has passed."""
    return not _is_stale(seen, now_ms) or message.notice not in (*PASSING, *NO_RECEIPT_AWAITED)


def _is_stale(seen: Seen, now_ms: int) -> bool:
    return seen.decided_ms is not None and seen.decided_ms < now_ms - WORTH_MS


def _of_none(occurrence: Occurrence) -> Occurrence:
    return replace(occurrence, incident_id="")


def _row(seen: Seen, person_id: str, message: Message, before_alert_id: str, now_ms: int) -> MessageRow:
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
    connection.execute(insert(messages).values(asdict(message)).on_conflict_do_nothing())


def _replace_waiting(connection: sa.Connection, newer: MessageRow) -> None:
    """Takes the turn of what waits until then or longer and says no more than it: the same, a change of distance, an end.

    What is due sooner goes out before.
    """
    said = messages.c.notice.in_((newer.notice, Notice.CHANGED.value, Notice.OVER.value))
    waiting = _of_person(newer) & (messages.c.state == WAITING) & (messages.c.due_ms >= newer.due_ms) & said
    connection.execute(sa.update(messages).where(waiting).values(state=REPLACED))


def _has_device(connection: sa.Connection, person_id: str) -> bool:
    found = connection.scalars(sa.select(contacts.c.device_ids).where(contacts.c.person_id == person_id))
    return any(found)


def _put_position(connection: sa.Connection, position: Position) -> None:
    made = insert(positions).values(asdict(position))
    values = {"log_id": position.log_id, "sequence": position.sequence}
    connection.execute(made.on_conflict_do_update(index_elements=["stream"], set_=values))


def _of_person(message: MessageRow) -> sa.ColumnElement[bool]:
    return (messages.c.incident_id == message.incident_id) & (messages.c.person_id == message.person_id)


def _told_of(message: MessageRow) -> sa.ColumnElement[bool]:
    return (told.c.incident_id == message.incident_id) & (told.c.person_id == message.person_id)


def _joined() -> sa.ColumnElement[bool]:
    return (told.c.incident_id == messages.c.incident_id) & (told.c.person_id == messages.c.person_id)


def _is_newest(connection: sa.Connection, message: MessageRow, now_ms: int) -> bool:
    newer = _of_person(message) & (messages.c.due_ms > message.due_ms) & (messages.c.due_ms <= now_ms)
    return connection.scalar(sa.select(sa.func.count()).select_from(messages).where(newer)) == 0


def _owe(connection: sa.Connection, message_id: str, what: str, now_ms: int) -> None:
    connection.execute(sa.insert(to_leg).values(message_id=message_id, what=what, since_ms=now_ms))


def _flag(connection: sa.Connection, message: MessageRow, flag: WarningFlag, now_ms: int) -> None:
    _owe(connection, message.message_id, flag.name, now_ms)
    connection.execute(sa.update(told).where(_told_of(message)).values(flag=int(flag), flag_ms=now_ms))

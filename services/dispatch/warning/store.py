"""SQL of incoming alerts and contacts, and of outgoing messages. Each method is one transaction, and leaves decisions to the pure
functions that it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from services.common.storage.db import Database
from services.common.storage.statements import Prepared
from services.dispatch.leg.rows import StreamPosition
from services.dispatch.warning.consumer import accept, accept_advice
from services.dispatch.warning.domain import ChannelId
from services.dispatch.warning.tables import (
    HANDED_OVER,
    NO_WAY,
    OPEN,
    OUTDATED,
    REFUSED,
    REPLACED,
    SENDING,
    WAITING,
    ContactRow,
    DueSending,
    DueWork,
    MessageRow,
    OpenedMessage,
    Sending,
    TriedSending,
    accepted_alerts,
    contact_of,
    contacts,
    message_of,
    messages,
    notified_persons,
    positions,
    sending_of,
    sending_values,
    sendings,
)
from services.dispatch.warning.translate import CaseContacts, WarnableAlert

CONTACT_RETENTION_MS = 86_400_000
"""Retention of a contact after the end of its order, milliseconds of mesh time. The message OVER may still have to be sent."""
ALERT_ID_RETENTION_MS = 40 * 86_400_000
"""Retention of the ids of accepted alerts, milliseconds of mesh time. It is longer than the retention of the stream ALERTS."""
_NOTHING: Mapping[str, object] = {}


async def read_rows(
    database: Database, query: sa.Select[*tuple[Any, ...]], values: Mapping[str, object] = _NOTHING
) -> Sequence[sa.Row[*tuple[Any, ...]]]:
    """Returns all rows of a query, read in a transaction of its own."""
    return await database.visit(lambda connection: connection.execute(query, values).all())


async def fetch_rows(
    database: Database, query: Prepared, values: Mapping[str, object] = _NOTHING
) -> Sequence[tuple[Any, ...]]:
    """Returns all rows of a frequent query, read in a transaction of its own."""
    return await database.visit(lambda connection: query.fetch(connection, values))


class WarningStore:
    """Alerts, contacts and messages in the database of the warnings. All methods raise Unavailable if the database refuses."""

    def __init__(self, database: Database, on_open: Callable[[Sequence[Sending]], None] = lambda _: None) -> None:
        self._database = database
        self._on_open = on_open

    # ── incoming ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def position(self, stream: str, log_id: str) -> StreamPosition:
        """Returns the position in a stream with its trail; the beginning if no message of the stream was accepted."""
        query = sa.select(positions).where(positions.c.stream == stream, positions.c.log_id == log_id)
        rows = await read_rows(self._database, query)
        return StreamPosition(**rows[0]._mapping) if rows else StreamPosition(stream, log_id, 0)

    async def accept(self, alerts: Sequence[WarnableAlert], now_ms: int, position: StreamPosition) -> DueWork:
        """Stores alerts, in the order of the log, with the messages that they cause. A duplicate alert counts once. Returns the
        messages that are due now, without any sendings."""

        def work(connection: sa.Connection) -> DueWork:
            for warnable in sorted(alerts, key=lambda warnable: warnable.occurrence.place):
                accept(connection, warnable, now_ms)
            write_position(connection, position)
            return _due_messages(connection, now_ms)

        return await self._database.visit(work)

    async def accept_advice(self, advice: Sequence[WarnableAlert], now_ms: int, position: StreamPosition) -> DueWork:
        """Stores advice with its messages: to the named persons, or if none is named, to all persons warned under its order. Returns
        the messages that are due now, without any sendings."""

        def work(connection: sa.Connection) -> DueWork:
            for warnable in advice:
                accept_advice(connection, warnable, now_ms)
            write_position(connection, position)
            return _due_messages(connection, now_ms)

        return await self._database.visit(work)

    async def put_contacts(self, cases: Sequence[CaseContacts], now_ms: int, position: StreamPosition) -> None:
        """Stores the contacts of cases. Skips a version that isn't newer than the stored one.

        For a person whom the case no longer names the order is over, so her contact stays for CONTACT_RETENTION_MS. It goes earlier if
        another case brings a contact of hers, since she may have withdrawn the old one.
        """

        def work(connection: sa.Connection) -> None:
            for case in cases:
                of_case = contacts.c.case_id == case.case_id
                known = connection.scalar(sa.select(sa.func.max(contacts.c.version)).where(of_case))
                if known is None or case.version > known:
                    named = contacts.c.person_id.in_([contact.person_id for contact in case.contacts])
                    is_over = contacts.c.valid_until_ms <= now_ms
                    connection.execute(sa.delete(contacts).where(named, of_case | is_over))
                    is_open = contacts.c.valid_until_ms.is_(None) | (contacts.c.valid_until_ms > now_ms)
                    connection.execute(sa.update(contacts).where(of_case, is_open).values(valid_until_ms=now_ms))
                    connection.execute(sa.update(contacts).where(of_case).values(version=case.version))
                    if case.contacts:
                        connection.execute(sa.insert(contacts), [asdict(contact) for contact in case.contacts])
            write_position(connection, position)

        await self._database.visit(work)

    async def contacts_of(self, person_ids: Iterable[str]) -> dict[str, list[ContactRow]]:
        """Returns the contacts of persons, by person id, the newest case version first."""

        return await self._database.visit(lambda connection: _contacts_of(connection, person_ids))

    async def forget(self, now_ms: int) -> None:
        """Deletes contacts of ended orders, and ids of alerts that ALERTS no longer holds."""

        def work(connection: sa.Connection) -> None:
            over = contacts.c.valid_until_ms < now_ms - CONTACT_RETENTION_MS
            connection.execute(sa.delete(contacts).where(over))
            old = accepted_alerts.c.at_ms < now_ms - ALERT_ID_RETENTION_MS
            connection.execute(sa.delete(accepted_alerts).where(old))

        await self._database.visit(work)

    # ── outgoing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def due(self, now_ms: int, tried: Sequence[TriedSending] = ()) -> DueWork:
        """Stores the outcomes of attempts. Returns what is due then, and when the next message or sending is due. Most of the time
        nothing is, and only this time is read."""

        def work(connection: sa.Connection) -> DueWork:
            for sending, outcome, retry_ms in tried:
                key = {"which": sending.message_id, "over": str(sending.channel)}
                _TRIED.execute(
                    connection,
                    key | {"new_tries": sending.tries + 1, "new_outcome": outcome, "new_next_ms": retry_ms},
                )
            [times_ms] = _NEXT.fetch(connection)
            next_ms = min((time_ms for time_ms in times_ms if time_ms is not None), default=None)
            if next_ms is None or next_ms > now_ms:
                return DueWork(next_ms)
            due = _due_messages(connection, now_ms)
            return replace(due, next_ms=next_ms, sendings=_due_sendings(connection, now_ms))

        return await self._database.visit(work)

    async def unconfirmed(self, now_ms: int, skipped: int, limit: int) -> Sequence[DueSending]:
        """Returns the commands that carry the newest message to a person, were handed over, and have no receipt and no end yet.

        The newest comes first. `skipped` says how many to leave out, and `limit` how many to return at most.
        """
        query = _UNCONFIRMED.offset(skipped).limit(limit)
        return [_due_sending(tuple(row)) for row in await read_rows(self._database, query, {"now_ms": now_ms})]

    async def open(self, opened: Sequence[OpenedMessage]) -> list[DueSending]:
        """Stores opened messages, and returns all sendings that are due then.

        Each message replaces the open sendings of earlier messages to the same person.
        """

        def work(connection: sa.Connection) -> tuple[list[Sending], list[DueSending]]:
            new = [sending for message in opened if _open(connection, message) for sending in message.sendings]
            return new, _due_sendings(connection, max((sending.next_ms for sending in new), default=0))

        new, due = await self._database.visit(work)
        self._on_open(new)
        return due

    async def refuse(self, message_id: str) -> None:
        """Stores that a waiting notice of the Ministry isn't given."""
        waiting = (messages.c.message_id == message_id) & (messages.c.state == WAITING)
        update = sa.update(messages).where(waiting).values(state=REFUSED)
        await self._database.visit(lambda connection: connection.execute(update))

    async def message(self, message_id: str) -> MessageRow | None:
        """Returns a message by its id; None if there is none."""
        rows = await read_rows(self._database, sa.select(messages).where(messages.c.message_id == message_id))
        return message_of(rows[0]) if rows else None

    async def is_warned_elsewhere(self, message: MessageRow) -> bool:
        """Whether a warning to the person of a message still applies in another incident. A drill and a live one don't count for each
        other."""
        values = {"in": message.incident_id, "to": message.person_id, "drill": message.drill}
        return bool(await fetch_rows(self._database, _WARNED_ELSEWHERE, values))

    async def was_sent_over(self, message_id: str, channel: ChannelId) -> bool:
        """Whether a message was sent over a channel."""
        query = sa.select(sendings.c.way).where(sendings.c.message_id == message_id, sendings.c.way == str(channel))
        return bool(await read_rows(self._database, query))

    async def message_of_command(self, command_id: str) -> MessageRow | None:
        """Returns the message that a device command carries; None for a command of another service."""
        rows = await fetch_rows(self._database, OF_COMMAND, {"command_id": command_id})
        return message_of(rows[0]) if rows else None


# ── within a transaction ─────────────────────────────────────────────────────────────────────────────────────────────


def _due_messages(connection: sa.Connection, now_ms: int) -> DueWork:
    """The waiting messages that are due, with the contacts of their persons."""
    waiting = [message_of(row) for row in _DUE.fetch(connection, {"now_ms": now_ms})]
    person_ids = dict.fromkeys(message.person_id for message in waiting)
    return DueWork(now_ms, messages=waiting, contacts=_contacts_of(connection, person_ids))


def _due_sendings(connection: sa.Connection, now_ms: int) -> list[DueSending]:
    return [_due_sending(row) for row in _TO_TRY.fetch(connection, {"now_ms": now_ms})]


def _due_sending(row: tuple[Any, ...]) -> DueSending:
    return DueSending(sending_of(row[:_SENDING_WIDTH]), message_of(row[_SENDING_WIDTH:]))


def _contacts_of(connection: sa.Connection, person_ids: Iterable[str]) -> dict[str, list[ContactRow]]:
    """The contacts of persons, by person id, the newest case version first."""
    return {
        person_id: [contact_of(row) for row in _CONTACTS.fetch(connection, {"person_id": person_id})]
        for person_id in person_ids
    }


def _open(connection: sa.Connection, opened: OpenedMessage) -> bool:
    """Whether the message was opened: a newer one may have replaced it."""
    message = opened.message
    state = SENDING if opened.sendings else NO_WAY
    worded = {"text": opened.text, "language": opened.language, "notice": message.notice}
    values = {"which": message.message_id, "state": state, **worded}
    if not _OPEN.execute(connection, values):
        return False
    before = {"in": message.incident_id, "to": message.person_id, "until_ms": message.due_ms}
    outdate = _OUTDATE_NOTICE if message.ground else _OUTDATE_WARNING
    outdate.execute(connection, before)
    for sending in opened.sendings:
        _INSERT_SENDING.execute(connection, sending_values(sending))
    return True


def write_position(connection: sa.Connection, position: StreamPosition) -> None:
    """Stores the position in a stream."""
    _PUT_POSITION.execute(connection, position._asdict())


# ── frequent statements, built once: building one takes several times as long as executing it ────────────────────────

_NOW_MS: sa.BindParameter[int] = sa.bindparam("now_ms")
_NEW_POSITION = insert(positions)
_PUT_POSITION = Prepared(
    _NEW_POSITION.on_conflict_do_update(
        index_elements=["stream"],
        set_={name: _NEW_POSITION.excluded[name] for name in ("log_id", "sequence", "trail")},
    )
)
_CONTACTS = Prepared(
    sa.select(contacts).where(contacts.c.person_id == sa.bindparam("person_id")).order_by(contacts.c.version.desc())
)
# The indices are partial (waiting messages, open sendings). SQLite uses them only if the statement repeats their condition literally.
_IS_WAITING, _IS_OPEN = sa.text("state = 'waiting'"), sa.text("outcome = ''")
_DUE = Prepared(
    sa.select(messages)
    .where(_IS_WAITING, messages.c.due_ms <= _NOW_MS)
    # The police's own warnings first: while the ledger refuses rows, hundreds of the Ministry's notices may wait.
    .order_by(messages.c.ground != "", messages.c.due_ms)
    .limit(500)
)
_NEXT = Prepared(
    sa.select(
        sa.select(sa.func.min(messages.c.due_ms)).where(_IS_WAITING).scalar_subquery(),
        sa.select(sa.func.min(sendings.c.next_ms)).where(_IS_OPEN).scalar_subquery(),
    )
)
_OPEN = Prepared(
    sa.update(messages)
    .where(messages.c.message_id == sa.bindparam("which"), messages.c.state == WAITING)
    .values({name: sa.bindparam(name) for name in ("state", "text", "language", "notice")})
)
_WARNED_ELSEWHERE = Prepared(
    sa.select(messages.c.message_id)
    .select_from(
        notified_persons.join(
            messages,
            (messages.c.incident_id == notified_persons.c.incident_id)
            & (messages.c.person_id == notified_persons.c.person_id),
        )
    )
    .where(
        notified_persons.c.person_id == sa.bindparam("to"),
        notified_persons.c.incident_id != sa.bindparam("in"),
        sa.text("json_extract(told.state, '$.open')"),  # as the index told_open has it
        messages.c.drill == sa.bindparam("drill"),
        messages.c.state != REPLACED,
        messages.c.ground == "",
    )
    .limit(1)
)
_BEFORE = sa.select(messages.c.message_id).where(
    messages.c.incident_id == sa.bindparam("in"),
    messages.c.person_id == sa.bindparam("to"),
    messages.c.state == SENDING,
    messages.c.due_ms < sa.bindparam("until_ms"),
)


def _outdate(giver: sa.ColumnElement[bool]) -> Prepared:
    """The statement that outdates the open sendings of the earlier messages of a giver: no notice of the Ministry stops a warning."""
    earlier = sendings.c.message_id.in_(_BEFORE.where(giver))
    return Prepared(sa.update(sendings).where(earlier, sendings.c.outcome == OPEN).values(outcome=OUTDATED))


_OUTDATE_WARNING, _OUTDATE_NOTICE = _outdate(messages.c.ground == ""), _outdate(messages.c.ground != "")
_TO_TRY = Prepared(
    sa.select(*sendings.c, *messages.c)
    .select_from(sendings.join(messages, sendings.c.message_id == messages.c.message_id))
    .where(_IS_OPEN, sendings.c.next_ms <= _NOW_MS)
    .order_by(sendings.c.next_ms)
    .limit(5_000)
)
_SENDING_WIDTH = len(sendings.c)
_NEWER = messages.alias()
_UNCONFIRMED = (
    sa.select(*sendings.c, *messages.c)
    .select_from(sendings.join(messages, sendings.c.message_id == messages.c.message_id))
    .where(
        sendings.c.expires_ms > _NOW_MS,
        sendings.c.outcome == HANDED_OVER,
        sendings.c.command_id != "",
        messages.c.delivered_ms.is_(None),
        ~sa.exists().where(
            _NEWER.c.incident_id == messages.c.incident_id,
            _NEWER.c.person_id == messages.c.person_id,
            _NEWER.c.due_ms > messages.c.due_ms,
            _NEWER.c.state == SENDING,
            (_NEWER.c.ground == "") == (messages.c.ground == ""),
        ),
    )
    .order_by(messages.c.due_ms.desc(), sendings.c.command_id)
)
_INSERT_SENDING = Prepared(sa.insert(sendings))
_TRIED = Prepared(
    sa.update(sendings)
    .where(
        sendings.c.message_id == sa.bindparam("which"),
        sendings.c.way == sa.bindparam("over"),
        sendings.c.outcome == OPEN,
    )
    .values(tries=sa.bindparam("new_tries"), outcome=sa.bindparam("new_outcome"), next_ms=sa.bindparam("new_next_ms"))
)
OF_COMMAND = Prepared(
    sa.select(*messages.c)
    .select_from(sendings.join(messages, sendings.c.message_id == messages.c.message_id))
    .where(sendings.c.command_id == sa.bindparam("command_id"))
)

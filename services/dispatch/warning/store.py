"""SQL of incoming alerts and contacts, and of outgoing messages. Each method is one transaction, and leaves decisions to the pure
functions that it calls. A contact is stored only sealed, and `ContactBook` unseals it only for the moment of its use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from sqlalchemy.dialects.sqlite import insert

from services.common.errors import InvalidField
from services.common.observability.telemetry import logger
from services.common.privacy import secret_keys
from services.common.storage.db import Database
from services.common.storage.statements import Prepared
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.warning.consumer import accept, accept_advice, accept_closing, silent_callers
from services.dispatch.warning.domain import ChannelId, MessageKind
from services.dispatch.warning.tables import (
    HANDED_OVER,
    NO_WAY,
    OPEN,
    OUTDATED,
    REFUSED,
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
    contact_devices,
    contact_of,
    contacts,
    message_of,
    messages,
    positions,
    sending_of,
    sending_values,
    sendings,
)
from services.dispatch.warning.translate import CaseContacts, ClosedAssignment, GivenAdvice, WarnableAlert
from tandem.common.v1 import contact_pb2

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
        self.silent_callers: frozenset[str] = frozenset()
        """Persons who have called for help in silence, as far as this process has read. Nothing may be sent to their phones."""

    # ── incoming ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def position(self, stream: str, log_id: str) -> StreamPosition:
        """Returns the position in a stream with its trail; the beginning if no message of the stream was accepted."""
        query = sa.select(positions).where(positions.c.stream == stream, positions.c.log_id == log_id)
        rows = await read_rows(self._database, query)
        return StreamPosition(**rows[0]._mapping) if rows else StreamPosition(stream, log_id, 0)

    async def accept(self, alerts: Sequence[WarnableAlert], now_ms: int, position: StreamPosition) -> DueWork:
        """Stores alerts, in the order of the log, with the messages that they cause. A duplicate alert counts once. Returns the
        messages that are due now, without any sendings."""

        def work(connection: sa.Connection) -> tuple[DueWork, frozenset[str]]:
            for warnable in sorted(alerts, key=lambda warnable: warnable.place):
                accept(connection, warnable, now_ms)
            write_position(connection, position)
            return _due_messages(connection, now_ms), silent_callers(connection)

        due, self.silent_callers = await self._database.visit(work)
        return due

    async def accept_advice(self, advice: Sequence[GivenAdvice], now_ms: int, position: StreamPosition) -> DueWork:
        """Stores advice with the messages that it causes. Returns the messages that are due now, without any sendings."""

        def work(connection: sa.Connection) -> tuple[DueWork, frozenset[str]]:
            for given in advice:
                accept_advice(connection, given, now_ms)
            write_position(connection, position)
            return _due_messages(connection, now_ms), silent_callers(connection)

        due, self.silent_callers = await self._database.visit(work)
        return due

    async def accept_closings(
        self, closings: Sequence[ClosedAssignment], now_ms: int, position: StreamPosition
    ) -> DueWork:
        """Stores that the police have closed assignments, with the messages that this causes. Returns the messages that are due now,
        without any sendings."""

        def work(connection: sa.Connection) -> tuple[DueWork, frozenset[str]]:
            for closed in closings:
                accept_closing(connection, closed, now_ms)
            write_position(connection, position)
            return _due_messages(connection, now_ms), silent_callers(connection)

        due, self.silent_callers = await self._database.visit(work)
        return due

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
                        _put_devices(connection, case)
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
            connection.execute(sa.delete(contact_devices).where(_HAS_NO_CONTACT))
            old = accepted_alerts.c.at_ms < now_ms - ALERT_ID_RETENTION_MS
            connection.execute(sa.delete(accepted_alerts).where(old))

        await self._database.visit(work)

    # ── outgoing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def due(self, now_ms: int, tried: Sequence[TriedSending] = ()) -> DueWork:
        """Stores the outcomes of attempts. Returns what is due then, and when the next message or sending is due. Most of the time
        nothing is, and only this time is read."""

        def work(connection: sa.Connection) -> DueWork:
            for sending, outcome, retry_ms in tried:
                key = {"which": sending.message_id, "over": str(sending.channel), "n": sending.repetition}
                _TRIED.execute(
                    connection,
                    key | {"new_tries": sending.tries + 1, "new_outcome": outcome, "new_next_ms": retry_ms},
                )
            [times_ms] = _NEXT.fetch(connection)
            next_ms = min((time_ms for time_ms in times_ms if time_ms is not None), default=None)
            if next_ms is None or next_ms > now_ms:
                return DueWork(next_ms)
            due = _due_messages(connection, now_ms)
            repeats = [message_of(row) for row in _TO_REPEAT.fetch(connection, {"now_ms": now_ms})]
            known = {**due.contacts, **_contacts_of(connection, _persons_of(repeats))}
            sendings = _due_sendings(connection, now_ms)
            return replace(due, next_ms=next_ms, repeats=repeats, contacts=known, sendings=sendings)

        return await self._database.visit(work)

    async def unconfirmed(self, now_ms: int, skipped: int, limit: int) -> Sequence[DueSending]:
        """Returns the commands that carry the present message to a person, were handed over, and have no receipt and no end yet.

        The newest comes first. `skipped` says how many to leave out, and `limit` how many to return at most.
        """
        query = _UNCONFIRMED.offset(skipped).limit(limit)
        return [_due_sending(tuple(row)) for row in await read_rows(self._database, query, {"now_ms": now_ms})]

    async def open(self, opened: Sequence[OpenedMessage], now_ms: int) -> list[DueSending]:
        """Stores opened messages, and returns all sendings that are due then.

        Each message takes the place of the present one, whose open sendings end.
        """

        def work(connection: sa.Connection) -> tuple[list[Sending], list[DueSending]]:
            new = [sending for message in opened if _open(connection, message, now_ms) for sending in message.sendings]
            return new, _due_sendings(connection, now_ms)

        new, due = await self._database.visit(work)
        self._on_open(new)
        return due

    async def repeat(self, repeated: Sequence[OpenedMessage], now_ms: int) -> list[DueSending]:
        """Stores repetitions of instructions, and returns all sendings that are due then. A channel that still tries goes on."""

        def work(connection: sa.Connection) -> tuple[list[Sending], list[DueSending]]:
            new = [sending for message in repeated for sending in _repeat(connection, message, now_ms)]
            return new, _due_sendings(connection, now_ms)

        new, due = await self._database.visit(work)
        self._on_open(new)
        return due

    async def find_silent_callers(self) -> frozenset[str]:
        """Finds all persons who have called for help in silence, so that nothing may be sent to their phones."""
        self.silent_callers = await self._database.visit(silent_callers)
        return self.silent_callers

    async def refuse(self, message_id: str) -> None:
        """Stores that a waiting notice of the Ministry isn't given."""
        waiting = (messages.c.message_id == message_id) & (messages.c.state == WAITING)
        update = sa.update(messages).where(waiting).values(state=REFUSED, past_ms=messages.c.due_ms)
        await self._database.visit(lambda connection: connection.execute(update))

    async def message(self, message_id: str) -> MessageRow | None:
        """Returns a message by its id; None if there is none."""
        rows = await read_rows(self._database, sa.select(messages).where(messages.c.message_id == message_id))
        return message_of(rows[0]) if rows else None

    async def is_instructed(self, person_id: str) -> bool:
        """Whether an instruction of the police applies to a person now."""
        return bool(await fetch_rows(self._database, _INSTRUCTED, {"to": person_id}))

    async def was_sent_over(self, message_id: str, channel: ChannelId) -> bool:
        """Whether a message was sent over a channel."""
        query = sa.select(sendings.c.way).where(sendings.c.message_id == message_id, sendings.c.way == str(channel))
        return bool(await read_rows(self._database, query.limit(1)))

    async def message_of_command(self, command_id: str) -> MessageRow | None:
        """Returns the message that a device command carries; None for a command of another service."""
        rows = await fetch_rows(self._database, OF_COMMAND, {"command_id": command_id})
        return message_of(rows[0]) if rows else None


# ── within a transaction ─────────────────────────────────────────────────────────────────────────────────────────────


class ContactBook:
    """Contacts of protected persons."""

    def __init__(self, store: WarningStore, keys: Sequence[X25519PrivateKey]) -> None:
        self._store, self._keys = store, keys

    async def of(self, person_id: str) -> contact_pb2.Contact | None:
        """Returns the newest readable contact of a person; None if there is none. Raises Unavailable."""
        return self.unsealed((await self._store.contacts_of([person_id]))[person_id])

    async def is_duress(self, person_id: str, choice: int) -> bool:
        """Whether an answer is the choice that the person and the police have agreed to mean duress. Raises Unavailable."""
        contact = await self.of(person_id)
        return contact is not None and contact.duress_choice == choice

    def unsealed(self, rows: Iterable[ContactRow]) -> contact_pb2.Contact | None:
        """Unseals the first readable contact of a person; None if there is none. Logs an unreadable contact as critical."""
        for row in rows:
            if row.sealed:
                try:
                    return secret_keys.unseal(row.sealed, row.person_id, self._keys)
                except InvalidField:
                    logger().critical("contact_cannot_be_opened", case_id=row.case_id)
        return None


def _due_messages(connection: sa.Connection, now_ms: int) -> DueWork:
    """The waiting messages that are due, with the contacts of their persons."""
    waiting = [message_of(row) for row in _DUE.fetch(connection, {"now_ms": now_ms})]
    return DueWork(now_ms, messages=waiting, contacts=_contacts_of(connection, _persons_of(waiting)))


def _persons_of(rows: Iterable[MessageRow]) -> Iterable[str]:
    return dict.fromkeys(message.person_id for message in rows)


def _put_devices(connection: sa.Connection, case: CaseContacts) -> None:
    """Stores whose the devices of a case are, by device. A device that the case no longer names is nobody's in it."""
    connection.execute(sa.delete(contact_devices).where(contact_devices.c.case_id == case.case_id))
    rows = [
        {"device_id": device_id, "case_id": case.case_id, "person_id": contact.person_id}
        for contact in case.contacts
        for device_id in dict.fromkeys(contact.device_ids)
    ]
    if rows:
        connection.execute(sa.insert(contact_devices), rows)


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


def _open(connection: sa.Connection, opened: OpenedMessage, now_ms: int) -> bool:
    """Whether the message was opened: a newer one may have replaced it."""
    message = opened.message
    values = {name: getattr(message, name) for name in _WORDED}
    state = SENDING if opened.sendings else NO_WAY
    if not _OPEN.execute(connection, {**values, "which": message.message_id, "new_state": state}):
        return False
    before = {"in": message.incident_id, "to": message.person_id, "which": message.message_id, "now_ms": now_ms}
    for outdate, end in _ENDED_BY[message.message_kind]:
        outdate.execute(connection, before)
        end.execute(connection, before)
    for sending in opened.sendings:
        _INSERT_SENDING.execute(connection, sending_values(sending))
    return True


def _repeat(connection: sa.Connection, repeated: OpenedMessage, now_ms: int) -> list[Sending]:
    """Stores a repetition, and returns its new sendings; none if the instruction isn't the present one any more."""
    message = repeated.message
    values = {
        "which": message.message_id,
        "before": message.repetitions - 1,
        "new_state": message.state,
        "new_repeat_ms": message.repeat_ms,
        "new_receipt_due_ms": message.receipt_due_ms,
        "new_in_app_only": message.in_app_only,
        "now_ms": now_ms,
    }
    if not _REPEAT.execute(connection, values):
        return []
    new = []
    for sending in repeated.sendings:
        over = {"which": sending.message_id, "over": str(sending.channel), "until_ms": sending.expires_ms}
        if not _GO_ON.execute(connection, over):
            _INSERT_SENDING.execute(connection, sending_values(sending))
            new.append(sending)
    return new


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
_IS_REPEATED, _IS_PRESENT = sa.text("repeat_ms is not null"), sa.text("past_ms is null")
_TO_REPEAT = Prepared(
    sa.select(messages).where(_IS_REPEATED, messages.c.repeat_ms <= _NOW_MS).order_by(messages.c.repeat_ms).limit(500)
)
_NEXT = Prepared(
    sa.select(
        sa.select(sa.func.min(messages.c.due_ms)).where(_IS_WAITING).scalar_subquery(),
        sa.select(sa.func.min(sendings.c.next_ms)).where(_IS_OPEN).scalar_subquery(),
        sa.select(sa.func.min(messages.c.repeat_ms)).where(_IS_REPEATED).scalar_subquery(),
    )
)
_WORDED = ("text", "language", "who_text", "where_text", "act_text", "kind", "issued_ms", "past_ms", "repeat_ms")
_OPEN = Prepared(
    sa.update(messages)
    .where(messages.c.message_id == sa.bindparam("which"), messages.c.state == WAITING)
    .values({"state": sa.bindparam("new_state"), **{name: sa.bindparam(name) for name in _WORDED}})
)
_REPEAT = Prepared(
    sa.update(messages)
    .where(
        messages.c.message_id == sa.bindparam("which"),
        messages.c.repetitions == sa.bindparam("before"),
        _IS_PRESENT,
    )
    .values(
        state=sa.bindparam("new_state"),
        repetitions=sa.bindparam("before") + 1,
        repeated_ms=_NOW_MS,
        repeat_ms=sa.bindparam("new_repeat_ms"),
        receipt_due_ms=sa.bindparam("new_receipt_due_ms"),
        in_app_only=sa.bindparam("new_in_app_only"),
    )
)
_GO_ON = Prepared(
    sa.update(sendings)
    .where(
        sendings.c.message_id == sa.bindparam("which"),
        sendings.c.way == sa.bindparam("over"),
        sendings.c.outcome == OPEN,
    )
    .values(expires_ms=sa.bindparam("until_ms"))
)
_INSTRUCTED = Prepared(
    sa.select(messages.c.message_id)
    .where(
        messages.c.person_id == sa.bindparam("to"),
        _IS_PRESENT,
        messages.c.kind == MessageKind.INSTRUCTION.value,
        messages.c.issued_ms.is_not(None),
    )
    .limit(1)
)
_HAS_NO_CONTACT = ~sa.exists().where(
    contacts.c.case_id == contact_devices.c.case_id, contacts.c.person_id == contact_devices.c.person_id
)


def _ends(*kinds: MessageKind, of_incident: bool) -> tuple[Prepared, Prepared]:
    """The statements by which a message takes the place of the present ones of some kinds. Their open sendings end."""
    present: list[sa.ColumnElement[bool] | sa.TextClause] = [
        messages.c.person_id == sa.bindparam("to"),
        _IS_PRESENT,
        messages.c.kind.in_([kind.value for kind in kinds]),
        messages.c.issued_ms.is_not(None),
        messages.c.message_id != sa.bindparam("which"),
    ]
    if of_incident:
        present.append(messages.c.incident_id == sa.bindparam("in"))
    earlier = sendings.c.message_id.in_(sa.select(messages.c.message_id).where(*present))
    return (
        Prepared(sa.update(sendings).where(earlier, sendings.c.outcome == OPEN).values(outcome=OUTDATED)),
        Prepared(sa.update(messages).where(*present).values(past_ms=_NOW_MS, repeat_ms=None)),
    )


_BY_INSTRUCTION = (_ends(MessageKind.INSTRUCTION, MessageKind.OVER, of_incident=False),)
# No notice of the Ministry stops a warning. Each belongs to its incident.
_BY_NOTICE = (_ends(MessageKind.MINISTRY, MessageKind.MINISTRY_OVER, MessageKind.ONE_OVER, of_incident=True),)
_ENDED_BY: Mapping[MessageKind, Sequence[tuple[Prepared, Prepared]]] = {
    MessageKind.INSTRUCTION: _BY_INSTRUCTION,
    MessageKind.OVER: _BY_INSTRUCTION,
    MessageKind.PHONE_SILENT: (),
    MessageKind.MINISTRY: _BY_NOTICE,
    MessageKind.MINISTRY_OVER: _BY_NOTICE,
    MessageKind.ONE_OVER: _BY_NOTICE,
}
_TO_TRY = Prepared(
    sa.select(*sendings.c, *messages.c)
    .select_from(sendings.join(messages, sendings.c.message_id == messages.c.message_id))
    .where(_IS_OPEN, sendings.c.next_ms <= _NOW_MS)
    .order_by(sendings.c.next_ms)
    .limit(5_000)
)
_SENDING_WIDTH = len(sendings.c)
_UNCONFIRMED = (
    sa.select(*sendings.c, *messages.c)
    .select_from(sendings.join(messages, sendings.c.message_id == messages.c.message_id))
    .where(
        sendings.c.expires_ms > _NOW_MS,
        sendings.c.outcome == HANDED_OVER,
        sendings.c.command_id != "",
        sendings.c.repetition == messages.c.repetitions,
        messages.c.delivered_ms.is_(None),
        messages.c.past_ms.is_(None),
    )
    .order_by(messages.c.due_ms.desc(), sendings.c.command_id)
)
_INSERT_SENDING = Prepared(sa.insert(sendings))
_TRIED = Prepared(
    sa.update(sendings)
    .where(
        sendings.c.message_id == sa.bindparam("which"),
        sendings.c.way == sa.bindparam("over"),
        sendings.c.repetition == sa.bindparam("n"),
        sendings.c.outcome == OPEN,
    )
    .values(tries=sa.bindparam("new_tries"), outcome=sa.bindparam("new_outcome"), next_ms=sa.bindparam("new_next_ms"))
)
OF_COMMAND = Prepared(
    sa.select(*messages.c)
    .select_from(sendings.join(messages, sendings.c.message_id == messages.c.message_id))
    .where(sendings.c.command_id == sa.bindparam("command_id"))
)

"""SQL of receipts, and of the updates that receipts cause in the leg. Each method is one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.observability.telemetry import logger
from services.common.storage.db import Database
from services.common.storage.statements import Prepared
from services.dispatch.domain.assignment import assignment_id
from services.dispatch.domain.enums import WarningFlag
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate as leg_translate
from services.dispatch.leg.rows import AssignmentRow, StreamPosition
from services.dispatch.publications.skipped import SkippedPosition
from services.dispatch.warning.consumer import of_person
from services.dispatch.warning.domain import ReceiptKind
from services.dispatch.warning.store import WarningStore, fetch_rows, read_rows
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
from tandem.common.v1 import command_pb2

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
    is_pending: bool
    """An update of the leg is pending."""
    may_be_reached: bool
    """A person has a recent flag of UNREACHED, so a gateway may still acknowledge."""


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
            column = messages.c[f"{receipt.value}_ms"]
            first = sa.and_(messages.c.message_id == message.message_id, column.is_(None))
            is_first = connection.execute(sa.update(messages).where(first).values({column: now_ms})).rowcount
            answered = of_person(message) & (messages.c.due_ms <= message.due_ms)
            connection.execute(sa.update(messages).where(answered).values(receipt_due_ms=None))
            if not message.incident_id:
                return
            [row] = connection.execute(sa.select(notified_persons).where(_notified_person(message)))
            if is_first and not message.ground:  # the leg's assignment is the police's own warning
                _add_leg_update(connection, message, None, now_ms=now_ms)
            if row.flag in UNREACHED and _is_newest(connection, message, now_ms):
                _flag(connection, message, WarningFlag.REACHED, now_ms=now_ms)
            if duress and not row.duress:
                _add_leg_update(connection, message, WarningFlag.DURESS, now_ms=now_ms)
                connection.execute(sa.update(notified_persons).where(_notified_person(message)).values(duress=True))

        await self._database.visit(work)
        self.changed.set()

    async def work(self, now_ms: int) -> ReceiptWork:
        """Returns the work that receipts cause now, and when a receipt will be overdue next."""
        [(due_ms, is_pending, may_be_reached)] = await fetch_rows(
            self._database, _WORK, {"since_ms": now_ms - LATE_RECEIPT_MS}
        )
        return ReceiptWork(due_ms, is_pending=bool(is_pending), may_be_reached=bool(may_be_reached))

    async def overdue(self, now_ms: int) -> list[MessageRow]:
        """Returns the messages whose receipt is overdue, at most 500."""
        return [message_of(row) for row in await read_rows(self._database, _OVERDUE, {"now_ms": now_ms})]

    async def unreached(self, now_ms: int, incident_ids: Collection[str] | None = None) -> list[MessageRow]:
        """Returns the newest message to each person who has a recent flag of UNREACHED, in these incidents or in all."""
        values: dict[str, object] = {"since_ms": now_ms - LATE_RECEIPT_MS}
        if incident_ids is None:
            rows = await read_rows(self._database, _UNREACHED, values)
        else:
            values["incident_ids"] = list(incident_ids)
            rows = await read_rows(self._database, _UNREACHED_IN, values)
        return list({(row.incident_id, row.person_id): message_of(row) for row in rows}.values())

    async def expire(self, message: MessageRow, now_ms: int, reached: bool) -> None:
        """Ends the wait for receipts of a message and of the earlier messages to the person.

        `reached` says that a gateway confirms that the person was reached. If not, the police are notified, and not a second time
        before a receipt arrives.
        """

        def work(connection: sa.Connection) -> None:
            late = of_person(message) & (messages.c.due_ms <= message.due_ms) & messages.c.receipt_due_ms.is_not(None)
            waited = connection.execute(sa.update(messages).where(late).values(receipt_due_ms=None)).rowcount
            flag = connection.scalar(sa.select(notified_persons.c.flag).where(_notified_person(message)))
            if reached and flag in UNREACHED:
                _flag(connection, message, WarningFlag.REACHED, now_ms=now_ms)
            elif not reached and waited and flag not in UNREACHED:
                _flag(connection, message, _unreached_flag(connection, message), now_ms=now_ms)

        await self._database.visit(work)

    async def pending_leg_updates(self) -> list[tuple[PendingLegUpdate, MessageRow]]:
        """Returns the pending updates of the leg with their messages, in order, at most 500."""
        count, rows = len(to_leg.c), await read_rows(self._database, _LEG_UPDATES)
        return [(leg_update_of(row[:count]), message_of(row[count:])) for row in rows]

    async def delete_leg_update(self, update: PendingLegUpdate) -> None:
        """Deletes an update that the leg has recorded."""
        delete = sa.delete(to_leg).where(to_leg.c.id == update.id)
        await self._database.visit(lambda connection: connection.execute(delete))


def assignment_of(message: MessageRow) -> str:
    """Returns the id of the warning leg's assignment that a message belongs to."""
    return assignment_id(message.incident_id, Leg.WARNING, message.person_id)


def was_acknowledged_by_gateway(row: AssignmentRow) -> bool:
    """Whether a gateway acknowledged an assignment. A receipt of a message does so, too, but it isn't a gateway's word."""
    acknowledged_by = leg_translate.stored_assignment(row).acknowledged_by
    return bool(acknowledged_by) and not acknowledged_by.startswith(BY_RECEIPT)


class DeviceReceipts:
    """Receipts of the messages that devices got as commands. COMMANDS also has the receipts of all other services' commands."""

    def __init__(self, store: WarningStore, receipts: ReceiptStore, clock: MeshClock) -> None:
        self._store, self._receipts, self._clock = store, receipts, clock
        self.skipped = SkippedPosition(store.put_position)

    async def accept(self, steps: Sequence[command_pb2.CommandStep], position: StreamPosition) -> None:
        """Stores the receipts among the steps of commands, and the stream position after them."""
        notices = [step for step in steps if step.command_id.startswith(flow.NOTICE_IDS)]
        if not notices:
            self.skipped.position = position
            return
        self.skipped.position = None  # `position` is later
        for step in notices:
            message = await self._store.message_of_command(step.command_id)
            if message is None:
                continue  # another database has the message
            if step.state == command_pb2.COMMAND_STATE_RECEIVED:
                await self._receipts.put(message, ReceiptKind.DELIVERED, self._clock.now_ms())
            else:
                logger().warning("warning_refused_by_device", message_id=message.message_id)
        await self._store.put_position(position)


# ── within a transaction ─────────────────────────────────────────────────────────────────────────────────────────────


def _notified_person(message: MessageRow) -> sa.ColumnElement[bool]:
    return (notified_persons.c.incident_id == message.incident_id) & (notified_persons.c.person_id == message.person_id)


def _is_newest(connection: sa.Connection, message: MessageRow, now_ms: int) -> bool:
    newer = of_person(message) & (messages.c.due_ms > message.due_ms) & (messages.c.due_ms <= now_ms)
    return connection.scalar(sa.select(sa.func.count()).select_from(messages).where(newer)) == 0


def _unreached_flag(connection: sa.Connection, message: MessageRow) -> WarningFlag:
    state = connection.scalar(sa.select(messages.c.state).where(messages.c.message_id == message.message_id))
    return WarningFlag.NO_CONTACT if state == NO_WAY else WarningFlag.NO_RECEIPT


def _flag(connection: sa.Connection, message: MessageRow, flag: WarningFlag, *, now_ms: int) -> None:
    _add_leg_update(connection, message, flag, now_ms=now_ms)
    flagged = {"flag": int(flag), "flag_ms": now_ms}
    connection.execute(sa.update(notified_persons).where(_notified_person(message)).values(flagged))


def _add_leg_update(connection: sa.Connection, message: MessageRow, flag: WarningFlag | None, *, now_ms: int) -> None:
    values = {"message_id": message.message_id, "what": name_of_update(flag), "since_ms": now_ms}
    connection.execute(sa.insert(to_leg).values(values))


# ── frequent statements, built once: building one takes several times as long as executing it ────────────────────────

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
_OVERDUE = (
    sa.select(messages)
    .where(messages.c.receipt_due_ms <= sa.bindparam("now_ms"))
    .order_by(messages.c.due_ms)
    .limit(500)
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
_UNREACHED_IN = _UNREACHED.where(notified_persons.c.incident_id.in_(sa.bindparam("incident_ids", expanding=True)))
_LEG_UPDATES = (
    sa.select(*to_leg.c, *messages.c)
    .select_from(to_leg.join(messages, to_leg.c.message_id == messages.c.message_id))
    .order_by(to_leg.c.id)
    .limit(500)
)

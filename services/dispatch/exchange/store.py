"""Database of a leg's exchange: the queues of deliveries for each receiver, the alarms of match reviews, and the used links.

The database is a separate file from the leg's database, so that the exchange never holds the lock that an offer needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from services.common.storage.db import Database

metadata = sa.MetaData()


def _queue_table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    """Table of a queue of deliveries, with further columns."""
    return sa.Table(
        name,
        metadata,
        sa.Column("receiver", sa.String, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("delivery_id", sa.String, nullable=False, unique=True),
        *columns,
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("content_type", sa.String, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
    )


_deliveries = _queue_table(
    "deliveries",
    sa.Column("incident_id", sa.String, nullable=False),
    sa.Column("step", sa.LargeBinary, nullable=False),
)
_review_deliveries = _queue_table("review_deliveries")
_review_alarms = sa.Table(
    "review_alarms",
    metadata,
    sa.Column("case_id", sa.String, primary_key=True),
    sa.Column("since_ms", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("order_id", sa.String, nullable=False),
    sa.Column("wearer_id", sa.String, nullable=False),
    sa.Column("alarmed_at_ms", sa.BigInteger, nullable=False),
)
_queued_up_to = sa.Table(
    "handed",
    metadata,
    sa.Column("receiver", sa.String, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
)
_links_used = sa.Table(
    "links_used",
    metadata,
    sa.Column("nonce", sa.String, primary_key=True),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("answer", sa.String, nullable=False),
)

WAITING = ""
DELIVERED = "delivered"
GIVEN_UP = "given up"
"""Outcomes of a delivery: still queued, accepted by the receiver, or given up after its deadline."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook message to one receiver."""

    receiver: str
    sequence: int
    """Place of the message in its queue. A receiver gets messages in this order."""
    delivery_id: str
    body: bytes
    content_type: str
    deadline_ms: int
    """Deadline for retries, wall clock, milliseconds since 1970 UTC."""
    tries: int = 0
    outcome: str = WAITING


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDelivery(Delivery):
    """A webhook message for one step of the leg. Its sequence is that of the step."""

    incident_id: str
    step: bytes
    """Serialised tandem.dispatch.v1.Step; later messages of the incident refer to it."""


@dataclass(frozen=True, slots=True)
class ReviewAlarm:
    """A match review that nobody decided in time."""

    case_id: str
    since_ms: int
    """Since when the review has been waiting, mesh time. A review that is opened later once more gets another alarm."""
    order_id: str
    wearer_id: str
    alarmed_at_ms: int
    """Since when both agencies have been alarmed, mesh time."""


class QueuedStep(NamedTuple):
    """A step that was queued for a receiver, under the sequence that it had in the leg's record then."""

    sequence: int
    step: bytes
    """Serialised tandem.dispatch.v1.Step."""


class AlarmMessage(NamedTuple):
    """A webhook message about a review alarm, before its place in the queue is known."""

    receiver: str
    delivery_id: str
    body: bytes
    content_type: str
    deadline_ms: int
    """Deadline for retries, wall clock, milliseconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class LinkAnswer:
    """HTTP answer to the use of a link."""

    status: int
    text: str


_QUEUE = insert(_deliveries).on_conflict_do_nothing(index_elements=["delivery_id"])
_NEW_QUEUED_UP_TO = insert(_queued_up_to)
_PUT_QUEUED_UP_TO = _NEW_QUEUED_UP_TO.on_conflict_do_update(
    index_elements=["receiver"], set_={"sequence": _NEW_QUEUED_UP_TO.excluded.sequence}
)


class DeliveryQueue:
    """Messages for the receivers in one table. All methods raise Unavailable if the database refuses."""

    def __init__(self, database: Database, table: sa.Table, *, name: str) -> None:
        self._database = database
        self._table = table
        self.name = name
        self._columns = [table.c[field.name] for field in fields(Delivery)]

    async def waiting(self, receiver: str) -> Delivery | None:
        """Returns the next message for a receiver; None if none waits."""
        query = (
            sa.select(*self._columns)
            .where(self._table.c.receiver == receiver, sa.text("outcome = ''"))
            .order_by(self._table.c.sequence)
            .limit(1)
        )
        row = await self._database.visit(lambda connection: connection.execute(query).first())
        return Delivery(**row._mapping) if row else None

    async def count_waiting(self, receiver: str) -> int:
        """Returns the number of messages that wait for a receiver."""
        query = sa.select(sa.func.count()).where(self._table.c.receiver == receiver, sa.text("outcome = ''"))
        count: int | None = await self._database.visit(lambda connection: connection.scalar(query))
        return count or 0

    async def tried(self, delivery: Delivery, outcome: str) -> None:
        """Stores the outcome of an attempt to deliver a message."""
        this = (self._table.c.receiver == delivery.receiver) & (self._table.c.sequence == delivery.sequence)
        update = sa.update(self._table).where(this).values(tries=delivery.tries + 1, outcome=outcome)
        await self._database.visit(lambda connection: connection.execute(update))


class ExchangeStore:
    """SQL of one leg's exchange. All methods raise Unavailable if the database refuses."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.steps = DeliveryQueue(database, _deliveries, name="steps")
        self.reviews = DeliveryQueue(database, _review_deliveries, name="reviews")

    async def queued_up_to(self, receiver: str) -> int | None:
        """Returns the sequence of the last step that was queued for a receiver; None for a new receiver."""
        query = sa.select(_queued_up_to.c.sequence).where(_queued_up_to.c.receiver == receiver)
        sequence: int | None = await self._database.visit(lambda connection: connection.scalar(query))
        return sequence

    async def queue(self, receiver: str, sequence: int, deliveries: Sequence[StepDelivery]) -> None:
        """Queues messages for a receiver. `sequence` is the last step that was considered, even if it got no message.

        A message that was queued before under the same id isn't queued once more, see `continue_after`.
        """

        def work(connection: sa.Connection) -> None:
            if deliveries:
                connection.execute(_QUEUE, [asdict(delivery) for delivery in deliveries])
            connection.execute(_PUT_QUEUED_UP_TO, {"receiver": receiver, "sequence": sequence})

        await self._database.visit(work)

    async def newest_queued(self, receiver: str, before: int | None, limit: int) -> list[QueuedStep]:
        """Returns the last steps that were queued for a receiver, newest first; with `before`, only those before that sequence.

        Steps of an earlier record, see `continue_after`, are left out.
        """
        query = (
            sa.select(_deliveries.c.sequence, _deliveries.c.step)
            .where(_deliveries.c.receiver == receiver, _deliveries.c.sequence > 0)
            .order_by(_deliveries.c.sequence.desc())
            .limit(limit)
        )
        query = query if before is None else query.where(_deliveries.c.sequence < before)
        rows = await self._database.visit(lambda connection: connection.execute(query).all())
        return [QueuedStep._make(row) for row in rows]

    async def continue_after(self, receiver: str, sequence: int) -> None:
        """Makes a receiver get the steps after a sequence, because the leg's record has others there than those that were queued.

        Messages that were sent free their sequences and stay known by their ids, so that none is sent a second time. Messages that wait
        are dropped, as the record no longer has their steps.
        """
        of_receiver = _deliveries.c.receiver == receiver
        later = of_receiver & (_deliveries.c.sequence > sequence)
        bounds = sa.select(sa.func.min(_deliveries.c.sequence), sa.func.max(_deliveries.c.sequence)).where(of_receiver)

        def work(connection: sa.Connection) -> None:
            connection.execute(sa.delete(_deliveries).where(later, sa.text("outcome = ''")))
            [(first, last)] = connection.execute(bounds)
            if first is not None:
                before_first = _deliveries.c.sequence - (last - min(first, 1) + 1)
                connection.execute(sa.update(_deliveries).where(later).values(sequence=before_first))
            connection.execute(_PUT_QUEUED_UP_TO, {"receiver": receiver, "sequence": sequence})

        await self._database.visit(work)

    async def review_alarms(self) -> list[ReviewAlarm]:
        """Returns the alarms that the receivers were told of and that haven't ended."""
        rows = await self._database.visit(lambda connection: connection.execute(sa.select(_review_alarms)).all())
        return [ReviewAlarm(**row._mapping) for row in rows]

    async def queue_alarms(
        self, raised: Sequence[ReviewAlarm], ended: Sequence[ReviewAlarm], messages: Sequence[AlarmMessage]
    ) -> None:
        """Stores which alarms were raised and which have ended, and queues the messages about that, in one transaction."""

        def work(connection: sa.Connection) -> None:
            for alarm in ended:
                same = (_review_alarms.c.case_id == alarm.case_id) & (_review_alarms.c.since_ms == alarm.since_ms)
                connection.execute(sa.delete(_review_alarms).where(same))
            if raised:
                connection.execute(sa.insert(_review_alarms), [asdict(alarm) for alarm in raised])
            for message in messages:
                mine = _review_deliveries.c.receiver == message.receiver
                last = connection.scalar(sa.select(sa.func.max(_review_deliveries.c.sequence)).where(mine)) or 0
                delivery = Delivery(**message._asdict(), sequence=last + 1)
                connection.execute(sa.insert(_review_deliveries).values(asdict(delivery)))

        await self._database.visit(work)

    async def steps_of(self, receiver: str, incident_id: str) -> list[bytes]:
        """Returns the steps of an incident that were queued for a receiver, in their order."""
        query = (
            sa.select(_deliveries.c.step)
            .where(_deliveries.c.receiver == receiver, _deliveries.c.incident_id == incident_id)
            .order_by(_deliveries.c.sequence)
        )
        return list(await self._database.visit(lambda connection: connection.scalars(query).all()))

    async def used(self, nonce: str) -> LinkAnswer | None:
        """Returns the answer to the first use of a link; None if it wasn't used."""
        query = sa.select(_links_used.c.status, _links_used.c.answer.label("text")).where(_links_used.c.nonce == nonce)
        row = await self._database.visit(lambda connection: connection.execute(query).first())
        return LinkAnswer(**row._mapping) if row else None

    async def use(self, nonce: str, answer: LinkAnswer) -> None:
        """Stores the answer to the first use of a link. A second use changes nothing."""
        statement = insert(_links_used).values(nonce=nonce, status=answer.status, answer=answer.text)
        await self._database.visit(lambda connection: connection.execute(statement.on_conflict_do_nothing()))

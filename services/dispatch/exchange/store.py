"""Database of a leg's exchange: the queue of deliveries for each receiver, and the used links.

The database is a separate file from the leg's database, so that the exchange never holds the lock that an offer needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from services.common.storage.db import Database

metadata = sa.MetaData()

_deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("receiver", sa.String, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("delivery_id", sa.String, nullable=False, unique=True),
    sa.Column("incident_id", sa.String, nullable=False),
    sa.Column("step", sa.LargeBinary, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("content_type", sa.String, nullable=False),
    sa.Column("deadline_ms", sa.BigInteger, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("outcome", sa.String, nullable=False),
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

WAITING, DELIVERED, GIVEN_UP = "", "delivered", "given up"
"""Outcomes of a delivery: still queued, accepted by the receiver, or given up after its deadline."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook message to one receiver, for one step."""

    receiver: str
    sequence: int
    """Sequence of the leg's step. A receiver gets messages in this order."""
    delivery_id: str
    incident_id: str
    step: bytes
    """Serialised tandem.dispatch.v1.Step; later messages of the incident refer to it."""
    body: bytes
    content_type: str
    deadline_ms: int
    """Deadline for retries, wall clock, milliseconds since 1970 UTC."""
    tries: int = 0
    outcome: str = WAITING


@dataclass(frozen=True, slots=True)
class LinkAnswer:
    """HTTP answer to the use of a link."""

    status: int
    text: str


class ExchangeStore:
    """SQL of one leg's exchange. All methods raise Unavailable if the database refuses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def queued_up_to(self, receiver: str) -> int | None:
        """Returns the sequence of the last step that was queued for a receiver; None for a new receiver."""
        query = sa.select(_queued_up_to.c.sequence).where(_queued_up_to.c.receiver == receiver)
        sequence: int | None = await self._database.visit(lambda connection: connection.scalar(query))
        return sequence

    async def queue(self, receiver: str, sequence: int, deliveries: Sequence[Delivery]) -> None:
        """Queues messages for a receiver. `sequence` is the last step that was considered, even if it got no message."""
        upsert = insert(_queued_up_to).values(receiver=receiver, sequence=sequence)
        upsert = upsert.on_conflict_do_update(index_elements=["receiver"], set_={"sequence": sequence})

        def work(connection: sa.Connection) -> None:
            if deliveries:
                connection.execute(sa.insert(_deliveries), [asdict(delivery) for delivery in deliveries])
            connection.execute(upsert)

        await self._database.visit(work)

    async def waiting(self, receiver: str) -> Delivery | None:
        """Returns the next message for a receiver; None if none waits."""
        query = (
            sa.select(_deliveries)
            .where(_deliveries.c.receiver == receiver, sa.text("outcome = ''"))
            .order_by(_deliveries.c.sequence)
            .limit(1)
        )
        row = await self._database.visit(lambda connection: connection.execute(query).first())
        return Delivery(**row._mapping) if row else None

    async def steps_of(self, receiver: str, incident_id: str) -> list[bytes]:
        """Returns the steps of an incident that were queued for a receiver, in their order."""
        query = (
            sa.select(_deliveries.c.step)
            .where(_deliveries.c.receiver == receiver, _deliveries.c.incident_id == incident_id)
            .order_by(_deliveries.c.sequence)
        )
        return list(await self._database.visit(lambda connection: connection.scalars(query).all()))

    async def count_waiting(self, receiver: str) -> int:
        """Returns the number of messages that wait for a receiver."""
        query = sa.select(sa.func.count()).where(_deliveries.c.receiver == receiver, sa.text("outcome = ''"))
        count: int | None = await self._database.visit(lambda connection: connection.scalar(query))
        return count or 0

    async def tried(self, delivery: Delivery, outcome: str) -> None:
        """Stores the outcome of an attempt to deliver a message."""
        this = (_deliveries.c.receiver == delivery.receiver) & (_deliveries.c.sequence == delivery.sequence)
        update = sa.update(_deliveries).where(this).values(tries=delivery.tries + 1, outcome=outcome)
        await self._database.visit(lambda connection: connection.execute(update))

    async def used(self, nonce: str) -> LinkAnswer | None:
        """Returns the answer to the first use of a link; None if it wasn't used."""
        query = sa.select(_links_used.c.status, _links_used.c.answer.label("text")).where(_links_used.c.nonce == nonce)
        row = await self._database.visit(lambda connection: connection.execute(query).first())
        return LinkAnswer(**row._mapping) if row else None

    async def use(self, nonce: str, answer: LinkAnswer) -> None:
        """Stores the answer to the first use of a link. A second use changes nothing."""
        statement = insert(_links_used).values(nonce=nonce, status=answer.status, answer=answer.text)
        await self._database.visit(lambda connection: connection.execute(statement.on_conflict_do_nothing()))

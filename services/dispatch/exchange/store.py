"""The database of a leg's exchange: what is to be delivered, in order for each receiver. A file of its own, so that nothing here
ever holds the lock that an offer needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import OperationalError

from services.common.rpc.errors import Unavailable
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
_handed = sa.Table(
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
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one receiver."""

    receiver: str
    sequence: int
    """Of the leg's step; a receiver gets its messages in this order."""
    delivery_id: str
    incident_id: str
    step: bytes
    """tandem.dispatch.v1.Step, serialised: later messages of the incident refer to it."""
    body: bytes
    content_type: str
    deadline_ms: int
    """Wall clock, milliseconds since 1970 UTC."""
    tries: int = 0
    outcome: str = WAITING


@dataclass(frozen=True, slots=True)
class LinkAnswer:
    """What the use of a link was answered."""

    status: int
    text: str


class ExchangeStore:
    """SQL of one leg's exchange."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _do(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._database.visit(work)
        except OperationalError as error:
            raise Unavailable("the exchange's store doesn't answer") from error

    async def handed(self, receiver: str) -> int | None:
        """The last step that was handed over for a receiver; None where it is a new one."""
        query = sa.select(_handed.c.sequence).where(_handed.c.receiver == receiver)
        found: int | None = await self._do(lambda connection: connection.scalar(query))
        return found

    async def hand(self, receiver: str, sequence: int, deliveries: Sequence[Delivery]) -> None:
        """Takes messages over, and with them how far the steps have been."""
        upsert = insert(_handed).values(receiver=receiver, sequence=sequence)
        upsert = upsert.on_conflict_do_update(index_elements=["receiver"], set_={"sequence": sequence})

        def work(connection: sa.Connection) -> None:
            if deliveries:
                connection.execute(sa.insert(_deliveries), [asdict(delivery) for delivery in deliveries])
            connection.execute(upsert)

        await self._do(work)

    async def waiting(self, receiver: str) -> Delivery | None:
        """The message that a receiver gets next."""
        query = (
            sa.select(_deliveries)
            .where(_deliveries.c.receiver == receiver, sa.text("outcome = ''"))
            .order_by(_deliveries.c.sequence)
            .limit(1)
        )
        row = await self._do(lambda connection: connection.execute(query).first())
        return Delivery(**row._mapping) if row else None

    async def steps_of(self, receiver: str, incident_id: str) -> list[bytes]:
        """The steps of an incident that were handed over for a receiver, in their order."""
        query = (
            sa.select(_deliveries.c.step)
            .where(_deliveries.c.receiver == receiver, _deliveries.c.incident_id == incident_id)
            .order_by(_deliveries.c.sequence)
        )
        return list(await self._do(lambda connection: connection.scalars(query).all()))

    async def count_waiting(self, receiver: str) -> int:
        """How many messages wait for a receiver."""
        query = sa.select(sa.func.count()).where(_deliveries.c.receiver == receiver, sa.text("outcome = ''"))
        found: int | None = await self._do(lambda connection: connection.scalar(query))
        return found or 0

    async def tried(self, delivery: Delivery, outcome: str) -> None:
        """Notes a try, and what came of it."""
        this = (_deliveries.c.receiver == delivery.receiver) & (_deliveries.c.sequence == delivery.sequence)
        update = sa.update(_deliveries).where(this).values(tries=delivery.tries + 1, outcome=outcome)
        await self._do(lambda connection: connection.execute(update))

    async def used(self, nonce: str) -> LinkAnswer | None:
        """What the first use of a link was answered; None where it wasn't used."""
        query = sa.select(_links_used.c.status, _links_used.c.answer).where(_links_used.c.nonce == nonce)
        row = await self._do(lambda connection: connection.execute(query).first())
        return LinkAnswer(*row) if row else None

    async def use(self, nonce: str, answer: LinkAnswer) -> None:
        """Notes the first use of a link; a second one changes nothing."""
        made = insert(_links_used).values(nonce=nonce, status=answer.status, answer=answer.text)
        await self._do(lambda connection: connection.execute(made.on_conflict_do_nothing()))

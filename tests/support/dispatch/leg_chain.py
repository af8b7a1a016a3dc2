"""Verification of the chain of events in a leg's database."""

from __future__ import annotations

import sqlalchemy as sa

from services.dispatch.handover.api import duty_records
from services.dispatch.leg import chain, tables
from services.dispatch.leg.chain import ChainedEvent, ChainHead
from services.dispatch.leg.store import Store


async def first_broken_event(store: Store) -> int | None:
    """Id of the first event that breaks the chain, because an event was changed, added or removed; None where all verify."""

    def read(connection: sa.Connection) -> list[ChainedEvent]:
        return [
            ChainedEvent._make(row) for row in connection.execute(sa.select(tables.events).order_by(tables.events.c.id))
        ]

    return chain.first_broken(ChainHead(), await store.transaction(read))[1]


def first_broken_record(connection: sa.Connection) -> int | None:
    """Id of the first record of the shifts that breaks their chain; None where all verify."""
    rows = connection.execute(sa.select(duty_records).order_by(duty_records.c.id))
    return chain.first_broken(ChainHead(), (ChainedEvent._make(row) for row in rows))[1]

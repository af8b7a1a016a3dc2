"""Stores the states of protected persons' phones in the police leg's database, and reads incidents for their summaries."""

from __future__ import annotations

from dataclasses import astuple
from functools import partial
from typing import Any

import sqlalchemy as sa

from services.common.storage.rows import RowTarget, write
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import metadata
from services.dispatch.phones import domain
from services.dispatch.phones.domain import PhoneLocation, PhoneScreen, PhoneState, PoliceSummary

KEPT_MS = 30 * 86_400_000
"""Time for which a state is kept after it began, milliseconds of mesh time: a phone that isn't used any more isn't watched any more."""
_states = sa.Table(
    "phone_states",
    metadata,
    sa.Column("device_id", sa.String, primary_key=True),
    sa.Column("location", sa.Integer, nullable=False),
    sa.Column("location_ms", sa.BigInteger, nullable=False),
    sa.Column("screen", sa.Integer, nullable=False),
    sa.Column("screen_ms", sa.BigInteger, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
)
_INTO = (RowTarget(_states, ("location", "location_ms", "screen", "screen_ms", "at_ms"), newer="at_ms"),)


class PhoneStore:
    """The states of phones, and the summaries of incidents. All methods raise Unavailable if the database refuses."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def report(
        self, device_id: str, location: PhoneLocation, screen: PhoneScreen, *, at_ms: int, now_ms: int
    ) -> None:
        """Stores what a phone says, and deletes states that began long ago."""

        def work(connection: sa.Connection) -> None:
            row = connection.execute(sa.select(_states).where(_states.c.device_id == device_id)).first()
            new = (
                domain.after(_state(row), location, screen, at_ms=at_ms)
                if row
                else domain.first(device_id, location, screen, at_ms=at_ms)
            )
            connection.execute(sa.delete(_states).where(_states.c.at_ms < now_ms - KEPT_MS))
            values = (int(value) if isinstance(value, int) else value for value in astuple(new))
            write(connection, _INTO, ([tuple(values)],))

        await self._store.transaction(work)

    async def states(self, device_id: str, limit: int, *, after: str, now_ms: int) -> list[PhoneState]:
        """Up to `limit` states by device id, those of ids greater than `after`; with `device_id` that one alone."""
        query = sa.select(_states).where(_states.c.at_ms >= now_ms - KEPT_MS)
        query = query.where(_states.c.device_id == device_id if device_id else _states.c.device_id > after)
        query = query.order_by(_states.c.device_id).limit(limit)
        return await self._store.reading_history(lambda connection: [_state(row) for row in connection.execute(query)])

    async def summary(self, incident_id: str, *, person_id: str, order_id: str) -> PoliceSummary | None:
        """The summary of an incident for a person; None if she gets none."""
        read = partial(self._store.events, incident_ids=[incident_id])
        events = (await self._store.reading_history(read)).get(incident_id, [])
        return domain.summary(incident_id, events, person_id=person_id, order_id=order_id)


def _state(row: sa.Row[*tuple[Any, ...]]) -> PhoneState:
    device_id, location, location_ms, screen, screen_ms, at_ms = row
    return PhoneState(
        device_id,
        PhoneLocation(location),
        location_ms,
        screen=PhoneScreen(screen),
        screen_ms=screen_ms,
        at_ms=at_ms,
    )

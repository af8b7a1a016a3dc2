"""The last sent route of each device."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa

from services.registry.repository import Repository
from services.registry.routes.domain import StoredRoute
from services.registry.routes.tables import routes


class RouteRepository(Repository):
    """The routes of the devices as one transaction sees them."""

    async def of(self, device_ids: Collection[str]) -> dict[str, StoredRoute]:
        """The last sent routes of these devices, by device id. Devices without a route are omitted."""
        if not device_ids:
            return {}
        rows = await self._rows(sa.select(routes).where(routes.c.device_id.in_(device_ids)))
        return {row.device_id: StoredRoute(row.version, row.route) for row in rows}

    async def put(self, sent: Mapping[str, StoredRoute], day: int) -> None:
        """Store the last sent routes by device id, and the day of mesh time on which they were sent."""
        rows = ({"device_id": id_, "version": last.version, "route": last.route} for id_, last in sent.items())
        await self._upsert(routes, [{**row, "sent_day": day} for row in rows])

    async def not_sent_on(self, day: int, limit: int) -> list[str]:
        """Ids of devices whose route wasn't sent on this day of mesh time."""
        statement = sa.select(routes.c.device_id).where(routes.c.sent_day < day).limit(limit)
        return [row.device_id for row in await self._rows(statement)]

    async def mark_unsent(self) -> None:
        """Mark all routes as not sent, so that the renewal sends them."""
        await self._connection.execute(sa.update(routes).values(sent_day=0))

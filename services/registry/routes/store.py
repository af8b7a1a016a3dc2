"""The days on which the routes of the devices were sent."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.repository import Repository
from services.registry.routes.tables import routes


class RouteRepository(Repository):
    """The routes of the devices as one transaction sees them."""

    async def not_sent_on(self, day: int, limit: int) -> list[str]:
        """Ids of devices whose route wasn't sent on this day of mesh time."""
        statement = sa.select(routes.c.device_id).where(routes.c.sent_day < day).limit(limit)
        return [row.device_id for row in await self._rows(statement)]

    async def mark_unsent(self) -> None:
        """Mark all routes as not sent, so that the renewal sends them."""
        await self._connection.execute(sa.update(routes).values(sent_day=0))

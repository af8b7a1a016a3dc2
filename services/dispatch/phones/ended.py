"""Incidents whose end a protected person's phone was notified of, in the warning leg's database."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.storage.db import Database
from services.common.storage.statements import Prepared
from services.dispatch.warning.domain import ChannelId, ChannelKind, Notice
from services.dispatch.warning.store import fetch_rows
from services.dispatch.warning.tables import messages, sendings

MAX_ENDED = 5
"""Maximum number of incidents of a device."""
ENDED_MS = 86_400_000
"""Time after its end for which an incident is listed, milliseconds of mesh time."""


class NotifiedIncident(NamedTuple):
    """An incident of which a person was notified, and whose end she was notified of."""

    incident_id: str
    order_id: str
    person_id: str


class EndedIncidents:
    """Reads the incidents that are over for a device. Raises Unavailable if the database refuses."""

    def __init__(self, database: Database, clock: MeshClock) -> None:
        self._database, self._clock = database, clock

    async def of_device(self, device_id: str) -> list[NotifiedIncident]:
        """The live incidents whose end a device was notified of in the last ENDED_MS, the newest first, at most MAX_ENDED."""
        values = {
            "way": str(ChannelId(ChannelKind.DEVICE, device_id)),
            "after_ms": self._clock.now_ms() - ENDED_MS,
        }
        rows = await fetch_rows(self._database, _ENDED, values)
        return list(dict.fromkeys(map(NotifiedIncident._make, rows)))


_ENDED = Prepared(
    sa.select(messages.c.incident_id, messages.c.order_id, messages.c.person_id)
    .select_from(messages.join(sendings, sendings.c.message_id == messages.c.message_id))
    .where(
        sendings.c.way == sa.bindparam("way"),
        sendings.c.expires_ms > sa.bindparam("after_ms"),
        messages.c.due_ms > sa.bindparam("after_ms"),
        messages.c.notice.in_((Notice.OVER.value, Notice.ONE_OVER.value)),
        messages.c.ground == "",
        messages.c.incident_id != "",
        sa.not_(messages.c.drill),
    )
    .order_by(messages.c.due_ms.desc())
    .limit(MAX_ENDED)
)

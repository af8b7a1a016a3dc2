"""Changes of a leg's incidents since a reader last asked. So a reader works for each change, and not for each open incident."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

from services.dispatch.domain.incident import Incident


class Changes(NamedTuple):
    """Changes since the reader last asked."""

    incidents: dict[str, Incident]
    """Changed incidents by id, each as it is now. At first, all open incidents."""
    units: set[str]
    """Units that reported, or whose registration changed."""


class ChangedIncidents:
    """Changes for one reader. Only the newest state of each incident is kept."""

    def __init__(self) -> None:
        self._changes = Changes({}, set())
        self._event = asyncio.Event()

    def put(self, incidents: Iterable[Incident], units: Iterable[str] = ()) -> None:
        """Notes changes."""
        self._changes.incidents.update((incident.incident_id, incident) for incident in incidents)
        self._changes.units.update(units)
        if self._changes.incidents or self._changes.units:
            self._event.set()

    def reset(self, incidents: Iterable[Incident]) -> None:
        """Replaces the noted incidents by all that were read later."""
        self._changes.incidents.clear()
        self.put(incidents)

    async def next(self) -> Changes:
        """Returns the changes, once there are any."""
        await self._event.wait()
        self._event.clear()
        changes, self._changes = self._changes, Changes({}, set())
        return changes


class ChangeReaders:
    """The readers of one record's changes."""

    def __init__(self) -> None:
        self._readers: list[ChangedIncidents] = []

    @asynccontextmanager
    async def reading(
        self, open_incidents: Callable[[], Awaitable[Iterable[Incident]]]
    ) -> AsyncIterator[ChangedIncidents]:
        """A reader that gets the result of `open_incidents`, and then each change."""
        reader = ChangedIncidents()
        # First the reader, so that no change between the two is missed.
        self._readers.append(reader)
        try:
            reader.reset(await open_incidents())
            yield reader
        finally:
            self._readers.remove(reader)

    def notify(self, incidents: Iterable[Incident], units: Iterable[str]) -> None:
        """Tells all readers of changes."""
        if self._readers:
            incidents, units = list(incidents), list(units)
            for reader in self._readers:
                reader.put(incidents, units)

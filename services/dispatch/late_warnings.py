"""Opens the warnings of a leg beside its offers. Their database may be damaged, or its disk full, while the leg's own database works.

Until then the leg isn't ready. It offers and escalates as ever, and flags each person whom it can't warn, so that the police know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.common.retrying import retried
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import Exercise, WarningFlag
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.incident import Incident
from services.dispatch.leg.service import LegService
from services.dispatch.warning.service import Warnings


class LateWarnings:
    """The warnings of a leg, which may be opened long after the leg."""

    def __init__(self, leg: LegService, database: Path) -> None:
        self._leg, self._database = leg, database
        self._opened: asyncio.Future[Warnings] = asyncio.get_running_loop().create_future()

    def unable(self) -> str:
        """Reason why nobody is warned; empty if the warnings work."""
        if not self._opened.done():
            return f"nobody is warned: {self._database} isn't open"
        return self._opened.result().streams.alerts.unable()

    async def run(self, opening: AbstractAsyncContextManager[Warnings], connected: Callable[[Warnings], None]) -> None:
        """Opens the warnings and runs them until cancelled. Calls `connected` once they are open."""
        async with asyncio.TaskGroup() as tasks:
            flagging = tasks.create_task(self._flag_unwarned())
            async with opening as warnings:
                flagging.cancel()
                # A receipt of hers must take back the flags of this process, and of one that ended before the database was mended.
                warnings.updates.flagged_before.update(flagged(await retried(self._leg.record.open_incidents)))
                connected(warnings)
                self._opened.set_result(warnings)
                await warnings.run()

    async def follow(self, bus: Bus, log_meta: LogMetadata) -> None:
        """Reads the streams of the warnings until cancelled, once they are open."""
        warnings = await asyncio.shield(self._opened)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(warnings.streams.follow(bus, log_meta))
            tasks.create_task(warnings.devices.keep_restored(bus))

    async def _flag_unwarned(self) -> None:
        """Flags the persons whose warning nobody has acknowledged in time, until cancelled. The police's desk is notified of them."""
        async with self._leg.record.changes() as changes:
            while True:
                for incident in (await changes.next()).incidents.values():
                    for flag in unwarned(incident):
                        await retried(partial(self._leg.flag, incident.incident_id, flag))


def flagged(incidents: Iterable[Incident]) -> Iterator[str]:
    """Assignments of incidents whose person has the flag that nobody could warn her."""
    for incident in incidents:
        for assignment in incident.assignments.values():
            if assignment.flag and assignment.flag.flag is WarningFlag.NO_CONTACT:
                yield assignment.assignment_id


def unwarned(incident: Incident) -> Iterator[Flag]:
    """A flag for each person of an incident whose warning was escalated and who has no flag yet. The watch follows its own canaries."""
    if incident.exercise is Exercise.CANARY:
        return
    for assignment in incident.assignments.values():
        demanding = incident.asked.get(assignment.assignment_id)
        if demanding and assignment.state is AssignmentState.ESCALATED and assignment.flag is None:
            alert = demanding.last
            yield Flag(
                subject_id=assignment.subject_id,
                flag=WarningFlag.NO_CONTACT,
                alert_id=alert.alert_id,
                place=alert.place,
                order_id=alert.order_id,
            )

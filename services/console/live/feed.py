"""Live page of one role: kept current from the mesh, and sent to its browsers as changes.

Each shown item has the number of its last change. A browser that reconnects with the number of its last message gets the later
changes. A browser with an unknown number, or one that was away too long, gets everything.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from typing import Any

from services.console.domain import match_reviews, units
from services.console.domain.live_page import Item, LivePage
from services.console.domain.match_reviews import ReviewBadge
from services.console.domain.people import DESKS, VIEWERS, Role
from services.console.domain.units import UnitTask
from services.console.live.sources import (
    DeviceNotices,
    IncidentReader,
    OfferReceipts,
    ReviewReader,
    Sources,
    TargetReader,
    UnitReader,
    Viewers,
    follow_alerts,
    next_set,
)
from services.console.mesh import MeshClient

URGENT_INTERVAL_S = 0.05
"""Minimum interval between two messages to a browser with changed incidents or alerts, in s."""
NOTIFY_INTERVAL_S = 0.5
"""Minimum interval between two messages to a browser, in s, if only positions or units changed."""
BAR_INTERVAL_S = 0.25
"""Minimum interval between two messages to the bar of a page, in s."""
BEAT_S = 5.0
"""Maximum interval between two messages to a browser, in s, so that the browser sees that the connection works."""
INCIDENTS = "incidents"
STEPS = "steps"
ALERTS = "alerts"
REVIEWS = "reviews"
SOURCES = {INCIDENTS: VIEWERS, STEPS: DESKS, ALERTS: VIEWERS - {Role.PROBATION}, REVIEWS: DESKS}
"""For each source, the roles whose page uses it."""


class Feed:
    """Live page of one role: its readers, and its browsers."""

    def __init__(self, mesh: MeshClient, role: Role) -> None:
        self._clock, self._leg = mesh.clock, role.leg
        self._wake, self._wake_urgent = asyncio.Event(), asyncio.Event()
        own_leg = role.leg if role in DESKS else ""
        self._page = LivePage(self._wake.set, self._wake_urgent.set, own_leg=own_leg)
        self._viewers, self._bar_viewers = Viewers(), Viewers()
        """The browsers that view the live page, and those that view the bar of another page."""
        self._boot = secrets.token_hex(4)
        names = [name for name, roles in SOURCES.items() if role in roles]
        self._sources = Sources(role, names, self._page.count_change)
        incidents = IncidentReader(
            mesh, role, self._page, viewers=self._viewers, connected=partial(self._sources.connected, INCIDENTS)
        )
        self._reviews = ReviewReader(
            mesh, role, self._page, viewers=self._viewers, connected=partial(self._sources.connected, REVIEWS)
        )
        read: Mapping[str, Callable[[], Awaitable[None]]] = {
            INCIDENTS: incidents.poll,
            STEPS: incidents.follow,
            ALERTS: partial(follow_alerts, mesh, role, self._page),
            REVIEWS: self._reviews.poll,
        }
        self._work: list[Callable[[], Coroutine[Any, Any, None]]] = [
            partial(self._sources.keep_running, name, read[name]) for name in names
        ]
        self._devices = DeviceNotices(mesh, role, self._page) if role in DESKS else None
        if self._devices:
            self._work += [
                incidents.group,
                TargetReader(mesh, role, self._page, viewers=self._viewers).run,
                OfferReceipts(mesh, role, self._page, viewers=(self._viewers, self._bar_viewers)).run,
                UnitReader(mesh, role, self._page, viewers=self._viewers).run,
                self._devices.run,
            ]

    async def run(self) -> None:
        """Keeps the page current until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for work in self._work:
                tasks.create_task(work())

    def unable(self) -> str:
        """Returns the sources without which the page has no news, if they couldn't be read for a while, or an empty text."""
        return self._sources.unable(without=(REVIEWS,))

    def degraded(self) -> str:
        """Returns all sources that couldn't be read for a while, or an empty text."""
        return self._sources.unable()

    def alerts(self) -> list[Item]:
        """Returns the kept alerts, newest first."""
        return self._page.alerts()

    def around(self, incident_id: str) -> dict[str, Any]:
        """Returns the tracks of an incident's targets, and the rings that its alerts name."""
        return {"tracks": self._page.tracks(incident_id), "rings": self._page.rings(incident_id)}

    def unit_tasks(self) -> Mapping[str, UnitTask]:
        """Returns what each unit of the role's leg is asked to do or does, by unit id."""
        return units.tasks(self._page.assignments_of(self._leg))

    def badge(self) -> ReviewBadge | None:
        """Returns the match reviews that wait for a person; None if they are unknown, or if the role decides none."""
        waiting = self._reviews.waiting
        return None if waiting is None else match_reviews.badge(waiting, self._clock.now_ms())

    def viewed(self) -> AbstractContextManager[None]:
        """Counts a browser that views the page."""
        return self._viewers.viewing()

    def bar_viewed(self) -> AbstractContextManager[None]:
        """Counts a browser that views the bar of another page. No position is shared for it."""
        return self._bar_viewers.viewing()

    def bar(self) -> dict[str, Any]:
        """Returns what the bar of every page shows: the numbers of incidents, the most urgent one, and those with a sound."""
        return {**self._page.overview(), **self._beat()}

    async def bars(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the bar after each change of an incident, and at intervals, until cancelled."""
        while True:
            seen = self._page.urgent_number
            yield self.bar()
            await asyncio.sleep(BAR_INTERVAL_S)
            if self._page.urgent_number == seen:
                await next_set(self._wake_urgent, BEAT_S - BAR_INTERVAL_S)

    async def changes(self, last_event_id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yields the changes since a message, each with its message id, until cancelled.

        A changed incident or a new alert doesn't wait for the interval of positions.
        """
        boot, _, number = last_event_id.partition("-")
        seen = int(number) if boot == self._boot and re.fullmatch(r"[0-9]{1,18}", number) else None
        while True:
            upto = self._page.number
            is_urgent = seen is None or self._page.urgent_number > seen
            yield f"{self._boot}-{upto}", self._message(seen)
            seen = upto
            waited_s = URGENT_INTERVAL_S if is_urgent else 0.0
            await asyncio.sleep(waited_s)
            if self._page.urgent_number <= seen:
                await next_set(self._wake_urgent, NOTIFY_INTERVAL_S - waited_s)
            if self._page.number == seen:
                await next_set(self._wake, BEAT_S - NOTIFY_INTERVAL_S)

    def _message(self, seen: int | None) -> dict[str, Any]:
        waiting = self._reviews.waiting
        of_desk = {"devices": self._devices.count} if self._devices else {}
        return {
            **self._page.since(seen),
            **of_desk,
            "reviews": None if waiting is None else asdict(waiting),
            **self._beat(),
        }

    def _beat(self) -> dict[str, Any]:
        return {"now": self._clock.now_ms(), "rate": self._clock.rate, "away": self._sources.away()}

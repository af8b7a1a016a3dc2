"""Content of the live page of one role: kept current from the mesh, and sent to its browsers as changes.

Each shown item has the number of its last change. A browser that reconnects with the number of its last message gets the later
changes. A browser with an unknown number, or one that was away too long, gets everything.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import grpc.aio

from services.common.observability.telemetry import logger
from services.console import translate
from services.console.domain import board, units
from services.console.domain.board import IncidentCard
from services.console.domain.people import DESKS, SELF, ConsoleUser, Role
from services.console.live.units import Units
from services.console.mesh import MeshClient
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tandem.geofence.v1 import geofence_pb2

NOTIFY_INTERVAL_S = 0.5
"""Minimum interval between two messages to a browser, in s."""
BEAT_S = 5.0
"""Maximum interval between two messages to a browser, in s, so that it sees that the connection works."""
MAX_SHOWN = 1_000
"""Number of kept incidents, the newest. Open incidents are always kept."""
MAX_ALERTS = 200
RETRY_DELAY_S = 0.5
CONNECTED_AFTER_S = 1.0
LISTS_INTERVAL_S = 10.0
"""Interval at which a desk's list is read in addition to its stream of steps, in s."""
CHECK_INTERVAL_S = 2.0
"""Interval at which the list is read while a reviewer views the page, in s: reviewers have no stream of steps."""
MAX_FOLLOWED = 200
"""Number of open incidents whose targets are followed, the most urgent."""
DEADLINE_S = 5.0
UNABLE_AFTER_S = 10.0
MAX_GONE = 2_000
"""Number of removed items that are remembered for browsers that reconnect."""


class Feed:
    """Live page of one role: its incidents, targets, units and alerts, with the numbers of their changes."""

    def __init__(self, mesh: MeshClient, role: Role) -> None:
        self._mesh, self._role = mesh, role
        self._leg_name = ConsoleUser(role, SELF).leg
        self._leg = mesh.legs[self._leg_name]
        self._incidents: dict[str, IncidentCard] = {}
        self._incidents_shown: dict[str, dict[str, Any]] = {}
        """Incidents by id, as the browser gets them."""
        self._groups: dict[str, str] = {}
        """Group of each grouped incident, by incident id."""
        self._regroup = asyncio.Event()
        self._changed_at: dict[tuple[str, str], int] = {}
        """Number of the last change, by sort and id."""
        self._gone: deque[tuple[str, str]] = deque()
        self._forgotten = 0
        """Number of the last removal that isn't remembered any more."""
        self._targets: dict[str, dict[str, Any]] = {}
        self._units = Units(mesh, role)
        self._shown = {"incident": self._incidents_shown, "target": self._targets, "unit": self._units.shown}
        """Items shown now, by sort and id."""
        self._alerts: deque[tuple[int, dict[str, Any]]] = deque(maxlen=MAX_ALERTS)
        self._away: dict[str, str] = dict.fromkeys(self._sources(), "STARTING")
        """Reason why each source isn't connected; empty for a connected source."""
        self._away_since_s = dict.fromkeys(self._away, time.monotonic())
        self._number = 0
        self._boot = secrets.token_hex(4)
        self._wake = asyncio.Event()
        self._viewers = 0
        self._viewed = asyncio.Event()

    # ── from the mesh ────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Keeps the page current until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for what, work in self._sources().items():
                tasks.create_task(self._keep_running(what, work))
            if self._role in DESKS:
                tasks.create_task(self._group())
                tasks.create_task(self._follow_targets())
                tasks.create_task(self._receive_offers())
                tasks.create_task(
                    self._units.run(lambda: bool(self._viewers), self._states, partial(self._change, "unit"))
                )

    def _sources(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Returns the sources of this role's page by name, each with the coroutine that reads it."""
        sources: dict[str, Callable[[], Awaitable[None]]] = {"incidents": self._poll}
        if self._role in DESKS:
            sources["steps"] = self._follow
        if self._role is not Role.PROBATION:
            sources["alerts"] = self._follow_alerts
        return sources

    async def _keep_running(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Restarts a source whenever it ends. A silent stream counts as connected after CONNECTED_AFTER_S."""
        while True:
            reason = "ended"
            connected_timer = asyncio.get_running_loop().call_later(CONNECTED_AFTER_S, self._connected, what)
            try:
                await work()
            except grpc.aio.AioRpcError as error:
                reason = error.code().name
            connected_timer.cancel()
            self._connected(what, reason)
            await asyncio.sleep(RETRY_DELAY_S)

    def unable(self) -> str:
        """Returns the sources that couldn't be read for UNABLE_AFTER_S, or an empty text."""
        long_before_s = time.monotonic() - UNABLE_AFTER_S
        away = [what for what, reason in self._away.items() if reason and self._away_since_s[what] < long_before_s]
        return f"{', '.join(away)} can't be read" if away else ""

    def _connected(self, what: str, reason: str = "") -> None:
        if self._away[what] != reason:
            logger().info("feed", role=self._role.value, what=what, away=reason)
            if not self._away[what]:
                self._away_since_s[what] = time.monotonic()
            self._away[what] = reason
            self._number += 1
            self._wake.set()

    async def _follow(self) -> None:
        identity = self._mesh.own(self._role)
        request = dispatch_pb2.SubscribeRequest(others=True, new_only=True)
        steps = self._leg.dispatch.Subscribe(request, metadata=identity)
        try:
            async for message in steps:
                own = message.HasField("step")
                await self._apply(message.step.assignment if own else message.other)
                is_new = own and self._role is Role.PROBATION and message.sequence
                if is_new and (notice := translate.notice(message.step)):
                    self._add_alert(notice)
        finally:
            steps.cancel()

    async def _poll(self) -> None:
        """Reads the list of incidents: a reviewer's only source, and for a desk the steps that its stream may have missed."""
        began_s = asyncio.get_running_loop().time()
        while True:
            await self._read_all()
            self._connected("incidents")
            is_new = asyncio.get_running_loop().time() - began_s < LISTS_INTERVAL_S
            if self._role in DESKS:
                await asyncio.sleep(CHECK_INTERVAL_S if is_new else LISTS_INTERVAL_S)
            else:
                await _next(self._viewed, CHECK_INTERVAL_S if is_new or self._viewers else LISTS_INTERVAL_S)

    async def _read_all(self) -> None:
        request = dispatch_pb2.ListIncidentsRequest(page_size=MAX_SHOWN)
        answer = await self._list(request)
        listed = {incident.incident_id: translate.incident(incident) for incident in answer.incidents}
        for id_ in [id_ for id_ in self._incidents if id_ not in listed]:
            self._drop(id_)
        self._incidents = listed
        self._update_groups()
        for id_ in self._incidents:
            self._update(id_)

    async def _read_one(self, incident_id: str) -> None:
        answer = await self._list(dispatch_pb2.ListIncidentsRequest(incident_id=incident_id))
        for incident in answer.incidents:
            self._incidents[incident.incident_id] = translate.incident(incident)
            self._update(incident.incident_id)
        self._regroup.set()

    async def _list(self, request: dispatch_pb2.ListIncidentsRequest) -> dispatch_pb2.ListIncidentsResponse:
        return await self._leg.dispatch.ListIncidents(request, metadata=self._mesh.own(self._role), timeout=DEADLINE_S)

    async def _apply(self, message: dispatch_pb2.Assignment) -> None:
        changed = translate.assignment(message)
        known = self._incidents.get(changed.incident_id)
        if known is None:
            await self._read_one(changed.incident_id)
            return
        others = [old for old in known.assignments if old.assignment_id != changed.assignment_id]
        self._incidents[changed.incident_id] = replace(known, assignments=(*others, changed))
        if all(assignment.state in board.OVER for assignment in (*others, changed)):
            await self._read_one(changed.incident_id)  # the incident may have ended
        else:
            self._update(changed.incident_id)
            self._regroup.set()

    def _update(self, incident_id: str) -> None:
        now = board.shown(self._incidents[incident_id], self._groups.get(incident_id, ""))
        if self._incidents_shown.get(incident_id) != now:
            self._incidents_shown[incident_id] = now
            self._change("incident", incident_id)

    async def _group(self) -> None:
        """Regroups the incidents after steps. Grouping reads every incident, so in a flood it doesn't run at each step."""
        while True:
            await self._regroup.wait()
            await asyncio.sleep(NOTIFY_INTERVAL_S)
            self._regroup.clear()
            self._update_groups()

    def _update_groups(self) -> None:
        before, self._groups = self._groups, board.groups(list(self._incidents.values()))
        for id_ in [id_ for id_ in self._incidents if before.get(id_) != self._groups.get(id_)]:
            self._update(id_)
        over = sorted(
            (incident.opened_ms, id_) for id_, incident in self._incidents.items() if incident.ended_ms is not None
        )
        for _, id_ in over[: max(0, len(self._incidents) - MAX_SHOWN)]:
            self._drop(id_)

    def _drop(self, incident_id: str) -> None:
        self._incidents.pop(incident_id, None)
        self._incidents_shown.pop(incident_id, None)
        self._change("incident", incident_id)

    async def _follow_alerts(self) -> None:
        request = geofence_pb2.WatchAlertsRequest(new_only=True)
        alerts = self._mesh.geofence.WatchAlerts(request, metadata=self._mesh.own(self._role))
        try:
            async for message in alerts:
                if message.alert.exercise != exercise_pb2.CANARY:
                    self._add_alert(translate.alert(message))
        finally:
            alerts.cancel()

    def _add_alert(self, alert: dict[str, Any]) -> None:
        if any(known["id"] == alert["id"] for _, known in self._alerts):
            return  # several steps may carry the same notice
        self._number += 1
        self._alerts.append((self._number, alert))
        self._wake.set()

    async def _receive_offers(self) -> None:
        """Confirms to the leg that the desk's machine has each offer, once, while a browser has the live page open."""
        confirmed: dict[str, int] = {}
        while True:
            own = [to for incident in self._incidents.values() for to in incident.of(self._leg_name)]
            waiting = {to.assignment_id: to.offer_number for to in own if to.state in board.OFFERS}
            confirmed = {id_: number for id_, number in confirmed.items() if id_ in waiting}
            if self._viewers:
                for id_, number in waiting.items():
                    if confirmed.get(id_) != number and await self._receive(id_, number):
                        confirmed[id_] = number
            await asyncio.sleep(RETRY_DELAY_S)

    async def _receive(self, assignment_id: str, number: int) -> bool:
        """Confirms the receipt of an offer. Returns whether it is confirmed, or needn't be any more."""
        request = dispatch_pb2.ReceiveRequest(assignment_id=assignment_id, offer_number=number)
        try:
            await self._leg.dispatch.Receive(request, metadata=self._mesh.own(self._role), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            logger().info("offer_not_received", assignment_id=assignment_id, code=error.code().name)
            return error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)
        return True

    async def _follow_targets(self) -> None:
        """Follows the targets of the leg's incidents while a browser views the page: positions are shared only where needed."""
        following: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                wanted = self._open(following) if self._viewers else []
                for id_ in [id_ for id_ in following if id_ not in wanted]:
                    following.pop(id_).cancel()
                    self._forget_targets(id_)
                for id_ in wanted:
                    if id_ not in following:
                        following[id_] = asyncio.create_task(self._follow_one(id_))
                await _next(self._viewed, RETRY_DELAY_S)
        finally:
            for task in following.values():
                task.cancel()

    def _open(self, following: Container[str]) -> list[str]:
        """Returns the incidents to follow: the most urgent ones; among equals, those that are followed already."""
        open_ = [
            incident
            for incident in self._incidents.values()
            if incident.ended_ms is None and board.demand(incident) == "RESPOND"
        ]

        def urgency(incident_card: IncidentCard) -> tuple[int, bool, int]:
            level, due_ms, _ = board.rank(incident_card)
            return level, incident_card.incident_id not in following, due_ms

        return [incident.incident_id for incident in sorted(open_, key=urgency)[:MAX_FOLLOWED]]

    async def _follow_one(self, incident_id: str) -> None:
        while True:
            request = following_pb2.WatchTargetsRequest(incident_id=incident_id)
            targets = self._leg.following.WatchTargets(request, metadata=self._mesh.own(self._role))
            try:
                async for message in targets:
                    target = translate.target(incident_id, message)
                    if self._targets.get(target["id"]) != target:
                        self._targets[target["id"]] = target
                        self._change("target", target["id"])
            except grpc.aio.AioRpcError as error:
                logger().info("targets_not_followed", incident_id=incident_id, code=error.code().name)
            finally:
                targets.cancel()
            await asyncio.sleep(CHECK_INTERVAL_S)

    def _states(self) -> dict[str, str]:
        return units.states(to for incident in self._incidents.values() for to in incident.of(self._leg_name))

    def _forget_targets(self, incident_id: str) -> None:
        for id_ in [id_ for id_ in self._targets if id_.startswith(f"{incident_id}/")]:
            del self._targets[id_]
            self._change("target", id_)

    def _change(self, sort: str, id_: str) -> None:
        self._number += 1
        self._changed_at[sort, id_] = self._number
        if id_ not in self._shown[sort]:
            self._gone.append((sort, id_))
            if len(self._gone) > MAX_GONE:
                self._forget(self._gone.popleft())
        self._wake.set()

    def _forget(self, key: tuple[str, str]) -> None:
        sort, id_ = key
        if id_ not in self._shown[sort]:  # else the item is shown again
            self._forgotten = max(self._forgotten, self._changed_at.pop(key, 0))

    # ── to the browsers ──────────────────────────────────────────────────────────────────────────────────────────────

    def incident(self, incident_id: str) -> Mapping[str, Any] | None:
        """Returns an incident as the browser gets it; None where it isn't kept."""
        return self._incidents_shown.get(incident_id)

    def alerts(self) -> list[dict[str, Any]]:
        """Returns the kept alerts, newest first."""
        return [alert for _, alert in reversed(self._alerts)]

    @contextmanager
    def viewed(self) -> Iterator[None]:
        """Counts a browser that views the page."""
        self._viewers += 1
        self._viewed.set()
        try:
            yield
        finally:
            self._viewers -= 1

    async def changes(self, last_event_id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yields the changes since a message, each with its message id, at most every NOTIFY_INTERVAL_S, until cancelled."""
        boot, _, number = last_event_id.partition("-")
        seen = int(number) if boot == self._boot and number.isdigit() else None
        while True:
            upto = self._number
            yield f"{self._boot}-{upto}", self._message(seen)
            seen = upto
            await asyncio.sleep(NOTIFY_INTERVAL_S)
            if self._number == seen:
                await _next(self._wake, BEAT_S - NOTIFY_INTERVAL_S)

    def _message(self, seen: int | None) -> dict[str, Any]:
        if seen is not None and seen < self._forgotten:
            seen = None
        since = -1 if seen is None else seen
        changed: dict[str, list[dict[str, Any]]] = {sort: [] for sort in self._shown}
        gone: list[str] = []
        for (sort, id_), number in self._changed_at.items():
            if number > since:
                item = self._shown[sort].get(id_)
                if item is None:
                    gone.append(id_)
                else:
                    changed[sort].append(item)
        return {
            "reset": seen is None,
            "now": self._mesh.clock.now_ms(),
            "rate": self._mesh.clock.rate,
            "away": {what: reason for what, reason in self._away.items() if reason},
            "incidents": changed["incident"],
            "targets": changed["target"],
            "units": changed["unit"],
            "gone": gone if seen is not None else [],
            "alerts": [alert for number, alert in self._alerts if number > since],
        }


async def _next(event: asyncio.Event, within_s: float) -> None:
    """Returns when the event is set the next time, or after `within_s`."""
    event.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()

"""What the live page of one role is made of, kept current from the mesh, and told to its browsers in changes.

Each thing that is shown has the number of its last change. A browser that comes back with the number that it saw last gets what has
changed since; one that the process doesn't know, or that was away too long, gets everything.
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

import grpc
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
"""At most so often a browser is told, however much changes."""
BEAT_S = 5.0
"""So often at least, so that it sees that the connection stands."""
MAX_SHOWN = 1_000
"""Incidents that are kept, the newest; those that are open stay."""
MAX_ALERTS = 200
RETRY_DELAY_S = 0.5
STANDS_AFTER_S = 1.0
LISTS_INTERVAL_S = 10.0
"""How often a desk's list is read beside its stream of steps."""
CHECK_INTERVAL_S = 2.0
"""How often the list is read of a reviewer who looks, since there is no stream of steps."""
MAX_FOLLOWED = 200
"""Open incidents whose targets are followed at once, the most urgent."""
DEADLINE_S = 5.0
UNABLE_AFTER_S = 10.0
MAX_GONE = 2_000
"""Things that went whose going is remembered, for browsers that come back."""


class Feed:
    """One role's."""

    def __init__(self, mesh: MeshClient, role: Role) -> None:
        self._mesh, self._role = mesh, role
        self._leg_name = ConsoleUser(role, SELF).leg
        self._leg = mesh.legs[self._leg_name]
        self._incidents: dict[str, IncidentCard] = {}
        self._told: dict[str, dict[str, Any]] = {}
        """By incident, as the browser gets it."""
        self._groups: dict[str, str] = {}
        """By incident, the group that it is shown in."""
        self._regroup = asyncio.Event()
        self._changed_at: dict[tuple[str, str], int] = {}
        """By sort and id, the number of the last change."""
        self._gone: deque[tuple[str, str]] = deque()
        self._forgotten = 0
        """Number of the last going that isn't remembered any more."""
        self._targets: dict[str, dict[str, Any]] = {}
        self._units = Units(mesh, role)
        self._shown = {"incident": self._told, "target": self._targets, "unit": self._units.shown}
        """By sort and id, what there is now."""
        self._alerts: deque[tuple[int, dict[str, Any]]] = deque(maxlen=MAX_ALERTS)
        self._away: dict[str, str] = dict.fromkeys(self._works(), "STARTING")
        """What isn't connected, and why."""
        self._away_since_s = dict.fromkeys(self._away, time.monotonic())
        self._number = 0
        self._boot = secrets.token_hex(4)
        self._wake = asyncio.Event()
        self._viewers = 0
        self._viewed = asyncio.Event()

    # ── from the mesh ────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Works for ever."""
        async with asyncio.TaskGroup() as tasks:
            for what, work in self._works().items():
                tasks.create_task(self._kept(what, work))
            if self._role in DESKS:
                tasks.create_task(self._group())
                tasks.create_task(self._follow_targets())
                tasks.create_task(self._receive_offers())
                tasks.create_task(
                    self._units.run(lambda: bool(self._viewers), self._states, partial(self._change, "unit"))
                )

    def _works(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What the page of this role lives on, and what keeps it."""
        works: dict[str, Callable[[], Awaitable[None]]] = {"incidents": self._look}
        if self._role in DESKS:
            works["steps"] = self._follow
        if self._role is not Role.PROBATION:
            works["alerts"] = self._follow_alerts
        return works

    async def _kept(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Does the work again and again. A stream that is silent says nothing, so one that stands for a second is taken to work."""
        while True:
            reason = "ended"
            stands = asyncio.get_running_loop().call_later(STANDS_AFTER_S, self._connected, what)
            try:
                await work()
            except grpc.aio.AioRpcError as error:
                reason = error.code().name
            stands.cancel()
            self._connected(what, reason)
            await asyncio.sleep(RETRY_DELAY_S)

    def unable(self) -> str:
        """What of the page has had nothing new for 10 s because it can't be read, or nothing."""
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
                await self._take(message.step.assignment if own else message.other)
                is_new = own and self._role is Role.PROBATION and message.sequence
                if is_new and (told := translate.notice(message.step)):
                    self._add_alert(told)
        finally:
            steps.cancel()

    async def _look(self) -> None:
        """Reads the list: all that a reviewer has, and for a desk what its stream may have missed while it was opened."""
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
        found = {incident.incident_id: translate.incident(incident) for incident in answer.incidents}
        for id_ in [id_ for id_ in self._incidents if id_ not in found]:
            self._drop(id_)
        self._incidents = found
        self._tell_groups()
        for id_ in self._incidents:
            self._tell(id_)

    async def _read_one(self, incident_id: str) -> None:
        answer = await self._list(dispatch_pb2.ListIncidentsRequest(incident_id=incident_id))
        for incident in answer.incidents:
            self._incidents[incident.incident_id] = translate.incident(incident)
            self._tell(incident.incident_id)
        self._regroup.set()

    async def _list(self, request: dispatch_pb2.ListIncidentsRequest) -> dispatch_pb2.ListIncidentsResponse:
        return await self._leg.dispatch.ListIncidents(request, metadata=self._mesh.own(self._role), timeout=DEADLINE_S)

    async def _take(self, message: dispatch_pb2.Assignment) -> None:
        one = translate.assignment(message)
        known = self._incidents.get(one.incident_id)
        if known is None:
            await self._read_one(one.incident_id)
            return
        others = [old for old in known.assignments if old.assignment_id != one.assignment_id]
        self._incidents[one.incident_id] = replace(known, assignments=(*others, one))
        if all(old.state in board.OVER for old in (*others, one)):
            await self._read_one(one.incident_id)  # it may have ended
        else:
            self._tell(one.incident_id)
            self._regroup.set()

    def _tell(self, incident_id: str) -> None:
        now = board.told(self._incidents[incident_id], self._groups.get(incident_id, ""))
        if self._told.get(incident_id) != now:
            self._told[incident_id] = now
            self._change("incident", incident_id)

    async def _group(self) -> None:
        """Groups anew where steps came. It looks at every incident, so in a flood not at each step."""
        while True:
            await self._regroup.wait()
            await asyncio.sleep(NOTIFY_INTERVAL_S)
            self._regroup.clear()
            self._tell_groups()

    def _tell_groups(self) -> None:
        before, self._groups = self._groups, board.groups(list(self._incidents.values()))
        for id_ in [id_ for id_ in self._incidents if before.get(id_) != self._groups.get(id_)]:
            self._tell(id_)
        over = sorted(
            (incident.opened_ms, id_) for id_, incident in self._incidents.items() if incident.ended_ms is not None
        )
        for _, id_ in over[: max(0, len(self._incidents) - MAX_SHOWN)]:
            self._drop(id_)

    def _drop(self, incident_id: str) -> None:
        self._incidents.pop(incident_id, None)
        self._told.pop(incident_id, None)
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

    def _add_alert(self, told: dict[str, Any]) -> None:
        if any(one["id"] == told["id"] for _, one in self._alerts):
            return  # of what a desk is told, each step tells it again
        self._number += 1
        self._alerts.append((self._number, told))
        self._wake.set()

    async def _receive_offers(self) -> None:
        """Says that the desk's machine has each offer, once: while somebody has the live page open, and not otherwise."""
        said: dict[str, int] = {}
        while True:
            own = [to for incident in self._incidents.values() for to in incident.of(self._leg_name)]
            waiting = {to.assignment_id: to.offer_number for to in own if to.state in board.OFFERS}
            said = {id_: number for id_, number in said.items() if id_ in waiting}
            if self._viewers:
                for id_, number in waiting.items():
                    if said.get(id_) != number and await self._receive(id_, number):
                        said[id_] = number
            await asyncio.sleep(RETRY_DELAY_S)

    async def _receive(self, assignment_id: str, number: int) -> bool:
        """Whether it is said, or needn't be any more."""
        request = dispatch_pb2.ReceiveRequest(assignment_id=assignment_id, offer_number=number)
        try:
            await self._leg.dispatch.Receive(request, metadata=self._mesh.own(self._role), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            logger().info("offer_not_received", assignment_id=assignment_id, code=error.code().name)
            return error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)
        return True

    async def _follow_targets(self) -> None:
        """Where those are whom the leg's units go to, while somebody looks: a share is for somebody who needs it."""
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
        """Which incidents are followed: the gravest, and of those alike the ones that are followed already."""
        open_ = [
            incident
            for incident in self._incidents.values()
            if incident.ended_ms is None and board.demand(incident) == "RESPOND"
        ]

        def urgency(incident_card: IncidentCard) -> tuple[int, bool, int]:
            level, due_ms, _ = board.rank(incident_card)
            return level, incident_card.incident_id not in following, due_ms

        return [one.incident_id for one in sorted(open_, key=urgency)[:MAX_FOLLOWED]]

    async def _follow_one(self, incident_id: str) -> None:
        while True:
            request = following_pb2.WatchTargetsRequest(incident_id=incident_id)
            targets = self._leg.following.WatchTargets(request, metadata=self._mesh.own(self._role))
            try:
                async for message in targets:
                    told = translate.target(incident_id, message)
                    if self._targets.get(told["id"]) != told:
                        self._targets[told["id"]] = told
                        self._change("target", told["id"])
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
        if id_ not in self._shown[sort]:  # it may have come back
            self._forgotten = max(self._forgotten, self._changed_at.pop(key, 0))

    # ── to the browsers ──────────────────────────────────────────────────────────────────────────────────────────────

    def incident(self, incident_id: str) -> Mapping[str, Any] | None:
        """One incident as the browser gets it; None where it isn't kept."""
        return self._told.get(incident_id)

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are kept, the newest first."""
        return [told for _, told in reversed(self._alerts)]

    @contextmanager
    def viewed(self) -> Iterator[None]:
        """Somebody looks."""
        self._viewers += 1
        self._viewed.set()
        try:
            yield
        finally:
            self._viewers -= 1

    async def changes(self, last_event_id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """What has changed since a message, with its id; again and again, at most twice a second."""
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
                found = self._shown[sort].get(id_)
                if found is None:
                    gone.append(id_)
                else:
                    changed[sort].append(found)
        return {
            "reset": seen is None,
            "now": self._mesh.clock.now_ms(),
            "rate": self._mesh.clock.rate,
            "away": {what: reason for what, reason in self._away.items() if reason},
            "incidents": changed["incident"],
            "targets": changed["target"],
            "units": changed["unit"],
            "gone": gone if seen is not None else [],
            "alerts": [told for number, told in self._alerts if number > since],
        }


async def _next(event: asyncio.Event, within_s: float) -> None:
    """Returns when it happens again, or after so long."""
    event.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()

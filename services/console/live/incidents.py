"""Incidents of a live page: the leg's list, and for a desk its stream of steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.console import translate
from services.console.domain.live_page import MAX_INCIDENTS, LivePage
from services.console.domain.people import DESKS, Role
from services.console.live.viewers import Viewers
from services.console.mesh import MeshClient
from tandem.dispatch.v1 import dispatch_pb2

LISTS_INTERVAL_S = 10.0
"""Interval at which a desk's page reads the changes of the list in addition to the stream of steps, in s."""
CHECK_INTERVAL_S = 2.0
"""Interval at which the changes are read while a reviewer views the page, in s: reviewers have no stream of steps."""
PAGE_SIZE = 100
"""Number of incidents in an answer: the most that a leg gives."""
REGROUP_DELAY_S = 0.5
DEADLINE_S = 5.0


class IncidentReader:
    """Keeps the incidents of a page current from the role's leg."""

    def __init__(
        self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Viewers, connected: Callable[[], None]
    ) -> None:
        self._mesh, self._role, self._page = mesh, role, page
        self._viewers, self._connected = viewers, connected
        self._dispatch = mesh.leg_of(role).dispatch
        self._regroup = asyncio.Event()
        self._applied: dict[str, int] = {}
        """Number of the last step that was applied since the list was read, by assignment id."""
        self._changes = ""
        """Point of the leg's changes up to which the page is current; empty before the whole list was read."""
        self._stepped: dict[str, None] = {}
        """Incidents of which a step came after the list was last requested: the step is newer than the list."""

    async def poll(self) -> None:
        """Reads the list of incidents: once the whole list, then what changed. Reviewers have no other source. For desks, the changes
        replace steps that the stream missed."""
        began_s = asyncio.get_running_loop().time()
        while True:
            await self._read_changes()
            self._connected()
            is_new = asyncio.get_running_loop().time() - began_s < LISTS_INTERVAL_S
            if self._role in DESKS:
                await asyncio.sleep(CHECK_INTERVAL_S if is_new else LISTS_INTERVAL_S)
            else:
                await self._viewers.next(CHECK_INTERVAL_S if is_new or self._viewers else LISTS_INTERVAL_S)

    async def _read_changes(self) -> None:
        """Reads the incidents that changed since the last answer, or the whole list if the leg doesn't know them."""
        self._stepped.clear()
        has_more = bool(self._changes)
        while has_more:
            answer = await self._list(
                dispatch_pb2.ListIncidentsRequest(changed_after=self._changes, page_size=PAGE_SIZE)
            )
            self._put(answer)
            self._changes, has_more = answer.changes, answer.more_changes
        if not self._changes:
            await self._read_all()

    async def _read_all(self) -> None:
        """Reads the whole list: the newest incidents that the page keeps, and all older ones that are open."""
        gone, changes, read = set(self._page.incident_ids), "", 0
        answer: dispatch_pb2.ListIncidentsResponse | None = None
        while answer is None or answer.next_page_token:
            answer = await self._list(
                dispatch_pb2.ListIncidentsRequest(
                    page_size=PAGE_SIZE,
                    page_token=answer.next_page_token if answer else "",
                    only_open=read >= MAX_INCIDENTS,
                )
            )
            changes = changes or answer.changes
            read += len(answer.incidents)
            gone.difference_update(incident.incident_id for incident in answer.incidents)
            self._put(answer)
        self._page.drop_incidents(gone - self._stepped.keys())
        self._changes = changes

    def _put(self, answer: dispatch_pb2.ListIncidentsResponse) -> None:
        for incident in answer.incidents:
            if incident.incident_id not in self._stepped:
                self._page.put_incident(translate.incident(incident))
        if answer.incidents:
            self._applied.clear()
            self._page.regroup()

    async def follow(self) -> None:
        """Follows a desk's stream of steps."""
        request = dispatch_pb2.SubscribeRequest(others=True, new_only=True)
        steps = self._dispatch.Subscribe(request, metadata=self._mesh.own_identity(self._role))
        try:
            async for message in steps:
                own = message.HasField("step")
                if own and self._is_known(message):
                    continue
                await self._apply(message, is_own=own)
                is_new = own and self._role is Role.PROBATION and message.sequence
                if is_new and (notice := translate.notice(message.step)):
                    self._page.add_alert(notice)
        finally:
            steps.cancel()

    def _is_known(self, message: dispatch_pb2.SubscribeResponse) -> bool:
        """Whether the page shows a step already. The leg sends each unanswered offer again every 5 s, as a step without a sequence."""
        assignment_id, number = message.step.assignment.assignment_id, message.step.number
        is_known = not message.sequence and self._applied.get(assignment_id) == number
        self._applied[assignment_id] = number
        return is_known

    async def group(self) -> None:
        """Regroups the incidents after steps, at intervals and not at each step of a flood."""
        while True:
            await self._regroup.wait()
            await asyncio.sleep(REGROUP_DELAY_S)
            self._regroup.clear()
            self._page.regroup()

    async def _apply(self, message: dispatch_pb2.SubscribeResponse, *, is_own: bool) -> None:
        changed = translate.assignment(message.step.assignment if is_own else message.other)
        self._stepped[changed.incident_id] = None
        if self._page.assign(changed, translate.incident_times(message), is_own=is_own):
            answer = await self._list(dispatch_pb2.ListIncidentsRequest(incident_id=changed.incident_id))
            for incident in answer.incidents:
                self._page.put_incident(translate.incident(incident))
        self._regroup.set()

    async def _list(self, request: dispatch_pb2.ListIncidentsRequest) -> dispatch_pb2.ListIncidentsResponse:
        return await self._dispatch.ListIncidents(
            request, metadata=self._mesh.own_identity(self._role), timeout=DEADLINE_S
        )

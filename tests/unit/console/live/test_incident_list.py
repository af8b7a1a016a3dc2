"""The reader of a leg's list: all open incidents are on the page, and only changed ones are read again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from services.console.domain.live_page import LivePage
from services.console.domain.people import Role
from services.console.live import sources
from services.console.live.sources import IncidentReader, Viewers
from services.dispatch.leg.feed import ListingChanges
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2


class StepStream:
    """A stream of a leg's steps, which the test puts in."""

    def __init__(self, steps: asyncio.Queue[dispatch_pb2.SubscribeResponse]) -> None:
        self._steps = steps

    async def __aiter__(self) -> AsyncIterator[dispatch_pb2.SubscribeResponse]:
        while True:
            yield await self._steps.get()

    def cancel(self) -> None:
        pass


class ListingLeg:
    """A leg with incidents of which some are open. It serves the list as a leg does, in pages and by changes."""

    def __init__(self, count: int, open_one_in: int) -> None:
        self.open = {f"i-{n}": n % open_one_in == 0 for n in range(count)}
        """Whether each incident is open, the oldest one first."""
        self.changes = ListingChanges()
        self.requests: list[dispatch_pb2.ListIncidentsRequest] = []
        self.dispatch = self
        self.steps = asyncio.Queue[dispatch_pb2.SubscribeResponse]()
        self.before_answer: Callable[[], Awaitable[None]] | None = None
        """Awaited once, after the next list was made and before it is sent."""

    def leg_of(self, role: Role) -> ListingLeg:
        return self

    def own_identity(self, role: Role) -> tuple[()]:
        return ()

    async def ListIncidents(
        self, request: dispatch_pb2.ListIncidentsRequest, **_: Any
    ) -> dispatch_pb2.ListIncidentsResponse:
        self.requests.append(request)
        answer = self._list(request)
        if self.before_answer:
            wait, self.before_answer = self.before_answer, None
            await wait()
        return answer

    def Subscribe(self, request: dispatch_pb2.SubscribeRequest, metadata: Any) -> StepStream:
        return StepStream(self.steps)

    def _list(self, request: dispatch_pb2.ListIncidentsRequest) -> dispatch_pb2.ListIncidentsResponse:
        if request.changed_after:
            page = self.changes.since(request.changed_after, request.page_size)
            if page is None:
                return dispatch_pb2.ListIncidentsResponse(changes_unknown=True)
            return dispatch_pb2.ListIncidentsResponse(
                incidents=map(self._incident, page.incident_ids), changes=page.point, more_changes=page.has_more
            )
        newest = [id_ for id_ in reversed(self.open) if self.open[id_] or not request.only_open]
        if request.page_token:
            last = int(request.page_token.removeprefix("i-"))
            newest = [id_ for id_ in newest if int(id_.removeprefix("i-")) < last]
        shown = newest[: request.page_size]
        return dispatch_pb2.ListIncidentsResponse(
            incidents=map(self._incident, shown),
            next_page_token=shown[-1] if len(newest) > len(shown) else "",
            changes=self.changes.point,
        )

    def _incident(self, incident_id: str) -> dispatch_pb2.Incident:
        state = dispatch_pb2.ACKNOWLEDGED if self.open[incident_id] else dispatch_pb2.CLOSED
        assignment = dispatch_pb2.Assignment(
            assignment_id=f"a-{incident_id}",
            incident_id=incident_id,
            leg=alert_pb2.POLICE,
            state=state,
            demand=geometry_pb2.RESPOND,
        )
        message = dispatch_pb2.Incident(incident_id=incident_id, assignments=[assignment])
        message.opened_at.FromMilliseconds(1_000 + int(incident_id.removeprefix("i-")))
        if not self.open[incident_id]:
            message.ended_at.FromMilliseconds(1_000_000)
        return message


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # the reader is another task
            await asyncio.sleep(0.002)


@asynccontextmanager
async def reading(leg: ListingLeg, page: LivePage, answered: Callable[[], None]) -> AsyncIterator[None]:
    reader = IncidentReader(leg, Role.POLICE, page, viewers=Viewers(), connected=answered)  # type: ignore[arg-type]
    tasks = [asyncio.create_task(work) for work in (reader.poll(), reader.follow())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_each_open_incident_is_on_the_page_and_later_only_changed_ones_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "MAX_INCIDENTS", 200)
    monkeypatch.setattr(sources, "CHANGES_INTERVAL_S", 0.001)
    leg = ListingLeg(650, open_one_in=5)
    page = LivePage()
    reads = list[None]()
    async with reading(leg, page, lambda: reads.append(None)):
        await until(lambda: len(reads) >= 2)
        newest = {f"i-{n}" for n in range(450, 650)}
        assert page.incident_ids == newest | {id_ for id_, is_open in leg.open.items() if is_open}
        whole = len(leg.requests)
        assert [request.only_open for request in leg.requests[:3]] == [False, False, True]
        await until(lambda: len(reads) >= 4)
        assert all(request.changed_after for request in leg.requests[whole:]), "nothing else is read again"
        leg.open["i-0"] = False
        leg.open["i-650"] = True
        leg.changes.note(["i-0", "i-650"])
        await until(lambda: "i-650" in page.incident_ids)
        (ended,) = [item for item in page.since(None)["incidents"] if item["id"] == "i-0"]
        assert ended["ended"] == 1_000_000


async def test_after_a_restart_of_the_leg_the_whole_list_is_read_and_nothing_else_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "CHANGES_INTERVAL_S", 0.001)
    leg, page = ListingLeg(120, open_one_in=1), LivePage()
    async with reading(leg, page, lambda: None):
        await until(lambda: len(page.incident_ids) == 120)
        del leg.open["i-3"]
        leg.changes = ListingChanges()
        await until(lambda: "i-3" not in page.incident_ids)
        assert len(page.incident_ids) == 119


async def test_a_list_does_not_undo_a_step_that_came_after_it_was_requested() -> None:
    leg = ListingLeg(2, open_one_in=1)
    page = LivePage()
    reads = list[None]()

    def states() -> dict[str, str]:
        return {row["id"]: row["legs"]["police"][0]["state"] for row in page.since(None)["incidents"]}

    async def step_meanwhile() -> None:
        for number, id_ in enumerate(("i-1", "i-2"), 1):
            message = dispatch_pb2.SubscribeResponse(sequence=number, step=dispatch_pb2.Step(number=number))
            message.step.assignment.CopyFrom(leg._incident("i-1").assignments[0])
            message.step.assignment.assignment_id, message.step.assignment.incident_id = f"a-{id_}", id_
            message.step.assignment.state = dispatch_pb2.ON_SCENE
            for moment in (message.step.at, message.incident_opened_at):
                moment.FromMilliseconds(2_000)
            leg.steps.put_nowait(message)
        await until(lambda: states() == {"i-1": "ON_SCENE", "i-2": "ON_SCENE"})

    leg.before_answer = step_meanwhile
    async with reading(leg, page, lambda: reads.append(None)):
        await until(lambda: bool(reads))
        assert states() == {"i-0": "ACKNOWLEDGED", "i-1": "ON_SCENE", "i-2": "ON_SCENE"}

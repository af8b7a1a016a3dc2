"""Desks of a benchmark: they follow all three legs, note when each offer reaches them, and may work each assignment to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any

from bench.mesh.load import Trigger
from bench.mesh.offers import Arrivals
from services.client.actors import DESKS, UNANSWERED, leg_steps, open_record
from services.client.calls import call
from services.client.mesh import Clients
from services.common.failure import CommandFailed
from services.common.messaging import flow
from tandem.dispatch.v1 import dispatch_pb2

PAUSE_S = 1.0
"""Time from an offer to its acceptance, and from each state of the unit to the next, seconds. Short, so that a run is short."""
PROGRESS = (dispatch_pb2.DISPATCHED, dispatch_pb2.EN_ROUTE, dispatch_pb2.ON_SCENE)
"""States that an agency's unit reports before the desk closes the assignment."""
_CHECK_S = 0.1


class Answering(Enum):
    """What the desks do about an offer."""

    NOTHING = "nothing"
    ACCEPT = "accept"
    CLOSE = "close"
    """Accept it, open the record of the person concerned, report the unit's progress, and close the assignment."""


class Desks:
    """The desks of both agencies and the warning gateway."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._triggers: dict[str, Trigger] = {}
        self._answered: set[str] = set()
        self._answers: set[asyncio.Task[None]] = set()
        self.answering = Answering.NOTHING
        self.arrivals = Arrivals()
        """First offers that reached the desks."""
        self.accepted: set[tuple[str, Trigger]] = set()
        self.closed: set[tuple[str, Trigger]] = set()

    async def until_offered(self, triggers: Collection[Trigger], within_s: float) -> None:
        """Returns when each leg has offered each incident. Raises CommandFailed after `within_s` seconds."""
        await self._until("offered", triggers, self.arrivals.has, within_s=within_s)

    async def until_accepted(self, triggers: Collection[Trigger], within_s: float) -> None:
        """Returns when each desk has accepted each incident. Raises CommandFailed after `within_s` seconds."""
        await self._until("accepted", triggers, lambda leg, trigger: (leg, trigger) in self.accepted, within_s=within_s)

    async def until_closed(self, triggers: Collection[Trigger], within_s: float) -> None:
        """Returns when each desk has closed each incident. Raises CommandFailed after `within_s` seconds."""
        await self._until("closed", triggers, lambda leg, trigger: (leg, trigger) in self.closed, within_s=within_s)

    async def _until(
        self, what: str, triggers: Collection[Trigger], done: Callable[[str, Trigger], bool], *, within_s: float
    ) -> None:
        deadline = time.monotonic() + within_s
        while missing := [(leg, t) for leg in flow.LEGS for t in triggers if not done(leg, t)]:
            ended = {answer for answer in self._answers if answer.done()}
            self._answers -= ended
            for answer in ended:
                answer.result()
            if time.monotonic() > deadline:
                raise CommandFailed(f"{len(missing)} assignments weren't {what} within {within_s:.0f} s: {missing[:3]}")
            await asyncio.sleep(_CHECK_S)

    async def follow(self, leg: str) -> None:
        """Follows a leg until cancelled."""
        try:
            async for message in leg_steps(self._clients.legs[leg].dispatch, self._clients.identity(DESKS[leg])):
                self._note(leg, message.step.assignment)
        finally:
            for answer in self._answers:
                answer.cancel()

    def _note(self, leg: str, assignment: dispatch_pb2.Assignment) -> None:
        id_ = assignment.assignment_id
        if assignment.state in UNANSWERED:
            self.arrivals.note(leg, assignment)
            self._triggers.setdefault(id_, (assignment.cause.device_id, assignment.cause.report_id))
            if self.answering is not Answering.NOTHING and id_ not in self._answered:
                self._answered.add(id_)
                self._answers.add(asyncio.create_task(self._answer(leg, assignment)))
        elif id_ in self._triggers:
            self.accepted.add((leg, self._triggers[id_]))
            if assignment.state == dispatch_pb2.CLOSED:
                self.closed.add((leg, self._triggers[id_]))

    async def _answer(self, leg: str, assignment: dispatch_pb2.Assignment) -> None:
        stub, identity = self._clients.legs[leg].dispatch, self._clients.identity(DESKS[leg])
        id_ = assignment.assignment_id
        await asyncio.sleep(PAUSE_S)
        await call(stub.Acknowledge, dispatch_pb2.AcknowledgeRequest(assignment_id=id_), identity)
        if self.answering is Answering.ACCEPT:
            return
        await open_record(self._clients.disclosures, leg, assignment, identity=identity)
        for state in PROGRESS if leg in flow.AGENCY_LEGS else ():
            await asyncio.sleep(PAUSE_S)
            await call(stub.Progress, dispatch_pb2.ProgressRequest(assignment_id=id_, state=state), identity)
        await asyncio.sleep(PAUSE_S)
        close = dispatch_pb2.CloseRequest(assignment_id=id_, cause=dispatch_pb2.BREACH_CONFIRMED)
        await call(stub.Close, close, identity)


@asynccontextmanager
async def at_work(clients: Clients) -> AsyncIterator[Desks]:
    """Desks that follow all legs in the background."""
    desks = Desks(clients)
    async with running(*(desks.follow(leg) for leg in flow.LEGS)):
        yield desks


@asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs coroutines in the background, and cancels them at the end. An error of one is raised then."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

"""A control room and its units: it follows its leg's offers and answers them in time, late, twice or not at all, and it sends units."""

from __future__ import annotations

import asyncio

import grpc.aio

from services.client.actors import DESKS, UNANSWERED, leg_steps
from services.client.calls import call
from services.common.failure import CommandFailed
from services.common.rpc import server
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2
from tandem.dispatch.v1.dispatch_pb2_grpc import DispatchServiceStub
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub
from tests.simulation.kernel.world import World
from tests.simulation.mesh.processes import SECRET, address_of

State = dispatch_pb2.AssignmentState
PROGRESS = (State.DISPATCHED, State.EN_ROUTE, State.ON_SCENE)
ANSWERS_S = (1.0, 20.0)
SLEEPS = (0.05, 0.15, 0.5)
ANSWERS_TWICE = 0.1
REFUSES = 0.05
"""Shares of offers to which nobody answers, one of them for each desk, and of those that somebody answers twice or refuses."""
RECEIVES = 0.9
"""Share of offers to a unit that the desk's machine confirms."""
TAKES, SENDS = 0.15, 0.6
"""Share of offers to a unit that the desk takes itself, and of its own that it gives to a unit of the roster, not by radio."""


class Desk:
    """The control room of one leg. What it has seen survives a crash of its machine."""

    def __init__(self, world: World, leg: str) -> None:
        self.leg = leg
        self.assignments: dict[str, dispatch_pb2.Assignment] = {}
        """The latest version of each assignment that the leg has sent."""
        self.received: dict[str, float] = {}
        """When the leg sent each step that it also publishes, by the step's id, seconds."""
        self.acknowledged: dict[str, float] = {}
        """When the leg answered to an acknowledgement without an error, by the assignment's id, seconds."""
        self.refusals: list[str] = []
        """Answers that the leg refused for a reason other than an older offer."""
        self._world, self._last = world, 0
        self._sleeps = world.random.choice(SLEEPS)
        self._answered: set[tuple[str, int]] = set()
        """Offers that somebody looked at, each by its assignment and number."""
        self._left_until_s = 0.0
        """Until then nobody is in the control room, seconds since the world's start."""

    def leave(self, seconds: float) -> None:
        """Lets nobody acknowledge an offer for a time in seconds."""
        self._left_until_s = self._world.elapsed_s + seconds

    async def run(self) -> None:
        """Follows the leg until the machine crashes."""
        channel = server.channel(address_of(f"dispatch-{self.leg}"))
        stub, roster = DispatchServiceStub(channel), RosterServiceStub(channel)
        identity = server.bearer(DESKS[self.leg], SECRET)

        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    async for message in leg_steps(stub, identity, after=self._last):
                        self._last = max(self._last, message.sequence)
                        assignment = message.step.assignment
                        if message.step.step_id and not message.step.kept:
                            self.received.setdefault(message.step.step_id, self._world.elapsed_s)
                        self.assignments[assignment.assignment_id] = assignment
                        asks_desk = assignment.state in UNANSWERED and not assignment.choice.unit_id
                        if asks_desk and self._is_new(assignment.assignment_id, assignment.offer_number):
                            tasks.create_task(self._answer(stub, roster, assignment, identity=identity))
                        for offer in assignment.unit_offers:
                            is_open = offer.state == dispatch_pb2.UNIT_ASKED
                            if is_open and self._is_new(assignment.assignment_id, offer.offer_number):
                                of_unit = self._answer(stub, roster, assignment, identity=identity, offer=offer)
                                tasks.create_task(of_unit)
                except CommandFailed:
                    continue  # the leg was away for a minute

    def _is_new(self, assignment_id: str, offer_number: int) -> bool:
        """Whether nobody has looked at an offer yet. From now on somebody has."""
        offer = (assignment_id, offer_number)
        is_new = offer not in self._answered
        self._answered.add(offer)
        return is_new

    async def _answer(
        self,
        stub: DispatchServiceStub,
        roster: RosterServiceStub,
        assignment: dispatch_pb2.Assignment,
        *,
        identity: server.Metadata,
        offer: dispatch_pb2.UnitOffer | None = None,
    ) -> None:
        """Answers an offer to the desk, or to a unit, whose answer the desk passes on."""
        random, id_ = self._world.random, assignment.assignment_id
        if assignment.HasField("choice") and random.random() < RECEIVES:
            number = offer.offer_number if offer else assignment.offer_number
            await self._call(
                stub.Receive, dispatch_pb2.ReceiveRequest(assignment_id=id_, offer_number=number), identity
            )
        if random.random() < self._sleeps:
            return
        await asyncio.sleep(self._world.between(*ANSWERS_S))
        if self._world.elapsed_s < self._left_until_s:
            return
        unit_id = offer.choice.unit_id if offer and random.random() >= TAKES else ""
        if offer and unit_id and random.random() < REFUSES:
            refusal = dispatch_pb2.RejectRequest(assignment_id=id_, offer_number=offer.offer_number, reason="no car")
            await self._call(stub.Reject, refusal, identity)
            return
        request = dispatch_pb2.AcknowledgeRequest(assignment_id=id_, unit_id=unit_id)
        times = 2 if random.random() < ANSWERS_TWICE else 1
        answers = [self._call(stub.Acknowledge, request, identity) for _ in range(times)]
        if not all(await asyncio.gather(*answers)):
            return
        self.acknowledged.setdefault(id_, self._world.elapsed_s)
        if assignment.HasField("choice") and not unit_id and await self._sends(stub, roster, id_, identity=identity):
            return  # the unit that is asked answers for itself
        for state in PROGRESS:
            await asyncio.sleep(self._world.between(5.0, 120.0))
            progress = dispatch_pb2.ProgressRequest(assignment_id=id_, state=state)
            if random.random() < REFUSES or not await self._call(stub.Progress, progress, identity):
                return
        if random.random() < 0.5:
            close = dispatch_pb2.CloseRequest(
                assignment_id=assignment.assignment_id, cause=dispatch_pb2.CloseCause.BREACH_CONFIRMED
            )
            await self._call(stub.Close, close, identity)

    async def _sends(
        self, stub: DispatchServiceStub, roster: RosterServiceStub, id_: str, *, identity: server.Metadata
    ) -> bool:
        """Sends a unit for a desk that has an assignment: the first of the list, or one by radio. Returns whether a unit was asked."""
        await asyncio.sleep(self._world.between(1.0, 30.0))
        try:
            request = roster_pb2.ListCandidatesRequest(assignment_id=id_)
            listed = await call(roster.ListCandidates, request, identity)
        except (CommandFailed, grpc.aio.AioRpcError):
            return False  # the leg was away for a minute
        seen = listed.assignment
        newest = max([seen.offer_number, *(offer.offer_number for offer in seen.unit_offers)])
        if listed.candidates and self._world.random.random() < SENDS:
            unit_id = listed.candidates[0].unit.unit.unit_id
            ask = dispatch_pb2.SendUnitRequest(assignment_id=id_, unit_id=unit_id, offer_number=newest)
            return await self._call(stub.SendUnit, ask, identity)
        sent = dispatch_pb2.SendByRadioRequest(assignment_id=id_, unit_name="순찰 12", offer_number=newest)
        await self._call(stub.SendByRadio, sent, identity)
        return False

    async def _call(self, method: object, request: object, identity: server.Metadata) -> bool:
        try:
            await call(method, request, identity)  # type: ignore[arg-type]
        except CommandFailed:
            return False
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                self.refusals.append(f"{type(request).__name__}: {error.code().name}: {error.details()}")
            return False
        return True

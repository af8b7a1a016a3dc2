"""A control room: it follows its leg's offers and answers them in time, late, twice or not at all."""

from __future__ import annotations

import asyncio

import grpc.aio

from services.cli.calls import call, follow
from services.cli.failure import CommandFailed
from services.cli.simulate.actors import DESKS, UNANSWERED
from services.common.rpc import server
from tandem.dispatch.v1 import dispatch_pb2
from tandem.dispatch.v1.dispatch_pb2_grpc import DispatchServiceStub
from tests.simulation.kernel.world import World
from tests.simulation.mesh.processes import SECRET, address_of

State = dispatch_pb2.AssignmentState
PROGRESS = (State.DISPATCHED, State.EN_ROUTE, State.ON_SCENE)
ANSWERS_S = (1.0, 20.0)
SLEEPS, ANSWERS_TWICE, REFUSES = (0.05, 0.15, 0.5), 0.1, 0.05
"""Shares of offers to which nobody answers, one of them for each desk, and of those that somebody answers twice or refuses."""
RECEIVES = 0.9
"""Share of offers to a unit that the desk's machine confirms."""


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
        self._left_until_s = 0.0
        """Until then nobody is in the control room, seconds since the world's start."""

    def leave(self, seconds: float) -> None:
        """Lets nobody acknowledge an offer for a time in seconds."""
        self._left_until_s = self._world.elapsed_s + seconds

    async def run(self) -> None:
        """Follows the leg until the machine crashes."""
        stub = DispatchServiceStub(server.channel(address_of(f"dispatch-{self.leg}")))
        identity = server.bearer(DESKS[self.leg], SECRET)

        def open_stream() -> grpc.aio.UnaryStreamCall[dispatch_pb2.SubscribeRequest, dispatch_pb2.SubscribeResponse]:
            return stub.Subscribe(dispatch_pb2.SubscribeRequest(after_sequence=self._last), metadata=identity)

        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    async for message in follow(open_stream):
                        self._last = max(self._last, message.sequence)
                        assignment = message.step.assignment
                        if message.step.step_id and not message.step.kept:
                            self.received.setdefault(message.step.step_id, self._world.elapsed_s)
                        self.assignments[assignment.assignment_id] = assignment
                        offer = (assignment.assignment_id, assignment.offer_number)
                        if assignment.state in UNANSWERED and offer not in self._answered:
                            self._answered.add(offer)
                            tasks.create_task(self._answer(stub, assignment, identity))
                except CommandFailed:
                    continue  # the leg was away for a minute

    async def _answer(
        self, stub: DispatchServiceStub, assignment: dispatch_pb2.Assignment, identity: server.Metadata
    ) -> None:
        random = self._world.random
        if assignment.HasField("choice") and random.random() < RECEIVES:
            receive = dispatch_pb2.ReceiveRequest(
                assignment_id=assignment.assignment_id, offer_number=assignment.offer_number
            )
            await self._call(stub.Receive, receive, identity)
        if random.random() < self._sleeps:
            return
        await asyncio.sleep(self._world.between(*ANSWERS_S))
        if self._world.elapsed_s < self._left_until_s:
            return
        request = dispatch_pb2.AcknowledgeRequest(assignment_id=assignment.assignment_id)
        times = 2 if random.random() < ANSWERS_TWICE else 1
        answers = [self._call(stub.Acknowledge, request, identity) for _ in range(times)]
        if not all(await asyncio.gather(*answers)):
            return
        self.acknowledged.setdefault(assignment.assignment_id, self._world.elapsed_s)
        for state in PROGRESS:
            await asyncio.sleep(self._world.between(5.0, 120.0))
            progress = dispatch_pb2.ProgressRequest(assignment_id=assignment.assignment_id, state=state)
            if random.random() < REFUSES or not await self._call(stub.Progress, progress, identity):
                return
        if random.random() < 0.5:
            close = dispatch_pb2.CloseRequest(
                assignment_id=assignment.assignment_id, cause=dispatch_pb2.CloseCause.BREACH_CONFIRMED
            )
            await self._call(stub.Close, close, identity)

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

"""Simulated clients of a mesh: agencies that await matches, a vendor's head-end, and desks that acknowledge as officers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Self, TypeAlias, TypeVar, assert_never

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from services.client.calls import PATIENCE_S, RETRY, call, follow, may_succeed_later
from services.client.mesh import Clients
from services.common.clock import wall_us
from services.common.failure import CommandFailed
from services.common.observability import spans
from services.common.rpc.server import Metadata
from tandem.common.v1 import notice_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.dispatch.v1.dispatch_pb2_grpc import DispatchServiceStub
from tandem.geofence.v1 import geofence_pb2
from tandem.ingest.v1 import ingest_pb2, presence_pb2
from tandem.registry.v1 import disclosure_pb2, registry_pb2
from tandem.registry.v1.disclosure_pb2_grpc import DisclosureServiceStub

Result = TypeVar("Result")
Report: TypeAlias = ingest_pb2.Position | ingest_pb2.EquipmentEvent | presence_pb2.Presence

VENDOR_ID = "demo"
VENDOR = f"spiffe://vendor/{VENDOR_ID}"
MOJ_RECORDS = "spiffe://moj/records"
NPA_RECORDS = "spiffe://npa/records"
REVIEWER = "spiffe://tandem/reviewer/replay"
DESKS = {
    "probation": "spiffe://moj/desk/demo",
    "police": "spiffe://npa/desk/demo",
    "warning": "spiffe://tandem/warning-gateway",
}
"""SPIFFE id of the desk or gateway that acknowledges each leg's assignments."""

State = dispatch_pb2.AssignmentState


_IDS = (".device_id", ".unit_id")
"""Endings of the fields of refused reports whose device or unit may be on its way from the registry."""


def time_of(report: Report) -> Timestamp:
    """The time of a report: of the fix, of the event, or when the device was seen at the unit."""
    match report:
        case ingest_pb2.Position():
            return report.fix_time
        case ingest_pb2.EquipmentEvent():
            return report.event_time
        case presence_pb2.Presence():
            return report.seen
        case _:
            assert_never(report)


class Actor:
    """A client that listens in the background. If listening fails, `until` raises the error to its waiting caller."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._task: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _run(self) -> Coroutine[Any, Any, None]:
        raise NotImplementedError

    async def until(self, what: str, check: Callable[[], Result | None], patience_s: float = PATIENCE_S) -> Result:
        """The first result of `check` that isn't None. Raises CommandFailed naming `what` after `patience_s` seconds."""
        deadline = asyncio.get_running_loop().time() + patience_s
        while (result := check()) is None:
            self._changed.clear()
            change = asyncio.create_task(self._changed.wait())
            left_s = deadline - asyncio.get_running_loop().time()
            either: set[asyncio.Future[Any]] = {change, self._task}
            await asyncio.wait(either, timeout=max(left_s, 0), return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
            if self._task.done():
                self._task.result()
            if left_s <= 0:
                raise CommandFailed(f"waited {patience_s:.0f} s for {what}")
        return result


class Matches(Actor):
    """Follows the registry's matches as one agency sees them."""

    def __init__(self, clients: Clients, spiffe_id: str) -> None:
        super().__init__()
        self._clients = clients
        self._identity = clients.identity(spiffe_id)
        self._last = 0
        self.seen_wall_us: dict[str, int] = {}
        """When each order's match was first seen, by order id. Wall clock, microseconds since 1970 UTC."""

    async def _run(self) -> None:
        async for match in follow(self._open):
            self._last = match.sequence
            self.seen_wall_us.setdefault(match.order_id, wall_us())
            self._changed.set()

    def _open(self) -> grpc.aio.UnaryStreamCall[registry_pb2.WatchMatchesRequest, registry_pb2.WatchMatchesResponse]:
        request = registry_pb2.WatchMatchesRequest(after_sequence=self._last)
        return self._clients.registry.WatchMatches(request, metadata=self._identity)


class Desk(Actor):
    """One leg's desk with its units: follows the assignments of some orders, and acknowledges offers if `answers` is set.

    A unit that is asked accepts by radio, and the desk passes that on. Without a roster the desk itself accepts.
    After an acknowledgement the desk opens the record of the person concerned, as officers do. No method waits for that.
    """

    def __init__(self, clients: Clients, leg: str, order_ids: Iterable[str], *, answers: bool) -> None:
        super().__init__()
        self._stub = clients.legs[leg].dispatch
        self._disclosures = clients.disclosures
        self._identity = clients.identity(DESKS[leg])
        self._to_look_up: asyncio.Queue[dispatch_pb2.Assignment] = asyncio.Queue()
        self._looked_up: set[str] = set()
        self._order_ids = frozenset(order_ids)
        self._answers = answers
        self.leg = leg
        self.assignments: dict[str, dispatch_pb2.Assignment] = {}
        """The latest version of each assignment from the leg, by assignment id."""

    async def _run(self) -> None:
        # Not a TaskGroup: it would wrap the error that `until` raises to its caller.
        tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._look_up())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        async for message in leg_steps(self._stub, self._identity):
            assignment = message.step.assignment
            if self._order_ids.isdisjoint(assignment.order_ids):
                continue
            self.assignments[assignment.assignment_id] = assignment
            self._changed.set()
            if self._answers:
                await self._acknowledge(assignment)

    async def answer(self) -> None:
        """Acknowledges all assignments that are offered now, and all later ones."""
        self._answers = True
        for assignment in tuple(self.assignments.values()):
            await self._acknowledge(assignment)

    async def _acknowledge(self, assignment: dispatch_pb2.Assignment) -> None:
        if assignment.state not in UNANSWERED:
            return
        request = dispatch_pb2.AcknowledgeRequest(
            assignment_id=assignment.assignment_id, unit_id=assignment.choice.unit_id
        )
        try:
            answer = await call(self._stub.Acknowledge, request, self._in_trace(assignment))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return  # stood down meanwhile; the stream reports it
        self._to_look_up.put_nowait(answer.assignment)
        latest = self.assignments[assignment.assignment_id]
        if latest.state in UNANSWERED:
            latest.CopyFrom(answer.assignment)
            self._changed.set()

    async def _look_up(self) -> None:
        while True:
            assignment = await self._to_look_up.get()
            if assignment.assignment_id in self._looked_up:
                continue
            self._looked_up.add(assignment.assignment_id)
            try:
                await open_record(self._disclosures, self.leg, assignment, identity=self._in_trace(assignment))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise  # NOT_FOUND is no failure: the record's retention ended meanwhile, so the record was destroyed

    def _in_trace(self, assignment: dispatch_pb2.Assignment) -> Metadata:
        """Call metadata with the incident's trace context, so that the call's spans join the incident's trace."""
        return (*self._identity, (spans.TRACEPARENT, spans.traceparent(assignment.incident_id)))


class Alerts(Actor):
    """Follows the alerts of some orders with their figures, in the order in which they were stored."""

    def __init__(self, clients: Clients, order_ids: Iterable[str]) -> None:
        super().__init__()
        self._clients = clients
        self._identity = clients.identity(REVIEWER)
        self._order_ids = frozenset(order_ids)
        self._last, self._last_alert_id = 0, ""
        self.seen: list[geofence_pb2.WatchAlertsResponse] = []

    async def _run(self) -> None:
        async for message in follow(self._open):
            self._last, self._last_alert_id = message.stream_sequence, message.alert.alert_id
            if message.alert.order_id in self._order_ids:
                self.seen.append(message)
                self._changed.set()

    def _open(self) -> grpc.aio.UnaryStreamCall[geofence_pb2.WatchAlertsRequest, geofence_pb2.WatchAlertsResponse]:
        request = geofence_pb2.WatchAlertsRequest(after_stream_sequence=self._last, after_alert_id=self._last_alert_id)
        return self._clients.geofence.WatchAlerts(request, metadata=self._identity)


class HeadEnd(Actor):
    """A vendor's head-end: sends reports over one stream. Batches unanswered when a stream broke are resent on the next.

    The devices of the head-end support every command of this version. Each command is passed to `commanded` once, and acknowledged.
    """

    def __init__(self, clients: Clients, commanded: Callable[[ingest_pb2.DeviceCommand], None] | None = None) -> None:
        super().__init__()
        self._clients = clients
        self._identity = clients.identity(VENDOR)
        self._commanded = commanded
        self._commands: set[str] = set()
        self._sent = 0
        self._unanswered: dict[int, ingest_pb2.ReportRequest] = {}
        self._awaited: dict[int, ingest_pb2.ReportResponse | None] = {}
        self._more = asyncio.Event()

    async def carry(self, reports: Sequence[Report]) -> list[ingest_pb2.Refusal]:
        """Sends reports until each is durable or refused, and returns the refusals.

        An unknown device may be on its way from the registry to ingest, so its reports are retried for 60 s.
        """
        give_up_at = asyncio.get_running_loop().time() + PATIENCE_S
        refused: list[ingest_pb2.Refusal] = []
        while True:
            refusals = await self.exchange(reports)
            unknown = [report for report, refusal in refusals if refusal.field.endswith(_IDS)]
            if not unknown or asyncio.get_running_loop().time() > give_up_at:
                return [*refused, *(refusal for _, refusal in refusals)]
            await asyncio.sleep(RETRY.first_s)
            refused += [refusal for _, refusal in refusals if not refusal.field.endswith(_IDS)]
            reports = unknown

    async def exchange(
        self, reports: Sequence[Report], *, backfill: bool = False
    ) -> list[tuple[Report, ingest_pb2.Refusal]]:
        """Sends reports as one batch. Returns the refused reports once the accepted ones are durable."""
        # The indices of refusals count positions first, then equipment events, then presences.
        positions = [report for report in reports if isinstance(report, ingest_pb2.Position)]
        equipment = [report for report in reports if isinstance(report, ingest_pb2.EquipmentEvent)]
        presences = [report for report in reports if isinstance(report, presence_pb2.Presence)]
        ordered: list[Report] = [*positions, *equipment, *presences]
        request = ingest_pb2.ReportRequest(
            positions=positions, equipment=equipment, presences=presences, backfill=backfill
        )
        batch = self._send(request)
        self._awaited[batch] = None
        try:
            answer = await self.until("an answer to a report", lambda: self._awaited[batch])
        finally:
            del self._awaited[batch]
        return [(ordered[refusal.index], refusal) for refusal in answer.refusals]

    async def settle(self) -> None:
        """Returns once ingest has answered every batch, including the receipts of commands."""
        await self.until("answers to receipts", lambda: None if self._unanswered else True)

    def _send(self, request: ingest_pb2.ReportRequest) -> int:
        self._sent += 1
        request.batch = self._sent
        self._unanswered[request.batch] = request
        self._more.set()
        return self._sent

    async def _run(self) -> None:
        while True:
            stream = self._clients.ingest.Report(self._requests(), metadata=self._identity)
            try:
                async for answer in stream:
                    if answer.commands:
                        self._acknowledge(answer.commands)
                    elif self._unanswered.pop(answer.batch, None):
                        if answer.batch in self._awaited:
                            self._awaited[answer.batch] = answer
                        self._changed.set()
            except grpc.aio.AioRpcError as error:
                if not may_succeed_later(error):
                    raise
            finally:
                stream.cancel()
            await asyncio.sleep(RETRY.first_s)

    def _acknowledge(self, commands: Iterable[ingest_pb2.DeviceCommand]) -> None:
        """Sends receipts for commands. A repeated command means that its receipt was lost, so it gets another receipt."""
        receipts = []
        for command in commands:
            known = command.instruction.WhichOneof("kind") is not None
            receipts.append(
                ingest_pb2.CommandReceipt(
                    command_id=command.command_id,
                    device_id=command.device_id,
                    refused_because="" if known else "the device knows no such instruction",
                )
            )
            if self._commanded and command.command_id not in self._commands:
                self._commanded(command)
            self._commands.add(command.command_id)
        self._send(ingest_pb2.ReportRequest(receipts=receipts))

    async def _requests(self) -> AsyncIterator[ingest_pb2.ReportRequest]:
        sent = 0
        while True:
            self._more.clear()
            waiting = [request for batch, request in sorted(self._unanswered.items()) if batch > sent]
            for request in waiting:
                yield request
                sent = request.batch
            if not waiting:
                await self._more.wait()


DESK_BASIS = "STALKING_9_1_2"
"""Legal basis under which a desk opens a record: the article that forbids coming within 100 m."""
UNANSWERED = (dispatch_pb2.OFFERED, dispatch_pb2.ESCALATED)
"""States of an assignment that nobody has acknowledged."""


async def leg_steps(
    leg: DispatchServiceStub, identity: Metadata, *, after: int = 0, new_only: bool = False
) -> AsyncIterator[dispatch_pb2.SubscribeResponse]:
    """Steps of a leg as its desk gets them, after a sequence, until cancelled. A broken stream goes on after the last step.

    With `new_only` the first stream begins with the open offers and new steps.
    """
    last = after

    def open_stream() -> grpc.aio.UnaryStreamCall[dispatch_pb2.SubscribeRequest, dispatch_pb2.SubscribeResponse]:
        request = dispatch_pb2.SubscribeRequest(after_sequence=last, new_only=new_only and not last)
        return leg.Subscribe(request, metadata=identity)

    async for message in follow(open_stream):
        last = max(last, message.sequence)
        yield message


async def open_record(
    disclosures: DisclosureServiceStub, leg: str, assignment: dispatch_pb2.Assignment, *, identity: Metadata
) -> None:
    """Reads the record of the person concerned, as officers do: probation the wearer's, the police the protected person's.

    Nobody reads one for a place, and the warning gateway reads none. Raises AioRpcError.
    """
    grounds = disclosure_pb2.Grounds(
        legal_basis=DESK_BASIS, purpose=disclosure_pb2.PURPOSE_ENFORCEMENT, reference=assignment.incident_id
    )
    subject_id = assignment.subject_id
    if leg == "probation" or assignment.task == notice_pb2.CHECK:
        wearer = disclosure_pb2.ReadWearerRequest(wearer_id=subject_id, grounds=grounds)
        await call(disclosures.ReadWearer, wearer, identity)
    elif leg == "police" and "/" not in subject_id:
        person = disclosure_pb2.ReadProtectedPersonRequest(person_id=subject_id, grounds=grounds)
        await call(disclosures.ReadProtectedPerson, person, identity)

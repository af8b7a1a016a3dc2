"""No method reveals the position of the protected person to a probation identity. The test calls every method of every service.

It searches the responses for planted markers. A police identity makes the same calls, to prove that the search finds markers.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.client.actors import DESKS, MOJ_RECORDS
from services.client.calls import call
from services.common import times
from services.common.rpc import server
from tandem.dispatch.v1 import dispatch_pb2, dispatch_pb2_grpc
from tandem.registry.v1 import trace_pb2, trace_pb2_grpc
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh
from tests.support.common.methods import methods
from tests.support.common.otlp import Collector, collecting
from tests.support.console.console import visiting
from tests.support.dispatch.chase import HOME, SECOND, UNITS, Chase, chase

NOTE = "비밀로 17, 301호"
"""An address that the police desk writes into its reasons and notes."""
VARIANTS = 4
"""Number of requests per method, with different choices of fields."""
LISTENS_S = 1.5
"""Time for which a stream is read, seconds."""
REPEATS = 40
CALL_CONCURRENCY = 80
PLACES = (HOME, SECOND, *UNITS["police"].values())
"""Her places, and the positions of the police units: with their travel times, her place could be computed."""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningMesh, Collector]]:
    with (
        collecting() as (collector, endpoint),
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        patched.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with running_mesh(tmp_path_factory.mktemp("privacy") / "mesh") as mesh:
            yield mesh, collector


def markers() -> list[bytes]:
    """Returns the markers: coordinates as text, doubles and integers, and the address."""
    all_markers = [NOTE.encode(), NOTE.encode("unicode_escape")]
    for degrees in (x for place in PLACES for x in place):
        # Five digits are a metre. They are truncated, not rounded, because more digits may follow.
        all_markers += [
            f"{int(degrees * 1e5) / 1e5}".encode(),
            struct.pack("<d", degrees),
            str(int(degrees * 1e7)).encode(),
        ]
    return all_markers


class Walk:
    """Calls all methods with one identity, and stores all responses."""

    def __init__(self, chased: Chase, spiffe_id: str, ids: Mapping[str, Sequence[str]]) -> None:
        self.heard: dict[str, list[bytes]] = {}
        """Responses, stream items, error texts and trailing metadata, by method."""
        self.answered: set[str] = set()
        """Methods that returned at least one message."""
        self.messages: list[Message] = []
        self._clients, self._ids = chased.clients, ids
        self._metadata = chased.clients.identity(spiffe_id)
        self._sem = asyncio.Semaphore(CALL_CONCURRENCY)

    async def all(self) -> None:
        async with AsyncExitStack() as stack:
            channels = {
                name: await stack.enter_async_context(server.channel(address))
                for name, address in self._clients.mesh.addresses.items()
            }
            # Streams first, before another method closes the assignments.
            for streams in (True, False):
                async with asyncio.TaskGroup() as tasks:
                    for name, channel in channels.items():
                        for method in methods():
                            service = method.containing_service.full_name.split(".")[1]
                            if method.server_streaming is streams and service == name.partition("-")[0]:
                                for variant in range(VARIANTS):
                                    tasks.create_task(self._call(channel, method, variant))

    async def _call(self, channel: grpc.aio.Channel, method: MethodDescriptor, variant: int) -> None:
        """Calls a method. The budget of readers of the history refuses some of so many calls at once: these are repeated."""
        for _ in range(REPEATS):
            if await self._call_once(channel, method, variant) is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                return
            await asyncio.sleep(0.5)

    async def _call_once(
        self, channel: grpc.aio.Channel, method: MethodDescriptor, variant: int
    ) -> grpc.StatusCode | None:
        """Calls a method and keeps what it returned. Returns the status of an error."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        request = self._filled(method.input_type, variant)
        answer_of = message_factory.GetMessageClass(method.output_type)
        kinds = (
            (channel.unary_unary, channel.unary_stream),
            (channel.stream_unary, channel.stream_stream),
        )
        make: Any = kinds[method.client_streaming][method.server_streaming]
        stub = make(
            path, request_serializer=type(request).SerializeToString, response_deserializer=answer_of.FromString
        )

        async def requests() -> AsyncIterator[Message]:
            yield request
            await asyncio.sleep(LISTENS_S)

        heard = self.heard.setdefault(path, [])
        async with self._sem:
            going: Any = stub(requests() if method.client_streaming else request, metadata=self._metadata, timeout=20)
            try:
                if method.server_streaming:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LISTENS_S):
                            async for message in going:
                                self._keep(path, message)
                else:
                    self._keep(path, await going)
            except grpc.aio.AioRpcError as error:
                assert error.code() not in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN), (path, error)
                trailing = [f"{key}={value!r}" for key, value in error.trailing_metadata() or ()]
                heard.append(f"{error.code()} {error.details()} {trailing}".encode())
                return error.code()
            finally:
                going.cancel()
        return None

    def _keep(self, path: str, message: Message) -> None:
        self.answered.add(path)
        self.messages.append(message)
        self.heard[path] += [message.SerializeToString(), str(message).encode(), repr(message).encode()]

    def _filled(self, descriptor: Descriptor | None, variant: int, depth: int = 0) -> Message:
        """Builds a request with ids of this chase and valid grounds. Each variant chooses other fields."""
        assert descriptor
        request = message_factory.GetMessageClass(descriptor)()
        if isinstance(request, Timestamp):
            return times.to_timestamp(self._clients.clock.now_ms() + 600_000)
        skipped = {
            field.name
            for choice in descriptor.oneofs
            for n, field in enumerate(choice.fields)
            if n != variant % len(choice.fields)
        }
        for field in descriptor.fields:
            if field.name in skipped or field.name in ("page_token", "changed_after"):
                continue
            value = self._value(field, variant, depth)
            if value is None:
                continue
            if field.is_repeated:
                getattr(request, field.name).append(value)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                getattr(request, field.name).CopyFrom(value)
            else:
                setattr(request, field.name, value)
        return request

    def _value(self, field: FieldDescriptor, variant: int, depth: int) -> Any:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            return self._filled(field.message_type, variant, depth + 1) if depth < 3 else None
        if field.enum_type:
            values = [value.number for value in field.enum_type.values if value.number]
            return values[variant % len(values)]
        if field.type == FieldDescriptor.TYPE_STRING:
            known = self._ids.get(field.name)
            return known[variant % len(known)] if known else "x-1"
        if field.type == FieldDescriptor.TYPE_BYTES:
            return b""
        if field.type == FieldDescriptor.TYPE_BOOL:
            return field.name != "new_only"  # includes earlier messages
        if "sequence" in field.name:
            return None  # from the beginning
        return 1


def found_in(heard: Mapping[str, Sequence[bytes]]) -> set[str]:
    """Returns the methods whose responses contain a marker."""
    searched = markers()
    return {
        path
        for path, responses in heard.items()
        for response in responses
        if any(marker in response for marker in searched)
    }


def numbers(message: Message) -> Iterator[tuple[str, float]]:
    """Yields all numbers of a message with the names of their fields, without how far a unit is from the wearer, to whom it goes."""
    for field, value in message.ListFields():
        if field.full_name == "tandem.dispatch.v1.Candidate.distance_m":
            continue
        for item in value if field.is_repeated and not field.message_type else (value,):
            if isinstance(item, int | float) and not isinstance(item, bool):
                yield field.name, float(item)
        if field.message_type:
            for item in value if field.is_repeated else (value,):
                if isinstance(item, Message):
                    yield from numbers(item)


async def known_ids(chased: Chase) -> dict[str, list[str]]:
    his = await chased.acknowledged("probation", chased.wearer_id)
    hers = await chased.until("police", "an assignment", lambda a: a.HasField("acknowledged_at"))
    case_ids = [a.alert.case_id for a in chased.alerts.seen]
    return {
        "incident_id": [his.incident_id],
        "add_incident_ids": [his.incident_id],
        "assignment_id": [his.assignment_id, hers.assignment_id],
        "order_id": [chased.order_id],
        "wearer_id": [chased.wearer_id],
        "person_id": [chased.person_id],
        "place_id": ["home", "second"],
        "case_id": case_ids[:1],
        "device_id": [f"tag-{chased.run_id}", f"app-{chased.run_id}"],
        # In the order of the kinds of subjects: wearer, person, place.
        "subject_id": [chased.wearer_id, chased.person_id, f"{chased.order_id}/home", chased.person_id],
        "legal_basis": ["TAG_16_2", "TAG_DECREE_23_10", "STALKING_9_1_3_2", "DV_29_1"],
        "reference": [his.incident_id],
        "office_id": ["a"],
        "command_id": ["c-1", "c-2", "c-3", "c-4"],
    }


async def traced_incident(chased: Chase, incident_id: str) -> None:
    """Waits until the registry has the trace of an incident: it stores the facts in idle time."""
    stub = trace_pb2_grpc.TraceServiceStub(await chased.channel("registry"))
    request = trace_pb2.GetTraceRequest(incident_id=incident_id)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await call(stub.GetTrace, request, chased.identity("probation"))
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    raise
                await asyncio.sleep(0.2)
            else:
                return


async def heard_by_console(mesh: RunningMesh, role: str, incident_id: str) -> dict[str, list[bytes]]:
    """Returns all data that a desk's browser gets: the live stream until it has targets and units, and the incident page."""
    async with visiting(mesh.now.console_url) as visitor:
        await visitor.read("/sign-in")
        assert (await visitor.post("/sign-in", role=role, name="duty-1"))[0] == 303
        stream, had = [], set()
        async with visitor.stream() as messages, asyncio.timeout(PATIENCE_S):
            async for _, message in messages:
                stream.append(json.dumps(message).encode())
                had |= {sort for sort in ("targets", "units") if message[sort]}
                if had == {"targets", "units"}:
                    break
        return {"stream": stream, "page": [(await visitor.read(f"/incidents/{incident_id}")).encode()]}


async def test_no_method_reveals_her_position_to_probation(traced: tuple[RunningMesh, Collector]) -> None:
    mesh, collector = traced
    async with chase(mesh) as chased:
        for leg in ("probation", "police"):
            await chased.put_roster(leg)
        await chased.come_home()
        ids = await known_ids(chased)
        await chased.until("police", "a lost race", lambda a: a.HasField("race"))
        await chased.turn_to_second()
        second = await chased.acknowledged("police", f"{chased.order_id}/second")
        # Texts that people write stay with the police, too.
        stub = dispatch_pb2_grpc.DispatchServiceStub(await chased.channel("dispatch-police"))
        police = chased.identity("police")
        request = dispatch_pb2.RejectRequest(
            assignment_id=second.assignment_id, offer_number=second.offer_number, reason=NOTE
        )
        await call(stub.Reject, request, police)
        close = dispatch_pb2.CloseRequest(assignment_id=ids["assignment_id"][1], cause=dispatch_pb2.OTHER, note=NOTE)
        await call(stub.Close, close, police)
        await asyncio.sleep(1)  # until the other legs have read it
        await traced_incident(chased, ids["incident_id"][0])

        console = {role: await heard_by_console(mesh, role, ids["incident_id"][0]) for role in ("police", "probation")}

        seen = {}
        for who in (DESKS["police"], DESKS["probation"], MOJ_RECORDS):
            seen[who] = Walk(chased, who, ids)
            await seen[who].all()

        # The search finds the markers that the police get.
        with_markers = found_in(seen[DESKS["police"]].heard)
        assert {
            "/tandem.geofence.v1.PositionService/FollowPositions",
            "/tandem.dispatch.v1.FollowingService/FollowTargets",
            "/tandem.dispatch.v1.DispatchService/Subscribe",
            "/tandem.dispatch.v1.RosterService/ListUnits",
            "/tandem.registry.v1.DisclosureService/ReadProtectedPerson",
        } <= with_markers
        answered = seen[DESKS["probation"]].answered
        assert {
            "/tandem.geofence.v1.PositionService/FollowPositions",
            "/tandem.dispatch.v1.FollowingService/FollowTargets",
            "/tandem.dispatch.v1.DispatchService/Subscribe",
            "/tandem.dispatch.v1.DispatchService/ListIncidents",
            "/tandem.dispatch.v1.RosterService/ListUnits",
            "/tandem.registry.v1.DisclosureService/ReadProtectedPerson",
            "/tandem.registry.v1.TraceService/GetTrace",
        } <= answered, "probation got responses that could have contained markers"

        # The console doesn't reveal it either: a desk's map has only the units of its own agency.
        assert found_in(console["police"]) >= {"stream"} and found_in(console["probation"]) == set()
        for role in ("police", "probation"):
            own = [f"{degrees:.5f}"[:-1].encode() for place in UNITS[role].values() for degrees in place]
            text = b"".join(console[role]["stream"])
            assert all(coordinate in text for coordinate in own), role
            assert {name for name in UNITS[role] if f'"unit {name}"'.encode() in text} == set(UNITS[role])

        every = {f"/{method.containing_service.full_name}/{method.name}" for method in methods()}
        for who in (DESKS["probation"], MOJ_RECORDS):
            assert set(seen[who].heard) == every
            assert found_in(seen[who].heard) == set()
            figures = {name: value for message in seen[who].messages for name, value in numbers(message)}
            assert not {name for name in figures if "distance" in name or "probability" in name}, figures

    for log in (mesh.folder / "logs").glob("*.log"):
        # Without times, whose seconds may be the digits of a marker.
        lines = re.sub(rb"\d\d:\d\d:\d\d\.\d+", b"", log.read_bytes())
        assert not [marker for marker in markers() if marker in lines], log
    async with asyncio.timeout(PATIENCE_S):
        while not any(span.name.startswith("police") for _, span in collector.spans()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    spans = [span.SerializeToString() for _, span in collector.spans()]
    assert spans and not [span for span in spans if any(marker in span for marker in markers())]

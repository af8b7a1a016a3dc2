"""What a probation identity can get of where the protected person is: every method of every service is tried, with planted markers.

The police's identity is tried the same way: what it finds shows that the search finds.
"""

from __future__ import annotations

import asyncio
import json
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

from services.cli.calls import call
from services.cli.simulate.actors import DESKS, MOJ_RECORDS
from services.common import times
from services.common.rpc import server
from tandem.dispatch.v1 import dispatch_pb2, dispatch_pb2_grpc
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh
from tests.support.common.methods import methods
from tests.support.common.otlp import Collector, collecting
from tests.support.console.console import visiting
from tests.support.dispatch.chase import HOME, SECOND, UNITS, Chase, chase

NOTE = "비밀로 17, 301호"
"""An address that the police's desk writes down."""
VARIANTS = 4
LISTENS_S = 1.5
"""For how long a stream is read."""
AT_ONCE = 80
PLACES = (HOME, SECOND, *UNITS["police"].values())
"""Where she is, and where the police's units are: with how long they take one could tell."""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningMesh, Collector]]:
    with (
        collecting() as (taken, endpoint),
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        patched.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with running_mesh(tmp_path_factory.mktemp("privacy") / "mesh") as mesh:
            yield mesh, taken


def markers() -> list[bytes]:
    """Coordinates as text, as doubles and as whole numbers; the address."""
    found = [NOTE.encode(), NOTE.encode("unicode_escape")]
    for degrees in (x for place in PLACES for x in place):
        # Five digits are a metre: cut, not rounded, since more may follow.
        found += [f"{int(degrees * 1e5) / 1e5}".encode(), struct.pack("<d", degrees), str(int(degrees * 1e7)).encode()]
    return found


class Walk:
    """Calls methods as one identity and keeps all that comes back."""

    def __init__(self, one: Chase, spiffe_id: str, ids: Mapping[str, Sequence[str]]) -> None:
        self.heard: dict[str, list[bytes]] = {}
        """By method: answers, stream items, error texts and trailing metadata."""
        self.answered: set[str] = set()
        """Methods that gave at least one message."""
        self.messages: list[Message] = []
        self._clients, self._ids = one.clients, ids
        self._metadata = one.clients.identity(spiffe_id)
        self._sem = asyncio.Semaphore(AT_ONCE)

    async def all(self) -> None:
        async with AsyncExitStack() as stack:
            channels = {
                name: await stack.enter_async_context(server.channel(address))
                for name, address in self._clients.mesh.addresses.items()
            }
            # What is open is looked at before something closes it.
            for streams in (True, False):
                async with asyncio.TaskGroup() as tasks:
                    for name, channel in channels.items():
                        for method in methods():
                            service = method.containing_service.full_name.split(".")[1]
                            if method.server_streaming is streams and service == name.partition("-")[0]:
                                for variant in range(VARIANTS):
                                    tasks.create_task(self._call(channel, method, variant))

    async def _call(self, channel: grpc.aio.Channel, method: MethodDescriptor, variant: int) -> None:
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
            finally:
                going.cancel()

    def _keep(self, path: str, message: Message) -> None:
        self.answered.add(path)
        self.messages.append(message)
        self.heard[path] += [message.SerializeToString(), str(message).encode(), repr(message).encode()]

    def _filled(self, descriptor: Descriptor | None, variant: int, depth: int = 0) -> Message:
        """A request that could be answered: ids of this chase, grounds that allow something, another choice in each variant."""
        assert descriptor
        made = message_factory.GetMessageClass(descriptor)()
        if isinstance(made, Timestamp):
            return times.to_timestamp(self._clients.clock.now_ms() + 600_000)
        skipped = {
            field.name
            for choice in descriptor.oneofs
            for n, field in enumerate(choice.fields)
            if n != variant % len(choice.fields)
        }
        for field in descriptor.fields:
            if field.name in skipped or field.name == "page_token":
                continue
            value = self._value(field, variant, depth)
            if value is None:
                continue
            if field.is_repeated:
                getattr(made, field.name).append(value)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                getattr(made, field.name).CopyFrom(value)
            else:
                setattr(made, field.name, value)
        return made

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
            return field.name != "new_only"  # what was before, too
        if "sequence" in field.name:
            return None  # all of it
        return 1


def found_in(heard: Mapping[str, Sequence[bytes]]) -> set[str]:
    """Methods that gave a marker away."""
    searched = markers()
    return {path for path, all_ in heard.items() for one in all_ if any(marker in one for marker in searched)}


def numbers(message: Message) -> Iterator[tuple[str, float]]:
    """All numbers of a message with their fields' names."""
    for field, value in message.ListFields():
        for one in value if field.is_repeated and not field.message_type else (value,):
            if isinstance(one, int | float) and not isinstance(one, bool):
                yield field.name, float(one)
        if field.message_type:
            for one in value if field.is_repeated else (value,):
                if isinstance(one, Message):
                    yield from numbers(one)


async def known_ids(one: Chase) -> dict[str, list[str]]:
    his = await one.taken("probation", one.wearer_id)
    hers = await one.until("police", "an assignment", lambda a: a.HasField("acknowledged_at"))
    case_ids = [a.alert.case_id for a in one.alerts.seen]
    return {
        "incident_id": [his.incident_id],
        "assignment_id": [his.assignment_id, hers.assignment_id],
        "order_id": [one.order_id],
        "wearer_id": [one.wearer_id],
        "person_id": [one.person_id],
        "place_id": ["home", "second"],
        "case_id": case_ids[:1],
        "device_id": [f"tag-{one.run_id}", f"app-{one.run_id}"],
        # In step with the kinds of subjects: the wearer, the person, a place.
        "subject_id": [one.wearer_id, one.person_id, f"{one.order_id}/home", one.person_id],
        "legal_basis": ["TAG_16_2", "TAG_DECREE_23_10", "STALKING_9_1_3_2", "DV_29_1"],
        "reference": [his.incident_id],
        "office_id": ["a"],
        "command_id": ["c-1", "c-2", "c-3", "c-4"],
    }


async def heard_by_console(mesh: RunningMesh, role: str, incident_id: str) -> dict[str, list[bytes]]:
    """All that a desk's browser gets: the live page's stream until it has targets and units, the incident's page."""
    async with visiting(mesh.now.console_url) as one:
        await one.read("/sign-in")
        assert (await one.post("/sign-in", role=role, name="duty-1"))[0] == 303
        stream, had = [], set()
        async with one.stream() as messages, asyncio.timeout(PATIENCE_S):
            async for _, message in messages:
                stream.append(json.dumps(message).encode())
                had |= {sort for sort in ("targets", "units") if message[sort]}
                if had == {"targets", "units"}:
                    break
        return {"stream": stream, "page": [(await one.read(f"/incidents/{incident_id}")).encode()]}


async def test_no_method_tells_probation_where_she_is(traced: tuple[RunningMesh, Collector]) -> None:
    mesh, taken = traced
    async with chase(mesh) as one:
        for leg in ("probation", "police"):
            await one.put_roster(leg)
        await one.come_home()
        ids = await known_ids(one)
        await one.until("police", "a lost race", lambda a: a.HasField("race"))
        await one.turn_to_second()
        second = await one.taken("police", f"{one.order_id}/second")
        # What people write down stays with the police, too.
        stub = dispatch_pb2_grpc.DispatchServiceStub(await one.channel("dispatch-police"))
        police = one.identity("police")
        request = dispatch_pb2.RejectRequest(
            assignment_id=second.assignment_id, offer_number=second.offer_number, reason=NOTE
        )
        await call(stub.Reject, request, police)
        close = dispatch_pb2.CloseRequest(assignment_id=ids["assignment_id"][1], cause=dispatch_pb2.OTHER, note=NOTE)
        await call(stub.Close, close, police)
        await asyncio.sleep(1)  # the other legs have read it

        console = {role: await heard_by_console(mesh, role, ids["incident_id"][0]) for role in ("police", "probation")}

        seen = {}
        for who in (DESKS["police"], DESKS["probation"], MOJ_RECORDS):
            seen[who] = Walk(one, who, ids)
            await seen[who].all()

        # The search finds what there is to be found.
        told = found_in(seen[DESKS["police"]].heard)
        assert {
            "/tandem.geofence.v1.PositionService/WatchPositions",
            "/tandem.dispatch.v1.FollowingService/WatchTargets",
            "/tandem.dispatch.v1.DispatchService/Subscribe",
            "/tandem.dispatch.v1.RosterService/ListUnits",
            "/tandem.registry.v1.DisclosureService/ReadProtectedPerson",
        } <= told
        answered = seen[DESKS["probation"]].answered
        assert {
            "/tandem.geofence.v1.PositionService/WatchPositions",
            "/tandem.dispatch.v1.FollowingService/WatchTargets",
            "/tandem.dispatch.v1.DispatchService/Subscribe",
            "/tandem.dispatch.v1.DispatchService/ListIncidents",
            "/tandem.dispatch.v1.RosterService/ListUnits",
            "/tandem.registry.v1.DisclosureService/ReadProtectedPerson",
            "/tandem.registry.v1.TraceService/GetTrace",
        } <= answered, "there was something to be given away"

        # Nor does the console: a desk's map has its own units, and never the other agency's.
        assert found_in(console["police"]) >= {"stream"} and found_in(console["probation"]) == set()
        for role in ("police", "probation"):
            own = [f"{degrees:.5f}"[:-1].encode() for place in UNITS[role].values() for degrees in place]
            text = b"".join(console[role]["stream"])
            assert all(one in text for one in own), role
            assert {name for name in UNITS[role] if f'"unit {name}"'.encode() in text} == set(UNITS[role])

        every = {f"/{method.containing_service.full_name}/{method.name}" for method in methods()}
        for who in (DESKS["probation"], MOJ_RECORDS):
            assert set(seen[who].heard) == every
            assert found_in(seen[who].heard) == set()
            figures = {name: value for message in seen[who].messages for name, value in numbers(message)}
            assert not {name for name in figures if "distance" in name or "probability" in name}, figures

    for log in (mesh.folder / "logs").glob("*.log"):
        lines = log.read_bytes()
        assert not [marker for marker in markers() if marker in lines], log
    async with asyncio.timeout(PATIENCE_S):
        while not any(span.name.startswith("police") for _, span in taken.spans()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    spans = [span.SerializeToString() for _, span in taken.spans()]
    assert spans and not [span for span in spans if any(marker in span for marker in markers())]

"""Access control by tokens, certificates and roles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pool, empty_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.errors import Unauthenticated
from services.common.priority import PriorityGate
from services.common.rpc import client as mutual
from services.common.rpc import gatekeeper
from services.common.rpc import server as rpc
from services.common.rpc.history import HistoryBudget
from services.common.rpc.identity import Caller, caller_of, console_user, sign_dev_token, verify_dev_token
from services.common.settings import CommonSettings
from tandem.common.v1 import access_pb2
from tandem.registry.v1 import registry_pb2, registry_pb2_grpc, review_pb2
from tests.support.common.certificates import Authority, Identity
from tests.support.common.methods import methods

SECRET = "secret-of-this-test"
MOJ, NPA = "spiffe://moj/records", "spiffe://npa/records"
SERVICE = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name
MADE_UP = "/tandem.registry.v1.RegistryService/DropEverything"
FOREIGN = "/tandem.madeup.v1.MadeUpService/Call"
CALL_S = 10


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """A registry with one unary method and one stream, whose answers show that a call was admitted."""

    async def PutWearer(self, request: registry_pb2.PutWearerRequest, context: Any) -> registry_pb2.PutWearerResponse:
        assert rpc.caller().role == access_pb2.ROLE_MOJ_RECORDS
        return registry_pb2.PutWearerResponse(outcome=registry_pb2.STORED)

    async def WatchMatches(
        self, request: registry_pb2.WatchMatchesRequest, context: Any
    ) -> AsyncIterator[registry_pb2.WatchMatchesResponse]:
        yield registry_pb2.WatchMatchesResponse(sequence=1, order_id=rpc.caller().spiffe_id)


async def _answer(request: empty_pb2.Empty, context: Any) -> empty_pb2.Empty:
    return request


def add(server: grpc.aio.Server) -> None:
    """Adds the registry and methods that are in no proto."""
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(Registry(), server)  # type: ignore[abstract]
    for method in (MADE_UP, FOREIGN):
        service, name = method[1:].split("/")
        handler = grpc.unary_unary_rpc_method_handler(
            _answer, empty_pb2.Empty.FromString, empty_pb2.Empty.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a plaintext server on loopback."""
    settings = CommonSettings(port=0, dev_secret=SECRET)
    async with (
        rpc.serve(settings, add, history=HistoryBudget(PriorityGate())) as server,
        rpc.channel(f"127.0.0.1:{server.port}") as opened,
    ):
        yield opened


async def put(channel: grpc.aio.Channel, metadata: Any = None) -> grpc.StatusCode:
    """Status of a unary call that only the Ministry's records system may make."""
    stub = registry_pb2_grpc.RegistryServiceStub(channel)
    try:
        await stub.PutWearer(registry_pb2.PutWearerRequest(), metadata=metadata, timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def watch(channel: grpc.aio.Channel, metadata: Any = None) -> grpc.StatusCode:
    """Status of a stream that the records systems of both agencies may open."""
    stub = registry_pb2_grpc.RegistryServiceStub(channel)
    try:
        async for _ in stub.WatchMatches(registry_pb2.WatchMatchesRequest(), metadata=metadata, timeout=CALL_S):
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


# ── readers of the history ───────────────────────────────────────────────────────────────────────────────────────────


class SlowReviews(Registry):
    """A registry whose reviews are listed when the test allows it."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()

    async def ListReviews(self, request: review_pb2.ListReviewsRequest, context: Any) -> review_pb2.ListReviewsResponse:
        await self.may_answer.wait()
        return review_pb2.ListReviewsResponse()


async def test_a_reader_beyond_its_budget_gets_the_time_of_a_retry_and_delays_no_other_call() -> None:
    servicer, budget = SlowReviews(), HistoryBudget(PriorityGate())  # type: ignore[abstract]

    def add_slow(server: grpc.aio.Server) -> None:
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)

    settings, moj = CommonSettings(port=0, dev_secret=SECRET), rpc.bearer(MOJ, SECRET)
    async with (
        rpc.serve(settings, add_slow, history=budget) as server,
        rpc.channel(f"127.0.0.1:{server.port}") as opened,
    ):
        stub = registry_pb2_grpc.RegistryServiceStub(opened)
        calls = [stub.ListReviews(review_pb2.ListReviewsRequest(), metadata=moj) for _ in range(9)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with asyncio.timeout(60):
                await asyncio.gather(*calls)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        sent = dict(refused.value.trailing_metadata())["grpc-status-details-bin"]
        assert isinstance(sent, bytes)
        retry = error_details_pb2.RetryInfo()
        assert status_pb2.Status.FromString(sent).details[0].Unpack(retry) and retry.retry_delay.seconds >= 1
        assert await put(opened, moj) is grpc.StatusCode.OK
        servicer.may_answer.set()
        await asyncio.gather(*calls, return_exceptions=True)
        assert await stub.ListReviews(review_pb2.ListReviewsRequest(), metadata=moj, timeout=CALL_S) is not None


def test_the_methods_that_read_the_history_say_so() -> None:
    paths = [f"/{method.containing_service.full_name}/{method.name}" for method in methods()]
    reading = {path for path in paths if gatekeeper.reads_history(path)}
    assert {
        "/tandem.dispatch.v1.DispatchService/ListIncidents",
        "/tandem.dispatch.v1.EvidenceService/ReadEvidence",
        "/tandem.dispatch.v1.EvidenceService/DownloadEvidence",
        "/tandem.registry.v1.TraceService/GetTrace",
    } <= reading
    assert not gatekeeper.reads_history(MADE_UP)
    names = ("Report", "Acknowledge", "Subscribe", "Receive", "Progress", "WatchAlerts", "SendCommand")
    assert not [method for method in reading if method.rpartition("/")[2] in names]


# ── tokens and roles ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_token_admits_the_calls_of_its_role(channel: grpc.aio.Channel) -> None:
    assert await put(channel, rpc.bearer(MOJ, SECRET)) is grpc.StatusCode.OK
    assert await watch(channel, rpc.bearer(MOJ, SECRET)) is grpc.StatusCode.OK
    assert await watch(channel, rpc.bearer(NPA, SECRET)) is grpc.StatusCode.OK


NO_TOKENS = {
    "none": None,
    "empty": bearer(""),
    "rubbish": bearer("rubbish!"),
    "the id alone": bearer(MOJ),
    "another scheme": (("authorization", f"Basic {sign_dev_token(MOJ, SECRET)}"),),
    "another mesh's": rpc.bearer(MOJ, "another secret"),
    "signed with nothing": rpc.bearer(MOJ, ""),
    "another id, the same signature": bearer(sign_dev_token(NPA, SECRET)[:28] + sign_dev_token(MOJ, SECRET)[28:]),
    "an id without a role": rpc.bearer("spiffe://moj/visitors", SECRET),
    "an id with more behind it": rpc.bearer(f"{MOJ}/more", SECRET),
    "no id": rpc.bearer("", SECRET),
}


@pytest.mark.parametrize("what", NO_TOKENS)
async def test_a_caller_without_a_valid_token_is_unauthenticated(channel: grpc.aio.Channel, what: str) -> None:
    for call in (put, watch):
        assert await call(channel, NO_TOKENS[what]) is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("who", [NPA, "spiffe://vendor/v", "spiffe://tandem/operator/o", "spiffe://moj/desk/seoul"])
async def test_another_role_is_denied(channel: grpc.aio.Channel, who: str) -> None:
    assert await put(channel, rpc.bearer(who, SECRET)) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_stream_is_denied_before_its_first_answer(channel: grpc.aio.Channel) -> None:
    assert await watch(channel, rpc.bearer("spiffe://vendor/v", SECRET)) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("method", [MADE_UP, FOREIGN])
async def test_a_method_without_roles_is_closed_to_all_callers(channel: grpc.aio.Channel, method: str) -> None:
    assert gatekeeper.allowed_roles(method) == frozenset()
    call: Any = channel.unary_unary(method, empty_pb2.Empty.SerializeToString, empty_pb2.Empty.FromString)
    for who in (MOJ, NPA, "spiffe://vendor/v", "spiffe://tandem/operator/o", "spiffe://tandem/reviewer/r"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(empty_pb2.Empty(), metadata=rpc.bearer(who, SECRET), timeout=CALL_S)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(empty_pb2.Empty(), timeout=CALL_S)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_health_and_reflection_are_open(channel: grpc.aio.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING, "the service hasn't said that it is ready"
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    listed = [
        service.name
        async for answer in reflection.ServerReflectionInfo(requests)
        for service in answer.list_services_response.service
    ]
    assert SERVICE in listed and "grpc.health.v1.Health" in listed


def test_without_a_secret_no_token_is_valid() -> None:
    with pytest.raises(Unauthenticated):
        verify_dev_token(sign_dev_token(MOJ, ""), "")


async def test_streams_of_open_methods_are_limited(channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(gatekeeper.MAX_OPEN_STREAMS)]
    for stream in watching:
        await stream.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Watch(health_pb2.HealthCheckRequest()).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S)).status  # unary calls are still admitted
    for stream in watching:
        stream.cancel()


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name)
def test_every_method_names_its_allowed_roles(method: MethodDescriptor) -> None:
    roles = gatekeeper.allowed_roles(f"/{method.containing_service.full_name}/{method.name}")
    assert roles and access_pb2.ROLE_UNSPECIFIED not in roles
    assert roles < set(access_pb2.Role.values()), "no method is open to all roles"


FURTHER_SERVICES = {
    "registry": "Cctv DeviceToken Disclosure Enrolment Exercise Finding MatchReview Notice OrderExtension Party PresenceUnit"
    " RecordSearch TagRecord Trace",
    "ingest": "Battery Command",
    "geofence": "DeviceState Position RegionMap",
    "dispatch": "Afterwards Contact Evidence Following Handover Note OrderBurden PhoneNotice PhoneState Roster Statistics UnitDuty",
}
"""Services by package, beside the one that has the package's name."""


def test_the_check_of_roles_covers_all_services() -> None:
    services = {method.containing_service.full_name for method in methods()}
    assert services == {
        f"tandem.{name}.v1.{name.capitalize()}Service" for name in ("registry", "ingest", "geofence", "dispatch")
    } | {f"tandem.{package}.v1.{name}Service" for package, names in FURTHER_SERVICES.items() for name in names.split()}
    assert all(descriptor_pool.Default().FindServiceByName(service) for service in services)


# ── certificates ─────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def serving(folder: Path, authority: Authority) -> AsyncIterator[int]:
    """Port of a server with an authority's certificates, which are written to `folder`."""
    cert, key = authority.server().write(folder, "server")
    (folder / "ca.pem").write_bytes(authority.cert)
    settings = CommonSettings(port=0, tls_cert=cert, tls_key=key, tls_ca=folder / "ca.pem")
    async with rpc.serve(settings, add, history=HistoryBudget(PriorityGate())) as server:
        yield server.port


@asynccontextmanager
async def secured(port: int, authority: Authority, client: Identity | None) -> AsyncIterator[grpc.aio.Channel]:
    """A new connection from a client that trusts an authority."""
    credentials = grpc.ssl_channel_credentials(
        authority.cert, client.key if client else None, client.cert if client else None
    )
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        yield channel


async def test_a_certificate_proves_the_caller(tmp_path: Path) -> None:
    authority = Authority("mesh")
    async with serving(tmp_path, authority) as port:
        async with secured(port, authority, authority.client(MOJ)) as channel:
            assert await put(channel) is grpc.StatusCode.OK
        async with secured(port, authority, authority.client(NPA)) as channel:
            assert await put(channel) is grpc.StatusCode.PERMISSION_DENIED
            assert await watch(channel) is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("spiffe_id", "name", "known_as"),
    [
        ("spiffe://npa/desk/console", "kim", "spiffe://npa/desk/console/kim"),
        ("spiffe://tandem/reviewer/console", "kim", "spiffe://tandem/reviewer/console/kim"),
        ("spiffe://npa/desk/console", "kim/../lee", ""),
        ("spiffe://npa/desk/console", "", ""),
        ("spiffe://npa/desk/seoul", "kim", ""),
        ("spiffe://npa/desk/console/lee", "kim", ""),
        ("spiffe://vendor/console", "kim", ""),
        ("spiffe://moj/records", "kim", ""),
    ],
)
async def test_only_a_console_may_call_on_behalf_of_a_person(
    tmp_path: Path, spiffe_id: str, name: str, known_as: str
) -> None:
    authority = Authority("mesh")
    async with (
        serving(tmp_path, authority) as port,
        secured(port, authority, authority.client(spiffe_id)) as channel,
    ):
        # A valid console user is authenticated, but its role may not call the method.
        refused = grpc.StatusCode.PERMISSION_DENIED if known_as else grpc.StatusCode.UNAUTHENTICATED
        assert await put(channel, rpc.on_behalf_of(name)) is refused
    if known_as:
        console = caller_of(spiffe_id)
        assert console_user(console, name) == caller_of(known_as) == Caller(known_as, console.role)


async def test_a_service_calls_another_with_its_own_certificate(tmp_path: Path) -> None:
    authority = Authority("mesh")
    async with serving(tmp_path, authority) as port:
        cert, key = authority.client(MOJ).write(tmp_path, "caller")
        settings = CommonSettings(port=0, tls_cert=cert, tls_key=key, tls_ca=tmp_path / "ca.pem")
        async with mutual.connection(settings, f"127.0.0.1:{port}", "spiffe://of/no-use") as (channel, metadata):
            assert await put(channel, metadata) is grpc.StatusCode.OK


@pytest.mark.parametrize("ids", [("spiffe://moj/visitors",), (), (MOJ, NPA), ("https://moj/records",)], ids=str)
async def test_a_certificate_without_exactly_one_known_id_is_unauthenticated(
    tmp_path: Path, ids: tuple[str, ...]
) -> None:
    authority = Authority("mesh")
    async with serving(tmp_path, authority) as port, secured(port, authority, authority.client(*ids)) as channel:
        assert await put(channel) is grpc.StatusCode.UNAUTHENTICATED
        assert await put(channel, rpc.bearer(MOJ, "")) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_client_without_a_trusted_certificate_cannot_connect(tmp_path: Path) -> None:
    authority = Authority("mesh")
    async with serving(tmp_path, authority) as port:
        for client in (None, Authority("mesh").client(MOJ)):
            async with secured(port, authority, client) as channel:
                assert await put(channel, rpc.bearer(MOJ, SECRET)) is grpc.StatusCode.UNAVAILABLE
        async with rpc.channel(f"127.0.0.1:{port}") as plain:
            assert await put(plain) is grpc.StatusCode.UNAVAILABLE


async def test_a_client_rejects_a_server_of_another_authority(tmp_path: Path) -> None:
    authority = Authority("mesh")
    async with (
        serving(tmp_path, authority) as port,
        secured(port, Authority("mesh"), authority.client(MOJ)) as channel,
    ):
        assert await put(channel) is grpc.StatusCode.UNAVAILABLE


async def test_replaced_certificates_apply_to_new_connections(tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")
    async with serving(tmp_path, old) as port, secured(port, old, old.client(MOJ)) as before:
        assert await put(before) is grpc.StatusCode.OK
        new.server().write(tmp_path, "server")
        (tmp_path / "ca.pem").write_bytes(new.cert)
        async with secured(port, new, new.client(MOJ)) as after:
            assert await put(after) is grpc.StatusCode.OK
        async with secured(port, old, old.client(MOJ)) as late:
            assert await put(late) is grpc.StatusCode.UNAVAILABLE
        assert await put(before) is grpc.StatusCode.OK, "an open connection stays open"


async def test_a_key_without_its_certificate_admits_no_stranger(tmp_path: Path) -> None:
    authority = Authority("mesh")
    async with serving(tmp_path, authority) as port:
        renewed = authority.server()
        (tmp_path / "server.key").write_bytes(renewed.key)
        async with secured(port, authority, Authority("other").client(MOJ)) as stranger:
            assert await put(stranger) is grpc.StatusCode.UNAVAILABLE
        renewed.write(tmp_path, "server")
        async with secured(port, authority, authority.client(MOJ)) as channel:
            assert await put(channel) is grpc.StatusCode.OK

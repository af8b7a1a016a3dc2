"""Mutual TLS: refused certificates, and certificates that are replaced under load without a failed call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from services.common.certificates import Files, files_of, spiffe_id
from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, Unavailable
from services.common.messaging import bus as buses
from services.common.messaging import flow, streams
from services.common.messaging.permissions import SERVICE
from services.common.priority import PriorityGate
from services.common.rpc import client
from services.common.rpc import server as rpc
from services.common.rpc.history import HistoryBudget
from services.common.settings import CommonSettings
from services.local import authority, nats_server
from services.local import authority as authorities
from tandem.registry.v1 import registry_pb2, registry_pb2_grpc
from tests.support.common.certificates import Authority, Identity
from tests.support.common.nats import TestServer

MOJ, NPA = "spiffe://moj/records", "spiffe://npa/records"
REGISTRY = f"{SERVICE}registry"
CALL_S = 10
WORKERS = 8


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """A registry that accepts every wearer."""

    async def PutWearer(self, request: registry_pb2.PutWearerRequest, context: Any) -> registry_pb2.PutWearerResponse:
        return registry_pb2.PutWearerResponse(outcome=registry_pb2.STORED)


def add(server: grpc.aio.Server) -> None:
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(Registry(), server)  # type: ignore[abstract]


def put_into(folder: Path, spiffe_id: str, identity: Identity, trusted: bytes) -> Files:
    """Writes an identity's files one by one. That is harder for readers than a Secret, which is replaced as a whole."""
    return authorities.write(folder, spiffe_id, authorities.Identity(identity.key, identity.cert), trusted=trusted)


@asynccontextmanager
async def serving(folder: Path, authority: Authority, trusted: bytes = b"") -> AsyncIterator[int]:
    files = put_into(folder, REGISTRY, authority.service(REGISTRY), trusted or authority.cert)
    settings = CommonSettings(port=0, tls_cert=files.cert, tls_key=files.key, tls_ca=files.authority)
    async with rpc.serve(settings, add, history=HistoryBudget(PriorityGate())) as server:
        yield server.port


async def put(port: int, folder: Path, who: str) -> grpc.StatusCode:
    """Status of a call over a new channel with the files of an identity."""
    async with client.channel(f"127.0.0.1:{port}", lambda identity: files_of(folder, identity), who) as channel:
        return await _put(channel)


async def _put(channel: grpc.aio.Channel) -> grpc.StatusCode:
    try:
        await registry_pb2_grpc.RegistryServiceStub(channel).PutWearer(registry_pb2.PutWearerRequest(), timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


# ── refused certificates ─────────────────────────────────────────────────────────────────────────────────────────────

LONG_AGO = datetime.now(UTC) - timedelta(days=2)
SOON = datetime.now(UTC) + timedelta(days=2)


@pytest.mark.parametrize(
    ("who", "since", "status"),
    [
        (MOJ, None, grpc.StatusCode.OK),
        (MOJ, LONG_AGO, grpc.StatusCode.UNAVAILABLE),
        (MOJ, SOON, grpc.StatusCode.UNAVAILABLE),
        ("spiffe://moj/visitors", None, grpc.StatusCode.UNAUTHENTICATED),
        ("spiffe://somewhere/records", None, grpc.StatusCode.UNAUTHENTICATED),
        (NPA, None, grpc.StatusCode.PERMISSION_DENIED),
        (f"{SERVICE}ingest", None, grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_a_certificate_is_refused_for_its_validity_its_id_or_its_role(
    tmp_path: Path, who: str, since: datetime | None, status: grpc.StatusCode
) -> None:
    authority = Authority("mesh")
    put_into(tmp_path, who, authority.client(who, since=since), authority.cert)
    async with serving(tmp_path, authority) as port:
        assert await put(port, tmp_path, who) is status


async def test_an_agencys_authority_may_certify_only_its_own_clients(tmp_path: Path) -> None:
    mesh, moj = Authority("mesh"), Authority("moj", "moj")
    put_into(tmp_path, MOJ, moj.client(MOJ), mesh.cert)
    put_into(tmp_path, NPA, moj.client(NPA), mesh.cert)
    put_into(tmp_path, REGISTRY, mesh.service(REGISTRY), mesh.cert)
    async with serving(tmp_path, mesh, trusted=mesh.cert + moj.cert) as port:
        assert await put(port, tmp_path, MOJ) is grpc.StatusCode.OK
        assert await put(port, tmp_path, NPA) is grpc.StatusCode.UNAVAILABLE, "the authority may not certify the police"
        put_into(tmp_path, MOJ, moj.service(MOJ), mesh.cert)
        assert await put(port, tmp_path, MOJ) is grpc.StatusCode.UNAVAILABLE, (
            "the authority may not certify hosts either, because nats-server reads users from host names"
        )


def test_a_certificate_without_exactly_one_spiffe_id_is_refused(tmp_path: Path) -> None:
    authority = Authority("mesh")
    for n, ids in enumerate([(), (MOJ, NPA), ("https://moj/records",)]):
        cert, _ = authority.client(*ids).write(tmp_path, str(n))
        with pytest.raises(FailedPrecondition, match="one SPIFFE id"):
            spiffe_id(cert)


# ── replacement under load ───────────────────────────────────────────────────────────────────────────────────────────


async def test_all_certificates_are_replaced_under_load_and_old_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CHECK_INTERVAL_S", 0.05)
    old, new = Authority("old"), Authority("new")
    stale = tmp_path / "stale"
    put_into(tmp_path, MOJ, old.client(MOJ), old.cert)
    put_into(stale, MOJ, old.client(MOJ), old.cert + new.cert)
    done, failed = [0] * WORKERS, list[grpc.StatusCode]()
    async with serving(tmp_path, old) as port:

        async def work(channel: grpc.aio.Channel, number: int) -> None:
            while True:
                status = await _put(channel)
                if status is grpc.StatusCode.UNAVAILABLE:  # one retry, as every caller of the mesh makes
                    status = await _put(channel)
                if status is not grpc.StatusCode.OK:
                    failed.append(status)
                done[number] += 1

        async def until_all_workers_called() -> None:
            before = list(done)
            async with asyncio.timeout(30):
                while any(now < then + 20 for now, then in zip(done, before, strict=True)):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        async with client.channel(f"127.0.0.1:{port}", lambda identity: files_of(tmp_path, identity), MOJ) as channel:
            workers = [asyncio.create_task(work(channel, number)) for number in range(WORKERS)]
            await until_all_workers_called()
            both = old.cert + new.cert
            for who, identity, trusted in (
                (REGISTRY, old.service(REGISTRY), both),
                (MOJ, old.client(MOJ), both),
                (REGISTRY, new.service(REGISTRY), both),
                (MOJ, new.client(MOJ), both),
                (MOJ, new.client(MOJ), new.cert),
                (REGISTRY, new.service(REGISTRY), new.cert),
            ):
                put_into(tmp_path, who, identity, trusted)
                await until_all_workers_called()
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        assert failed == []
        assert await put(port, tmp_path, MOJ) is grpc.StatusCode.OK
        assert await put(port, stale, MOJ) is grpc.StatusCode.UNAVAILABLE


# ── NATS ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def identities(folder: Path, authority: Authority, users: Iterable[str], trusted: bytes) -> None:
    for user in users:
        put_into(folder, SERVICE + user, authority.service(SERVICE + user), trusted)


async def test_nats_users_authenticate_by_certificate_and_renew_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buses, "CERTIFICATE_INTERVAL_S", 0.1)
    old = Authority("old")
    new = Authority("new")
    other = Authority("other")
    certs = tmp_path / "certs"
    identities(certs, old, ("nats", "setup", "ingest", "registry"), old.cert + new.cert)
    server = TestServer(tmp_path / "nats", certs)
    server.start()
    try:
        async with server.bus_as("setup") as setup:
            await streams.create(setup, 1, MeshClock(), max_bytes=64 << 20)
        async with server.bus_as("ingest") as ingest:
            await ingest.publish("log.0.report", b"")
            with pytest.raises(Unavailable):
                await ingest.publish("log.0.case", b"")
            connected = ingest.client.stats["reconnects"]
            identities(certs, new, ("ingest",), old.cert + new.cert)
            async with asyncio.timeout(20):
                while ingest.client.stats["reconnects"] == connected:  # noqa: ASYNC110  # the client has no event for it
                    await asyncio.sleep(0.02)
            await ingest.publish_until_stored("log.0.report", b"", msg_id="after")
        identities(certs, other, ("registry",), old.cert)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2), server.bus_as("registry"):
                pass
    finally:
        server.kill()


def test_every_user_of_the_server_gets_a_certificate(tmp_path: Path) -> None:
    authority.issue(tmp_path, authority.SERVERS, authority.LOOPBACK, lifetime=timedelta(days=1))
    issued = {spiffe_id(files_of(tmp_path, SERVICE + user).cert) for user in (*flow.USERS, "nats")}
    assert issued == {SERVICE + user for user in flow.USERS} | {nats_server.SERVER_IDENTITY}

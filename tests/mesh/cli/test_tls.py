"""`tandem up --tls`: a whole mesh that authenticates by certificates only, for gRPC and NATS."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from subprocess import CompletedProcess

import aiohttp
import grpc
import grpc.aio
import pytest

from services.client import mesh as meshes
from services.client.actors import NPA_RECORDS
from services.client.calls import call
from services.client.demo import new_plan
from services.common.certificates import AUTHORITY, client_context, files_of
from services.common.failure import CommandFailed
from services.common.messaging import flow, pull
from services.common.rpc import server
from services.common.rpc.identity import CONSOLES, FIELD
from services.local import authority, checkup
from services.local.checkup import CheckVerdict
from tandem.common.v1 import ledger_pb2
from tandem.registry.v1 import registry_pb2, registry_pb2_grpc
from tests.support.common.mesh import RunningMesh, running_mesh, tandem
from tests.support.common.ports import free_port
from tests.support.console.console import visiting
from tests.support.console.identity_provider import identity_provider, settings_at
from tests.support.field.phone import phone, position
from tests.support.field.scene import until


@pytest.fixture(scope="module")
def provider_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, provider_port: int) -> Iterator[RunningMesh]:
    settings = {**settings_at(provider_port), "TANDEM_CONSOLE_ROLE": "police"}
    folder = tmp_path_factory.mktemp("tls") / "mesh"
    # No faster clock: the probation leg checks for pursuits once per second of wall time, and the incident must last that long.
    with running_mesh(folder, "--tls", "--clock-rate", "2", settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def demo(mesh: RunningMesh) -> CompletedProcess[str]:
    return tandem("demo", "--dir", str(mesh.folder), "--json", timeout_s=110)


def test_the_demo_succeeds_and_both_legs_answer(mesh: RunningMesh, demo: CompletedProcess[str]) -> None:
    assert demo.returncode == 0, demo.stderr
    logs = {path.stem: path.read_text() for path in (mesh.folder / "logs").iterdir()}
    for name in mesh.now.addresses:
        served = [json.loads(line) for line in logs[name].splitlines() if '"event": "listening"' in line]
        assert next(record for record in served if "endpoint" not in record)["tls"], name
        assert "nats_refused" not in logs[name] and "call_refused" not in logs[name]
    # Legs call other services with their own certificates.
    assert "pursuit_commanded" in logs["dispatch-probation"] and "pursuit_failed" not in logs["dispatch-probation"]
    for leg in ("dispatch-probation", "dispatch-police"):
        assert '"code": "UNAUTHENTICATED"' not in logs[leg] and '"code": "PERMISSION_DENIED"' not in logs[leg]


async def test_the_ledger_names_the_person_signed_in_to_the_console(
    mesh: RunningMesh, demo: CompletedProcess[str], provider_port: int
) -> None:
    trusted = ssl.create_default_context(cafile=mesh.folder / "certs" / AUTHORITY)
    async with identity_provider(provider_port) as provider, visiting(mesh.now.console_url, trusted) as kim:
        provider.person = {"preferred_username": "kim", "roles": ["npa-112"]}
        assert (await kim.come_back())[0] == 200
        found = re.search(r"/incidents/([a-z0-9.-]+)", await kim.read("/search?cause=RING_ENTERED"))
        assert found
        await kim.read(f"/incidents/{found[1]}")
        grounds = {"legal_basis": "STALKING_9_1_3_2", "purpose": "AUDIT"}
        async with asyncio.timeout(40):
            while (status := (await kim.post(f"/incidents/{found[1]}", **grounds))[0]) == 404:  # noqa: ASYNC110 - not copied yet
                await asyncio.sleep(0.5)
        assert status == 200
    async with mesh.now.nats.bus_as("registry") as bus:
        last = (await bus.bounds_of(flow.DISCLOSURES.name)).last
        async with asyncio.timeout(20):
            async for messages in pull.read(bus, flow.DISCLOSURES.name, 1):
                rows = [ledger_pb2.Disclosure.FromString(message.data) for message in messages]
                if any((row.who, row.reference) == ("spiffe://npa/desk/console/kim", found[1]) for row in rows):
                    return
                assert messages[-1].sequence < last


async def test_a_report_of_her_phone_goes_by_mutual_tls_to_a_port_that_serves_field_alone(mesh: RunningMesh) -> None:
    now, authority = mesh.now, mesh.folder / "certs" / AUTHORITY
    async with meshes.connect(now) as clients:
        npa, plan = clients.identity(NPA_RECORDS), new_plan()
        person = registry_pb2.ProtectedPerson(person_id=plan.id("person"), name="Her", source_version=1)
        device = registry_pb2.Device(device_id=plan.id("phone"), person_id=person.person_id, source_version=1)
        await call(
            clients.registry.PutProtectedPerson, registry_pb2.PutProtectedPersonRequest(protected_person=person), npa
        )
        await call(clients.registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)
    code = tandem("enrol", device.device_id, "--dir", str(mesh.folder)).stdout
    found = re.search(r"[A-Z0-9]{4}-[A-Z0-9]{4}-[A-Z0-9]{4}", code)
    assert found, code
    trusted = ssl.create_default_context(cafile=authority)
    async with phone(now.field_url, trusted) as hers:
        assert (await hers.enrol(found[0])).status == 200

        async def stored() -> bool:
            answer = await hers.report(position(1, 37.6, 127.2))
            return bool(answer.content["results"][0]["outcome"] == "stored")

        await until(stored)
    host, _, port = now.addresses["ingest"].rpartition(":")
    url = f"https://{host}:{int(port) + 31}/"
    console = client_context(files_of(mesh.folder / "certs", CONSOLES["police"]))
    async with aiohttp.ClientSession() as session:
        for context in (trusted, console):
            with pytest.raises(aiohttp.ClientError):
                async with session.post(url, data={"id": device.device_id}, ssl=context):
                    pass
        field = client_context(files_of(mesh.folder / "certs", FIELD))
        async with session.post(url, data={"id": device.device_id}, ssl=field) as answer:
            assert answer.status == 401, "it needs the token of a phone, too"


async def test_a_token_is_refused_and_a_certificate_permits_its_own_methods_only(mesh: RunningMesh) -> None:
    now = mesh.now
    assert now.nats.url.startswith("tls://") and not now.nats.passwords and not now.dev_secret
    request = registry_pb2.PutWearerRequest()
    async with server.channel(now.addresses["registry"]) as plain:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await registry_pb2_grpc.RegistryServiceStub(plain).PutWearer(
                request, metadata=server.bearer("spiffe://moj/records", ""), timeout=10
            )
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    async with meshes.connect(now) as clients:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(clients.registry.PutWearer, request, clients.identity(NPA_RECORDS))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(CommandFailed, match="tandem certs --dir"):
            await call(clients.registry.PutWearer, request, clients.identity("spiffe://moj/desk/elsewhere"))
    async with now.nats.bus_as("explain") as bus:
        assert (await bus.bounds_of(flow.log_stream(0))).last > 0


def test_keys_are_readable_by_their_owner_only(mesh: RunningMesh) -> None:
    keys = list((mesh.folder / "certs").rglob("*.key"))
    assert len(keys) > len(flow.USERS)
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_a_vendors_certificate_is_issued_on_demand(tmp_path: Path) -> None:
    issued = tandem("certs", "spiffe://vendor/acme", "--dir", str(tmp_path))
    assert (issued.returncode, issued.stdout) == (0, f"spiffe://vendor/acme  {tmp_path / 'vendor-acme'}\n")
    assert all(file.exists() for file in files_of(tmp_path, "spiffe://vendor/acme"))
    refused = tandem("certs", "acme", "--dir", str(tmp_path))
    assert (refused.returncode, refused.stderr) == (2, "acme: isn't a SPIFFE id (example: spiffe://moj/desk/seoul)\n")


def test_the_doctor_names_the_command_that_renews_a_certificate(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    authority.issue(folder, ("spiffe://vendor/acme",), (), lifetime=timedelta(days=2, hours=1))
    [finding] = checkup.certificates(folder)
    command = re.search(
        r"vendor-acme: 2\.0 days left; run `tandem (certs --dir \S+ spiffe://vendor/acme)`", finding.text
    )
    assert finding.verdict is CheckVerdict.WARNING and command
    assert tandem(*command[1].split()).returncode == 0
    assert [found.verdict for found in checkup.certificates(folder)] == [CheckVerdict.GOOD]
    (folder / "vendor-acme" / "tls.crt").write_text("torn")
    torn = next(checkup.certificates(folder))
    assert torn.verdict is CheckVerdict.BAD and f"run `tandem certs --dir {folder}`" in torn.text


async def test_each_process_says_how_long_its_certificates_last(mesh: RunningMesh) -> None:
    async with aiohttp.ClientSession() as session:
        for name, url in mesh.now.metrics_urls.items():
            async with session.get(f"{url}/metrics") as answer:
                lines = re.findall(
                    r'^tandem_certificate_remaining_seconds\{certificate="(\w+)"\} (\S+)$', await answer.text(), re.M
                )
            assert {use for use, _ in lines} == ({"mesh", "http"} if name in ("console", "field") else {"mesh"}), name
            assert all(29 < float(seconds) / 86_400 <= 30 for _, seconds in lines), name

"""`tandem device-token`, `quarantine` and `reporting` on a running mesh: tokens are issued and revoked, and refused reports and asked
intervals are listed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from services.client import mesh as meshes
from services.client.actors import DESKS, MOJ_RECORDS, NPA_RECORDS, VENDOR
from services.client.calls import call
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.common.mesh import RunningMesh, running_mesh, tandem
from tests.support.ingest.ingest import position
from tests.support.registry import records


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh") / "m") as running:
        yield running


@pytest.fixture
async def folder(mesh: RunningMesh) -> str:
    """Folder of a mesh that knows a tag and a protective device."""
    async with meshes.connect(mesh.now) as clients:
        registry = clients.registry
        moj = clients.identity(MOJ_RECORDS)
        npa = clients.identity(NPA_RECORDS)
        await call(registry.PutWearer, registry_pb2.PutWearerRequest(wearer=records.wearer()), moj)
        await call(registry.PutTag, registry_pb2.PutTagRequest(tag=records.tag()), moj)
        person = registry_pb2.PutProtectedPersonRequest(protected_person=records.person())
        await call(registry.PutProtectedPerson, person, npa)
        await call(registry.PutDevice, registry_pb2.PutDeviceRequest(device=records.device()), npa)
    return str(mesh.folder)


@pytest.mark.parametrize("device_id", ["tag-1", "app-1"])
async def test_a_token_is_printed_once_and_revoked(folder: str, device_id: str) -> None:
    tokens = set()
    for keep in ((), ("--keep-older-for-s", "60")):
        issued = tandem("device-token", device_id, *keep, "--dir", folder)
        assert issued.returncode == 0, issued.stderr
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", issued.stdout)
        tokens.add(issued.stdout.strip())
    assert len(tokens) == 2
    revoked = tandem("device-token", device_id, "--revoke", "--dir", folder)
    assert (revoked.returncode, revoked.stdout) == (0, "tokens revoked: 2\n")


@pytest.mark.parametrize("arguments", [("unknown",), ("unknown", "--revoke")])
async def test_an_unknown_device_is_refused_in_one_line(folder: str, arguments: tuple[str, ...]) -> None:
    outcome = tandem("device-token", *arguments, "--dir", folder)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr == "NOT_FOUND: device_id: no such device\n"


async def test_refused_reports_are_listed(mesh: RunningMesh, folder: str) -> None:
    nothing = tandem("quarantine", "--device", "stranger", "--dir", folder)
    assert (nothing.returncode, nothing.stdout) == (0, "no reports were refused\n")
    async with meshes.connect(mesh.now) as clients:
        request = ingest_pb2.ReportBatchRequest(positions=[position("stranger", f"r-{n}") for n in range(3)])
        await call(clients.ingest.ReportBatch, request, clients.identity(VENDOR))
    listed = json.loads(tandem("quarantine", "--device", "stranger", "--json", "--dir", folder).stdout)
    (row,) = listed["quarantined"]
    assert (row["sender"], row["reason"], row["count"]) == (VENDOR, "UNKNOWN_DEVICE", 3)
    shown = tandem("quarantine", "--dir", folder).stdout
    assert "stranger" in shown and "UNKNOWN_DEVICE" in shown


async def test_asked_intervals_are_listed(mesh: RunningMesh, folder: str) -> None:
    nothing = tandem("reporting", "--dir", folder)
    assert (nothing.returncode, nothing.stdout) == (0, "no interval is asked of any device\n")
    async with meshes.connect(mesh.now) as clients:
        every = command_pb2.ReportEvery(interval_s=60, for_s=600)
        asked = ingest_pb2.SendCommandRequest(
            command_id="cli-1",
            device_id="tag-1",
            instruction=command_pb2.Instruction(report_every=every),
            valid_for_s=600,
        )
        await call(clients.commands.SendCommand, asked, clients.identity(DESKS["probation"]))
    (row,) = json.loads(tandem("reporting", "--json", "--dir", folder).stdout)["devices"]
    (ask,) = row["asks"]
    assert (row["device_id"], row["delivery"], row["obeys"]) == ("tag-1", "WAITING", "NOT_YET")
    assert (ask["interval_s"], ask["by"]) == (60, DESKS["probation"])
    shown = tandem("reporting", "--device", "tag-1", "--dir", folder).stdout
    assert "tag-1" in shown and "NOT_YET" in shown

"""Access to a leg's copies of evidence: callers, legal grounds, and a disclosure in the ledger for each access."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import pytest

from services.client import demo
from services.client import mesh as meshes
from services.common.evidence import model
from services.common.messaging import flow, pull
from services.common.rpc import server
from tandem.common.v1 import ledger_pb2
from tandem.dispatch.v1 import dispatch_pb2, evidence_pb2, evidence_pb2_grpc
from tandem.registry.v1 import disclosure_pb2
from tests.support.common.mesh import RunningMesh, running_mesh, tandem

DESKS = {"police": "spiffe://npa/desk/kim", "probation": "spiffe://moj/desk/kim"}
REVIEWER = "spiffe://tandem/reviewer/kim"
GROUNDS = disclosure_pb2.Grounds(legal_basis="STALKING_9_1_3_2", purpose=disclosure_pb2.PURPOSE_AUDIT)
CLOCK_RATE = 60
"""Mesh time per wall time: a minute of the demo takes a second."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("evidence") / "m", "--clock-rate", str(CLOCK_RATE)) as running:
        played = tandem("demo", "--dir", str(running.folder))
        assert played.returncode == 0, played.stderr
        yield running


class EvidenceClient:
    """A caller of a leg's EvidenceService with a SPIFFE id."""

    def __init__(self, mesh: RunningMesh, leg: str, spiffe_id: str) -> None:
        self._address = mesh.now.addresses[f"dispatch-{leg}"]
        self._metadata = server.bearer(spiffe_id, mesh.now.dev_secret)

    async def read(
        self, incident_id: str, grounds: disclosure_pb2.Grounds = GROUNDS
    ) -> evidence_pb2.ReadEvidenceResponse:
        async with server.channel(self._address) as channel:
            request = evidence_pb2.ReadEvidenceRequest(incident_id=incident_id, grounds=grounds)
            stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
            return await stub.ReadEvidence(request, metadata=self._metadata, timeout=10)

    async def download(self, incident_id: str) -> bytes:
        async with server.channel(self._address) as channel:
            request = evidence_pb2.DownloadEvidenceRequest(incident_id=incident_id, grounds=GROUNDS)
            stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
            return b"".join([part.data async for part in stub.DownloadEvidence(request, metadata=self._metadata)])

    async def whole(self, incident_id: str) -> evidence_pb2.ReadEvidenceResponse:
        """Waits until the leg knows the end of the incident, and reads the evidence."""
        async with asyncio.timeout(40):
            while True:
                try:
                    if (evidence := await self.read(incident_id)).ended:
                        return evidence
                except grpc.aio.AioRpcError as error:
                    # UNAVAILABLE: the log is long for a loaded machine, and collecting goes on.
                    assert error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)
                await asyncio.sleep(0.5)


async def incident_of(mesh: RunningMesh) -> str:
    """Returns the id of the incident that had an offer."""
    async with meshes.connect(mesh.now) as clients:
        answer = await clients.legs["police"].dispatch.ListIncidents(
            dispatch_pb2.ListIncidentsRequest(), metadata=clients.identity(REVIEWER)
        )
    return next(
        incident.incident_id
        for incident in answer.incidents
        if any(to.HasField("offered_at") for to in incident.assignments)
    )


async def disclosures(mesh: RunningMesh, who: str) -> AsyncIterator[ledger_pb2.Disclosure]:
    async with mesh.now.nats.bus_as("registry") as bus:
        last = (await bus.bounds_of(flow.DISCLOSURES.name)).last
        async for message in pull.between(bus, flow.DISCLOSURES.name, 1, last=last):
            disclosure = ledger_pb2.Disclosure.FromString(message.data)
            if disclosure.who == who:
                yield disclosure


async def test_each_agency_reads_its_own_copy_and_each_access_is_in_the_ledger(mesh: RunningMesh) -> None:
    incident_id = await incident_of(mesh)
    police = await EvidenceClient(mesh, "police", DESKS["police"]).whole(incident_id)
    probation = await EvidenceClient(mesh, "probation", DESKS["probation"]).whole(incident_id)
    assert {track.of_wearer for track in police.tracks} == {True, False}
    assert [place.circle.lat_deg for case in police.cases for place in case.places] == [demo.HOME.lat_deg]
    assert {measure.alert_id for measure in police.measures} == {alert.alert_id for alert in police.alerts}
    (tag,) = probation.tracks
    assert tag.of_wearer and len(tag.points) == len(next(track for track in police.tracks if track.of_wearer).points)
    assert [point.sequence for point in tag.points] == sorted(point.sequence for point in tag.points)
    assert not probation.measures and not any(case.places or case.encounters for case in probation.cases)
    assert not any(person.device_ids for case in probation.cases for person in case.persons)
    assert {alert.alert_id for alert in probation.alerts} <= {alert.alert_id for alert in police.alerts}
    for who, kinds in ((DESKS["police"], {"WEARER", "PROTECTED_PERSON"}), (DESKS["probation"], {"WEARER"})):
        rows = [disclosure async for disclosure in disclosures(mesh, who)]
        assert {row.record_kind for row in rows} == kinds
        assert {(row.legal_basis, row.purpose, row.reference) for row in rows} == {
            ("STALKING_9_1_3_2", "AUDIT", incident_id)
        }


async def test_a_download_is_the_copy_line_by_line(mesh: RunningMesh) -> None:
    incident_id = await incident_of(mesh)
    data = await EvidenceClient(mesh, "police", REVIEWER).download(incident_id)
    evidence = model.of_bytes(data)
    assert evidence.incident_id == incident_id and evidence.leg == "police"
    assert json.loads(data.splitlines()[1])["sha256"]


@pytest.mark.parametrize(
    ("leg", "who", "grounds", "code"),
    [
        ("police", DESKS["probation"], GROUNDS, grpc.StatusCode.PERMISSION_DENIED),
        ("probation", DESKS["police"], GROUNDS, grpc.StatusCode.PERMISSION_DENIED),
        ("warning", REVIEWER, GROUNDS, grpc.StatusCode.PERMISSION_DENIED),
        ("police", "spiffe://tandem/operator/kim", GROUNDS, grpc.StatusCode.PERMISSION_DENIED),
        ("police", REVIEWER, disclosure_pb2.Grounds(), grpc.StatusCode.INVALID_ARGUMENT),
        (
            "police",
            REVIEWER,
            disclosure_pb2.Grounds(
                legal_basis="TAG_16_2", purpose=disclosure_pb2.PURPOSE_AUDIT
            ),  # permits the wearer's records only
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
)
async def test_a_caller_without_permission_or_grounds_reads_nothing(
    mesh: RunningMesh, leg: str, who: str, grounds: disclosure_pb2.Grounds, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await EvidenceClient(mesh, leg, who).read(await incident_of(mesh), grounds)
    assert caught.value.code() is code


async def test_an_unknown_incident_is_refused(mesh: RunningMesh) -> None:
    for incident_id, code in (
        ("incident-of-nobody", grpc.StatusCode.NOT_FOUND),
        ("../../dev_secret", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EvidenceClient(mesh, "police", REVIEWER).read(incident_id)
        assert caught.value.code() is code

"""The demo's incident on a whole mesh, with the evidence bundles that are made of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.common.evidence import model
from services.common.evidence.collector import EvidenceFiles
from services.court.evidence import archive, leg_records
from services.court.evidence.archive import BLOCK, CorruptArchive
from tandem.common.v1 import log_pb2
from tests.support.common.mesh import RunningMesh, running_mesh, tandem
from tests.support.console.console import Visitor, visiting

BASIS = ("--legal-basis", "STALKING_9_1_3_2", "--recipient", "spiffe://npa/desk/seoul", "--reviewer", "lee")


@dataclass(frozen=True, slots=True)
class Made:
    """The demo's incident and its bundles."""

    mesh: RunningMesh
    incident_id: str
    alert_ids: list[str]
    police: Path
    probation: Path
    public_key: Path

    def kept(self, leg: str) -> EvidenceFiles:
        """The evidence files that a leg keeps."""
        return EvidenceFiles(self.mesh.folder / "data" / f"dispatch-{leg}" / f"evidence-{leg}")


@contextmanager
def made_of_the_demo(folder: Path) -> Iterator[Made]:
    """Plays the demo on a mesh in the folder, and makes the bundles of both agencies.

    The rate leaves each report 0.5 s on its way, before the clock decides in its place: a busy machine needs that.
    """
    with running_mesh(folder / "m", "--clock-rate", "20") as mesh:
        played = tandem("demo", "--dir", str(mesh.folder))
        assert played.returncode == 0, played.stderr
        listed = json.loads(tandem("incidents", "--dir", str(mesh.folder), "--json").stdout)["incidents"]
        incident_id = next(incident["incident_id"] for incident in listed if len(incident["legs"]) == 3)
        police, probation = folder / "police.tar", folder / "probation.tar"
        for leg, path in (("police", police), ("probation", probation)):
            outcome = tandem(
                *("evidence", incident_id, "--dir", str(mesh.folder), "--leg", leg, *BASIS, "--out", str(path))
            )
            assert outcome.returncode == 0, outcome.stderr
        database = mesh.folder / "data" / "dispatch-police" / "dispatch-police.sqlite3"
        chain = leg_records.read_chain(database, "police", incident_id)
        assert chain
        key = mesh.folder / "data" / "evidence.pub"
        yield Made(mesh, incident_id, chain.alert_ids(incident_id), police, probation, key)


@asynccontextmanager
async def console_of(made: Made, role: str) -> AsyncIterator[Visitor]:
    """A browser without scripts at the mesh's console, signed in with a role as duty-1."""
    async with visiting(made.mesh.now.console_url) as visitor:
        await visitor.read("/sign-in")
        status, page = await visitor.post("/sign-in", role=role, name="duty-1")
        assert status == 303, page
        await visitor.read("/")
        yield visitor


def devices_of_persons(found: list[model.StoredMessage]) -> set[str]:
    """Ids of the protected persons' devices that the cases among the records name."""
    cases = [log_pb2.LogEntry.FromString(record.data).case for record in found if record.subject.endswith(".case")]
    return {id_ for case in cases for person in case.persons for id_ in person.device_ids}


def devices_that_report(found: list[model.StoredMessage]) -> set[str]:
    """Ids of the devices of which the records hold a report."""
    entries = [log_pb2.LogEntry.FromString(record.data) for record in found if record.subject.endswith(".report")]
    return {id_ for entry in entries for id_ in (*entry.positions.device_id, entry.equipment.device_id) if id_}


def is_named(found: dict[str, bytes], offset: int, broken: CorruptArchive) -> bool:
    """Whether an error names the place of a byte of the file."""
    at, last = 0, "the beginning"
    for name in sorted(found):
        size = len(found[name])
        if offset < at + BLOCK:
            return broken.member == f"the header behind {last}" or broken.member.startswith("the end")
        within = offset - at - BLOCK
        if within < size + -size % BLOCK:
            if broken.member != name:
                return False
            if within >= size:
                return broken.offset == size
            chunk = within // archive.CHUNK * archive.CHUNK
            return broken.offset in (None, within) if name == archive.SIGNATURE else broken.offset == chunk
        at, last = at + BLOCK + size + -size % BLOCK, name
    return broken.member in ("the end of the file", f"the header behind {last}")


def decided_alert(made: Made) -> str:
    """Id of the alert that demanded the response."""
    trace = json.loads(tandem("trace", made.incident_id, "--dir", str(made.mesh.folder), "--json").stdout)
    alerts = [span["attributes"] for span in trace["spans"] if span["name"] == "alert"]
    return next(
        str(alert["alert_id"]) for alert in alerts if (alert["kind"], alert["demand"]) == ("RING_ENTERED", "RESPOND")
    )

"""The evidence bundle of the demo's incident: it proves itself without a server, and a bit that differs is found and named."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from services.cli.evidence import bundle, collection, format, seal, tar
from services.cli.evidence import chains as evidence_chains
from services.cli.evidence.replay import replay
from services.cli.evidence.tar import BLOCK, CorruptArchive
from services.cli.failure import CommandFailed
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.common.rpc.errors import NotFound
from services.dispatch.evidence import collector, model
from services.dispatch.evidence.model import Evidence
from services.dispatch.evidence.retention import CLOSED, EvidenceFiles
from services.dispatch.following.targets import CALLERS
from tandem.common.v1 import alert_pb2, ledger_pb2, log_pb2
from tests.support.common.mesh import PATIENCE_S, TANDEM, RunningMesh, environment, running_mesh, tandem
from tests.support.common.ports import free_port

BASIS = ("--basis", "STALKING_9_1_3_2", "--recipient", "spiffe://npa/desk/seoul")
FLIPS = 400


@dataclass(frozen=True, slots=True)
class Made:
    """The demo's incident, and its bundles."""

    mesh: RunningMesh
    incident_id: str
    alert_ids: list[str]
    police: Path
    probation: Path
    public_key: Path

    def kept(self, leg: str) -> EvidenceFiles:
        """What a leg keeps."""
        return EvidenceFiles(self.mesh.folder / "data" / f"dispatch-{leg}" / f"evidence-{leg}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("evidence")
    with running_mesh(folder / "m", "--clock-rate", "60") as mesh:
        played = tandem("demo", "--dir", str(mesh.folder))
        assert played.returncode == 0, played.stderr
        listed = json.loads(tandem("incidents", "--dir", str(mesh.folder), "--json").stdout)["incidents"]
        incident_id = next(one["incident_id"] for one in listed if len(one["legs"]) == 3)
        police, probation = folder / "police.tar", folder / "probation.tar"
        for leg, path in (("police", police), ("probation", probation)):
            outcome = tandem(
                *("evidence", incident_id, "--dir", str(mesh.folder), "--leg", leg, *BASIS, "--out", str(path))
            )
            assert outcome.returncode == 0, outcome.stderr
        database = mesh.folder / "data" / "dispatch-police" / "dispatch-police.sqlite3"
        chain = evidence_chains.read(database, "police", incident_id)
        assert chain
        key = mesh.folder / "data" / "evidence.pub"
        yield Made(mesh, incident_id, chain.alert_ids(incident_id), police, probation, key)


def members(path: Path) -> dict[str, bytes]:
    return tar.read(path.read_bytes(), format.NAMES)


def records(path: Path) -> list[model.StoredMessage]:
    lines = [line for name, data in members(path).items() if name in STREAMED for line in data.splitlines()]
    return [model.of_line(line) for line in lines]


STREAMED = ("log.jsonl", "alerts.jsonl", "measures.jsonl", "dead_letters.jsonl")


# ── proof ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bundle_proves_itself_where_there_is_no_server_and_no_mesh(made: Made, tmp_path: Path) -> None:
    shutil.copy(made.police, tmp_path / "bundle.tar")
    proven = subprocess.run(
        ("unshare", "--net", "--map-root-user", *TANDEM, "evidence", "verify", "bundle.tar", "--json")
        if can_unshare()
        else (*TANDEM, "evidence", "verify", "bundle.tar", "--json"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment() | {"PYTHONPATH": str(Path(__file__).parents[3])},
        cwd=tmp_path,
        check=False,
    )
    assert proven.returncode == 0, proven.stderr
    told = json.loads(proven.stdout)
    assert told["incident_id"] == made.incident_id and told["differences"] == [] and told["chains_missing"] == []
    stored = {
        alert_pb2.Alert.FromString(record.data).alert_id for record in records(made.police) if record.stream == "ALERTS"
    }
    assert stored >= set(made.alert_ids) and told["decision"].startswith(f"{len(stored)} alerts from ")
    assert told["public_key"] == made.public_key.read_text()


def can_unshare() -> bool:
    """Whether this system lets a process have no network at all."""
    probe = ("unshare", "--net", "--map-root-user", "true")
    return bool(shutil.which("unshare")) and subprocess.run(probe, capture_output=True, check=False).returncode == 0


def test_a_flipped_bit_anywhere_is_found_and_named(made: Made) -> None:
    whole = made.police.read_bytes()
    places = random.Random(20260706)
    found = members(made.police)
    offsets = {places.randrange(len(whole)) for _ in range(FLIPS)}
    at = 0
    for name in sorted(found):  # and in each member, in each header and behind each content
        end = at + BLOCK + len(found[name])
        offsets |= {at + places.randrange(BLOCK), at + BLOCK, max(end - 1, at)}
        at = end + -len(found[name]) % BLOCK
    for offset in sorted(offsets):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << places.randrange(8)
        with pytest.raises(CorruptArchive) as broken:
            bundle.verify(bytes(flipped), None)
        assert is_named(found, offset, broken.value), f"byte {offset}: {broken.value}"


def is_named(found: dict[str, bytes], offset: int, broken: CorruptArchive) -> bool:
    """Whether an error names where a byte of the file stands."""
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
            chunk = within // seal.CHUNK * seal.CHUNK
            return broken.offset in (None, within) if name == format.SIGNATURE else broken.offset == chunk
        at, last = at + BLOCK + size + -size % BLOCK, name
    return broken.member in ("the end of the file", f"the header behind {last}")


def test_what_is_cut_off_or_appended_is_found(made: Made) -> None:
    whole = made.police.read_bytes()
    for other in (b"", whole[:BLOCK], whole[:-BLOCK], whole[:-1], whole + b"\0", whole + whole):
        with pytest.raises(CorruptArchive):
            bundle.verify(other, None)


def test_who_signs_anew_is_found_by_the_keepers_key(made: Made, tmp_path: Path) -> None:
    found = members(made.police)
    about = {k: v for k, v in json.loads(found.pop(format.MANIFEST)).items() if k != "members"}
    del found[format.SIGNATURE]
    mine = seal.open_key(tmp_path / "mine.key")
    forged = tar.write(seal.seal(found, {**about, "wearer_id": "another"}, mine))
    assert bundle.verify(forged, None).manifest["wearer_id"] == "another"
    with pytest.raises(CorruptArchive, match="isn't that of the key") as broken:
        bundle.verify(forged, bytes.fromhex(made.public_key.read_text()))
    assert broken.value.member == format.SIGNATURE


def test_an_alert_that_the_entries_do_not_bear_out_is_different(made: Made, tmp_path: Path) -> None:
    found = members(made.police)
    about = {k: v for k, v in json.loads(found.pop(format.MANIFEST)).items() if k != "members"}
    del found[format.SIGNATURE]
    lines = found["log.jsonl"].splitlines(keepends=True)
    found["log.jsonl"] = b"".join(line for line in lines if b".report" not in line)
    forged = tar.write(seal.seal(found, about, seal.open_key(tmp_path / "k.key")))
    with pytest.raises(CorruptArchive, match="isn't what the fold gives"):
        bundle.verify(forged, None)


def test_an_event_that_was_rewritten_in_a_legs_database_is_named(made: Made, tmp_path: Path) -> None:
    source = made.mesh.folder / "data" / "dispatch-police" / "dispatch-police.sqlite3"
    copy = tmp_path / "copy.sqlite3"
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(copy)) as other:
        one.backup(other)
    chain = evidence_chains.read(copy, "police", made.incident_id)
    assert chain and evidence_chains.follow("chain", chain.to_member(made.incident_id, False))
    taken = next(link for link in chain.links if link.kind == "Acknowledged")
    with closing(sqlite3.connect(copy)) as database, database:
        body = taken.body.replace("spiffe://npa/desk/demo", "spiffe://npa/desk/other")
        database.execute("UPDATE events SET body = ? WHERE id = ?", (body, taken.id))
    altered = evidence_chains.read(copy, "police", made.incident_id)
    assert altered
    with pytest.raises(CorruptArchive, match=f"event {taken.id} isn't the one that the leg wrote"):
        evidence_chains.follow("chain", altered.to_member(made.incident_id, False))


def test_an_incident_is_exported_in_the_forms_of_other_systems(made: Made) -> None:
    command = ("export", made.incident_id, "--dir", str(made.mesh.folder))
    document = json.loads(tandem(*command, "--as", "eido", "--leg", "probation").stdout)
    assert document["incidentComponent"]["incidentId"] == made.incident_id
    assert (document["incidentComponent"]["status"], document["issuedBy"]) == ("Closed", "moj-probation")
    message = tandem(*command, "--as", "cap", "--to", "cad").stdout
    assert "<msgType>Cancel</msgType>" in message and "<addresses>cad</addresses>" in message
    assert "37.6" not in message and "127.2" not in message


# ── privacy ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_probations_bundle_has_the_wearer_and_nothing_of_where_the_protected_are(made: Made) -> None:
    theirs, ours = records(made.police), records(made.probation)
    persons = devices_of_persons(theirs)
    assert persons and persons & devices_that_report(theirs) == persons
    assert devices_that_report(ours) and not devices_that_report(ours) & persons
    for one in ours:
        case = log_pb2.LogEntry.FromString(one.data).case if one.subject.endswith(".case") else None
        assert case is None or (not case.places and not any(person.device_ids for person in case.persons))
        assert case is None or not any(person.sealed_contact for person in case.persons)
    assert {one.stream for one in ours} == {"LOG_0", "ALERTS"}
    text = b"".join(members(made.probation).values()) + b"".join(one.data for one in ours)
    assert not [device_id for device_id in persons if device_id.encode() in text]
    chains = {name: data for name, data in members(made.probation).items() if name.startswith("chain-")}
    assert set(chains) == {"chain-probation.jsonl", "chain-police.jsonl", "chain-warning.jsonl"}
    shown = [one for name, data in chains.items() for one in evidence_chains.follow(name, data)]
    theirs_shown = [one for one in shown if one.leg == "police"]
    assert "Acknowledged" in {one.kind for one in theirs_shown}
    assert all(one.body.keys() <= {"at_ms", "assignment_id", "by", "due_ms"} for one in theirs_shown)


def devices_of_persons(found: list[model.StoredMessage]) -> set[str]:
    cases = [log_pb2.LogEntry.FromString(one.data).case for one in found if one.subject.endswith(".case")]
    return {id_ for case in cases for person in case.persons for id_ in person.device_ids}


def devices_that_report(found: list[model.StoredMessage]) -> set[str]:
    entries = [log_pb2.LogEntry.FromString(one.data) for one in found if one.subject.endswith(".report")]
    return {id_ for entry in entries for id_ in (*entry.positions.device_id, entry.equipment.device_id) if id_}


async def test_each_bundle_is_a_disclosure_and_without_grounds_there_is_none(made: Made, tmp_path: Path) -> None:
    async def disclosed(bus: Bus) -> list[ledger_pb2.Disclosure]:
        last, rows = (await bus.bounds_of(flow.DISCLOSURES.name)).last, []
        async for messages in pull.read(bus, flow.DISCLOSURES.name, 1):
            rows += [ledger_pb2.Disclosure.FromString(message.data) for message in messages]
            if messages[-1].sequence >= last:
                break
        # What the legs follow by themselves is shown to them, under a row of its own.
        return [row for row in rows if row.reference == made.incident_id and row.recipient not in CALLERS.values()]

    async with made.mesh.now.nats.bus_as("registry") as bus:
        before = await disclosed(bus)
        assert {(one.record_kind, one.recipient) for one in before} == {
            ("WEARER", "spiffe://npa/desk/seoul"),
            ("PROTECTED_PERSON", "spiffe://npa/desk/seoul"),
        }
        for refused in ("TAG_16_2", "NO_SUCH_ARTICLE"):
            grounds = collection.BundleGrounds(
                refused, "COURT", "spiffe://tandem/reviewer/x", "spiffe://npa/desk/seoul"
            )
            with pytest.raises(CommandFailed, match="not disclosed: legal_basis: "):
                await collection.make(
                    made.mesh.now, made.mesh.folder, made.incident_id, "police", grounds, tmp_path / "k.key"
                )
        assert await disclosed(bus) == before


async def test_without_nats_there_is_no_disclosure_and_no_bundle(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "PATIENCE_S", 1.0)
    nowhere = replace(made.mesh.now, nats=replace(made.mesh.now.nats, url=f"nats://127.0.0.1:{free_port()}"))
    grounds = collection.BundleGrounds(
        "STALKING_9_1_3_2", "COURT", "spiffe://tandem/reviewer/x", "spiffe://npa/desk/seoul"
    )
    with pytest.raises(CommandFailed, match="no answer from nats://"):
        await collection.make(nowhere, made.mesh.folder, made.incident_id, "police", grounds, tmp_path / "k.key")


# ── where it comes from ──────────────────────────────────────────────────────────────────────────────────────────────


async def gathered(made: Made, back_ms: int | None, leg: str = "police") -> tuple[Evidence, LogMetadata]:
    async with made.mesh.now.nats.bus_as("dispatch-police") as bus:
        log_meta = await streams.read_log_meta(bus)
        return await collector.gather(bus, log_meta, made.alert_ids, leg, back_ms), log_meta


async def test_what_the_streams_have_forgotten_comes_from_what_the_leg_kept(made: Made, bus: Bus) -> None:
    files = made.kept("police")
    deadline = time.monotonic() + PATIENCE_S
    while not files.has(made.incident_id, CLOSED):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    _, log_meta = await gathered(made, None)
    # `bus` is that of a server whose streams hold nothing.
    found = await collection._found(bus, log_meta, made.alert_ids, "police", files.load(made.incident_id))
    again = replay(bundle.ground_of(found, log_meta), found.records)
    assert again.again and again.differences == [] and found.ended
    with pytest.raises(NotFound):
        await collection._found(bus, log_meta, made.alert_ids, "police", [])


async def test_the_same_contents_are_the_same_bytes(made: Made, tmp_path: Path) -> None:
    key = seal.open_key(tmp_path / "k.key")
    bundles = set()
    for _ in range(2):
        found, log_meta = await gathered(made, None)
        ground = bundle.ground_of(found, log_meta)
        bundles.add(bundle.make(found, ground, [], {"made_at_ms": 1, "software": "x"}, key))
    assert len(bundles) == 1

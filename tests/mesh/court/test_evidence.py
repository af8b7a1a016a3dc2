"""The evidence bundle of the demo's incident is verified without a server, and a changed bit is located."""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
import shutil
import sqlite3
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from pypdf import PdfReader

from services.client import mesh as meshes
from services.common.evidence import collector, model
from services.common.evidence.collector import CopyMoment
from services.common.evidence.model import Evidence
from services.common.failure import AGED_OUT, CommandFailed
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.console.pages.texts import TEXTS
from services.court.evidence import archive as format
from services.court.evidence import bundle, collection, leg_records
from services.court.evidence.archive import BLOCK, CorruptArchive
from services.court.evidence.bundle import replay
from services.court.evidence.leg_records import MeshRecords
from services.court.report import incident
from services.court.report.words import Words
from services.dispatch.following.targets import CALLERS
from tandem.common.v1 import alert_pb2, ledger_pb2, log_pb2
from tests.support.cli import quoted
from tests.support.cli.bundles import (
    BASIS,
    Made,
    console_of,
    decided_alert,
    devices_of_persons,
    devices_that_report,
    is_named,
    made_of_the_demo,
)
from tests.support.common.mesh import PATIENCE_S, TANDEM, environment, tandem
from tests.support.common.ports import free_port

FLIPS = 400
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with made_of_the_demo(tmp_path_factory.mktemp("evidence")) as bundles:
        yield bundles


def members(path: Path) -> dict[str, bytes]:
    return format.read_tar(path.read_bytes(), format.NAMES)


def records(path: Path) -> list[model.StoredMessage]:
    lines = [line for name, data in members(path).items() if name in STREAMED for line in data.splitlines()]
    return [model.of_line(line) for line in lines]


STREAMED = ("log.jsonl", "alerts.jsonl", "measures.jsonl", "dead_letters.jsonl")


# ── verification ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bundle_is_verified_without_server_and_network(made: Made, tmp_path: Path) -> None:
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
    report = json.loads(proven.stdout)
    assert report["incident_id"] == made.incident_id and report["differences"] == [] and report["chains_missing"] == []
    stored = {
        alert_pb2.Alert.FromString(record.data).alert_id for record in records(made.police) if record.stream == "ALERTS"
    }
    assert stored >= set(made.alert_ids) and report["decision"].startswith(f"{len(stored)} alerts from ")
    assert report["public_key"] == made.public_key.read_text()


def test_the_walkthrough_quotes_what_the_commands_print(made: Made, tmp_path: Path) -> None:
    here = {
        "incident-": made.incident_id,
        "alert-": decided_alert(made),
        "DIR": str(made.mesh.folder),
        "evidence.pub": str(made.public_key),
        "police.tar": str(tmp_path / "police.tar"),
        "report.pdf": str(tmp_path / "report.pdf"),
    }
    quotes = list(quoted.commands(ROOT / "docs" / "explanation" / "walkthrough.md"))
    for quote in quotes:
        words = [next((here[key] for key in here if word.startswith(key)), word) for word in quote.command.split()]
        if words[0] == "tandem":
            outcome = tandem(*words[1:])
            assert outcome.returncode == 0, (words, outcome.stderr)
            printed = outcome.stdout + outcome.stderr
        else:
            printed = "\n".join(page.extract_text() for page in PdfReader(here["report.pdf"]).pages)
        assert quoted.missing(quote, printed) == [], (words, printed)
    assert {quote.command.split()[1] for quote in quotes} >= {"explain", "evidence", "report"}


def can_unshare() -> bool:
    """Whether this system can run a process without any network."""
    probe = ("unshare", "--net", "--map-root-user", "true")
    return bool(shutil.which("unshare")) and subprocess.run(probe, capture_output=True, check=False).returncode == 0


def test_a_flipped_bit_anywhere_is_located(made: Made) -> None:
    whole = made.police.read_bytes()
    places = random.Random(20260706)
    found = members(made.police)
    offsets = {places.randrange(len(whole)) for _ in range(FLIPS)}
    at = 0
    for name in sorted(found):  # add offsets in each header, in each member and after its content
        end = at + BLOCK + len(found[name])
        offsets |= {at + places.randrange(BLOCK), at + BLOCK, max(end - 1, at)}
        at = end + -len(found[name]) % BLOCK
    for offset in sorted(offsets):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << places.randrange(8)
        with pytest.raises(CorruptArchive) as broken:
            bundle.verify_bundle(bytes(flipped), None)
        assert is_named(found, offset, broken.value), f"byte {offset}: {broken.value}"


def test_a_truncated_or_extended_bundle_is_refused(made: Made) -> None:
    whole = made.police.read_bytes()
    for other in (b"", whole[:BLOCK], whole[:-BLOCK], whole[:-1], whole + b"\0", whole + whole):
        with pytest.raises(CorruptArchive):
            bundle.verify_bundle(other, None)


def test_a_bundle_signed_by_another_key_is_refused_by_the_custodians_key(made: Made, tmp_path: Path) -> None:
    found = members(made.police)
    about = {k: v for k, v in json.loads(found.pop(format.MANIFEST)).items() if k != "members"}
    del found[format.SIGNATURE]
    mine = format.open_signing_key(tmp_path / "mine.key")
    forged = format.write_tar(format.seal_members(found, {**about, "wearer_id": "another"}, mine))
    assert bundle.verify_bundle(forged, None).manifest["wearer_id"] == "another"
    with pytest.raises(CorruptArchive, match="isn't that of the key") as broken:
        bundle.verify_bundle(forged, bytes.fromhex(made.public_key.read_text()))
    assert broken.value.member == format.SIGNATURE


def test_an_alert_that_the_entries_do_not_reproduce_is_refused(made: Made, tmp_path: Path) -> None:
    found = members(made.police)
    about = {k: v for k, v in json.loads(found.pop(format.MANIFEST)).items() if k != "members"}
    del found[format.SIGNATURE]
    lines = found["log.jsonl"].splitlines(keepends=True)
    found["log.jsonl"] = b"".join(line for line in lines if b".report" not in line)
    forged = format.write_tar(format.seal_members(found, about, format.open_signing_key(tmp_path / "k.key")))
    with pytest.raises(CorruptArchive, match="isn't what the fold gives"):
        bundle.verify_bundle(forged, None)


def test_a_rewritten_event_in_a_legs_database_is_named(made: Made, tmp_path: Path) -> None:
    source = made.mesh.folder / "data" / "dispatch-police" / "dispatch-police.sqlite3"
    copy = tmp_path / "copy.sqlite3"
    with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(copy)) as duplicate:
        original.backup(duplicate)
    chain = leg_records.read_chain(copy, "police", made.incident_id)
    assert chain and leg_records.verified_events("chain", chain.to_member(made.incident_id, False))
    acknowledged = next(link for link in chain.links if link.kind == "Acknowledged")
    with closing(sqlite3.connect(copy)) as database, database:
        body = acknowledged.body.replace("spiffe://npa/desk/demo", "spiffe://npa/desk/other")
        database.execute("UPDATE events SET body = ? WHERE id = ?", (body, acknowledged.id))
    altered = leg_records.read_chain(copy, "police", made.incident_id)
    assert altered
    with pytest.raises(CorruptArchive, match=f"event {acknowledged.id} isn't the one that the leg wrote"):
        leg_records.verified_events("chain", altered.to_member(made.incident_id, False))


def test_an_incident_is_exported_as_eido(made: Made) -> None:
    command = ("export", made.incident_id, "--dir", str(made.mesh.folder))
    written = tandem(*command, "--leg", "probation").stdout
    document = json.loads(written)
    assert document["incidentComponent"]["incidentId"] == made.incident_id
    assert (document["incidentComponent"]["status"], document["issuedBy"]) == ("Closed", "moj-probation")
    of_police = tandem(*command).stdout
    document = json.loads(of_police)
    assert (document["incidentComponent"]["status"], document["issuedBy"]) == ("Closed", "npa-police")
    for message in (written, of_police):
        assert "37.6" not in message and "127.2" not in message


# ── privacy ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_probations_bundle_has_no_positions_of_protected_persons(made: Made) -> None:
    for_police, for_probation = records(made.police), records(made.probation)
    persons = devices_of_persons(for_police)
    assert persons and persons & devices_that_report(for_police) == persons
    assert devices_that_report(for_probation) and not devices_that_report(for_probation) & persons
    for record in for_probation:
        case = log_pb2.LogEntry.FromString(record.data).case if record.subject.endswith(".case") else None
        assert case is None or (not case.places and not any(person.device_ids for person in case.persons))
        assert case is None or not any(person.sealed_contact for person in case.persons)
    assert {record.stream for record in for_probation} == {"LOG_0", "ALERTS"}
    text = b"".join(members(made.probation).values()) + b"".join(record.data for record in for_probation)
    assert not [device_id for device_id in persons if device_id.encode() in text]
    chains = {name: data for name, data in members(made.probation).items() if name.startswith("chain-")}
    assert set(chains) == {"chain-probation.jsonl", "chain-police.jsonl", "chain-warning.jsonl"}
    shown = [event for name, data in chains.items() for event in leg_records.verified_events(name, data)]
    of_police = [event for event in shown if event.leg == "police"]
    assert "Acknowledged" in {event.kind for event in of_police}
    shown_to_others = {"at_ms", "assignment_id", "by", "due_ms", "remind_ms", "offer_number", "ask_next_ms"}
    assert all(event.body.keys() <= shown_to_others for event in of_police)


async def test_each_bundle_is_disclosed_and_refused_without_legal_grounds(made: Made, tmp_path: Path) -> None:
    async def disclosed(bus: Bus) -> list[ledger_pb2.Disclosure]:
        last, rows = (await bus.bounds_of(flow.DISCLOSURES.name)).last, []
        async for messages in pull.read(bus, flow.DISCLOSURES.name, 1):
            rows += [ledger_pb2.Disclosure.FromString(message.data) for message in messages]
            if messages[-1].sequence >= last:
                break
        # Positions that the legs follow by themselves, and those that a reviewer explains, are disclosed in other rows.
        others = (*CALLERS.values(), "spiffe://tandem/reviewer/kim")
        return [row for row in rows if row.reference == made.incident_id and row.recipient not in others]

    async with made.mesh.now.nats.bus_as("registry") as bus:
        before = await disclosed(bus)
        assert {(disclosure.record_kind, disclosure.recipient) for disclosure in before} == {
            ("WEARER", "spiffe://npa/desk/seoul"),
            ("PROTECTED_PERSON", "spiffe://npa/desk/seoul"),
        }
        for refused in ("TAG_16_2", "NO_SUCH_ARTICLE"):
            grounds = collection.BundleGrounds(
                refused, "COURT", "spiffe://tandem/reviewer/x", "spiffe://npa/desk/seoul"
            )
            with pytest.raises(CommandFailed, match="not disclosed: legal_basis: "):
                await collection.make(
                    made.mesh.now,
                    MeshRecords(made.mesh.folder, dict.fromkeys(flow.LEGS, "")),
                    made.incident_id,
                    leg="police",
                    grounds=grounds,
                    key_file=tmp_path / "k.key",
                )
        assert await disclosed(bus) == before


async def test_without_nats_no_bundle_is_made(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meshes, "PATIENCE_S", 1.0)
    nowhere = replace(made.mesh.now, nats=replace(made.mesh.now.nats, url=f"nats://127.0.0.1:{free_port()}"))
    grounds = collection.BundleGrounds(
        "STALKING_9_1_3_2", "COURT", "spiffe://tandem/reviewer/x", "spiffe://npa/desk/seoul"
    )
    with pytest.raises(CommandFailed, match="no answer from nats://"):
        await collection.make(
            nowhere,
            MeshRecords(made.mesh.folder, dict.fromkeys(flow.LEGS, "")),
            made.incident_id,
            leg="police",
            grounds=grounds,
            key_file=tmp_path / "k.key",
        )


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def collected(made: Made, back_ms: int | None) -> tuple[Evidence, LogMetadata]:
    async with made.mesh.now.nats.bus_as("dispatch-police") as bus:
        log_meta = await streams.read_log_meta(bus)
        return await collector.collect(
            bus, log_meta, made.alert_ids, leg="police", may_locate_person=True, back_ms=back_ms
        ), log_meta


async def test_expired_entries_come_from_the_legs_copies(made: Made, bus: Bus) -> None:
    files = made.kept("police")
    deadline = time.monotonic() + PATIENCE_S
    while not files.has(made.incident_id, CopyMoment.CLOSED):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    _, log_meta = await collected(made, None)
    # `bus` is connected to a server whose streams are empty.
    found = await collection._collected(
        bus, log_meta, made.alert_ids, leg="police", copies=files.load(made.incident_id)
    )
    replayed = replay(bundle.ground_of(found, log_meta), found.records)
    assert replayed.results and replayed.differences == [] and found.ended
    with pytest.raises(CommandFailed, match="neither the streams nor the leg hold") as gone:
        await collection._collected(bus, log_meta, made.alert_ids, leg="police", copies=[])
    assert gone.value.exit_code == AGED_OUT


async def test_equal_contents_give_equal_bytes(made: Made, tmp_path: Path) -> None:
    key = format.open_signing_key(tmp_path / "k.key")
    bundles = set()
    for _ in range(2):
        found, log_meta = await collected(made, None)
        ground = bundle.ground_of(found, log_meta)
        bundles.add(bundle.make_bundle(found, ground, [], about={"made_at_ms": 1, "software": "x"}, key=key))
    assert len(bundles) == 1


# ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_report_of_a_mesh_is_that_of_a_bundle(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "incident.pdf"
    outcome = tandem("report", made.incident_id, "--dir", str(made.mesh.folder), *BASIS, "--out", str(out))
    assert outcome.returncode == 0, outcome.stderr
    text = "".join(page.extract_text() for page in PdfReader(out).pages)
    assert made.incident_id in text and "접근금지 명령 사건 보고서" in text and "바이트 단위로 같음" in text
    proof = out.with_suffix(".tar").read_bytes()
    assert out.read_bytes() == incident.incident_pdf(proof, bytes.fromhex(made.public_key.read_text()), Words("ko"))


@pytest.mark.timeout(900)  # each document is made by a process of its own, which gives way to all others
async def test_a_reviewer_gets_the_documents_for_a_court_from_the_console(made: Made) -> None:
    (order_id,) = json.loads(members(made.police)["manifest.json"])["order_ids"]
    court = {"legal_basis": "STALKING_9_1_3_2", "recipient": "spiffe://npa/desk/court"}
    async with console_of(made, "reviewer") as reviewer, console_of(made, "police") as police:
        assert 'id="make-document"' in await reviewer.read(f"/incidents/{made.incident_id}")
        status, packed = await reviewer.download(f"/incidents/{made.incident_id}/document", **court)
        assert status == 200, packed
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            files = {Path(name).suffix: archive.read(name) for name in archive.namelist()}
        assert files[".pdf"] == incident.incident_pdf(files[".tar"], None, Words("ko"))
        about = json.loads(format.read_tar(files[".tar"], format.NAMES)["manifest.json"])
        assert (about["made_by"], about["made_for"]) == ("spiffe://tandem/reviewer/duty-1", court["recipient"])
        assert sorted(about["chains"]) == sorted(flow.LEGS)
        path, period = f"/orders/{order_id}/document", {"from": "2026-01-01", "until": "2099-12-31"}
        status, compliance = await reviewer.download(path, **court, **period | {"until": ""})
        text = "".join(page.extract_text() for page in PdfReader(io.BytesIO(compliance)).pages).replace("\u200b", "")
        assert status == 200 and order_id in text and made.incident_id in text
        status, page = await reviewer.post(path, **court, **{"from": "2026-02-01", "until": "2026-01-01"})
        assert status == 400 and "is before from" in page
        explain = ("explain", decided_alert(made), "--dir", str(made.mesh.folder), "--json")
        explained = json.loads((await asyncio.to_thread(tandem, *explain)).stdout)["earlier"]
        grounds = {"alert": explain[1], "legal_basis": court["legal_basis"], "purpose": "AUDIT"}
        status, page = await reviewer.post(f"/incidents/{made.incident_id}/earlier", **grounds)
        shown = re.findall(r'data-entry="(\d+)" data-held="(\w*)"', page)
        assert status == 200 and shown == [(str(e["sequence"]), e["held_back_by"]) for e in reversed(explained)]
        assert shown and TEXTS["earlier_same"][0] in page
        status, page = await reviewer.post(f"/incidents/{made.incident_id}/earlier", **grounds | {"legal_basis": ""})
        assert status == 400 and "--legal-basis" in page and TEXTS["document_refused"][0] in page
        status, page = await reviewer.post(f"/incidents/{made.incident_id}/earlier", **grounds | {"purpose": "FUN"})
        assert status == 400 and "purpose: must be the code of a purpose" in page
        assert 'id="no-incidents"' in await reviewer.read("/statistics?from=2020-01-01&until=2020-01-31")
        assert "make-document" not in await police.read(f"/incidents/{made.incident_id}")
        assert (await police.post(path, **court, **period))[0] == 403
    deadline = time.monotonic() + PATIENCE_S
    while not {made.incident_id, order_id} <= set(ledger_references(made, court["recipient"])):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


def test_the_report_on_an_order_lists_its_incidents_and_is_a_disclosure(made: Made, tmp_path: Path) -> None:
    order = next(iter(json.loads(members(made.police)["manifest.json"])["order_ids"]))
    period = ("--order", order, "--from", "2020-01-01T00:00:00Z", "--until", "2100-01-01T00:00:00Z")
    mesh = ("--dir", str(made.mesh.folder))
    out = tmp_path / "order.pdf"
    outcome = tandem("report", *period, *mesh, *BASIS, "--language", "en", "--out", str(out))
    assert outcome.returncode == 0, outcome.stderr
    text = "".join(page.extract_text() for page in PdfReader(out).pages).replace("\u200b", "")
    assert order in text and made.incident_id in text and "ATTENTION" not in text
    deadline = time.monotonic() + PATIENCE_S
    while order not in (references := ledger_references(made)):
        assert time.monotonic() < deadline, references
        time.sleep(0.2)
    empty = tandem(
        *("report", "--order", order, "--from", "2020-01-01T00:00:00Z", "--until", "2020-02-01T00:00:00Z"),
        *(*mesh, *BASIS, "--language", "en", "--out", str(tmp_path / "empty.pdf")),
    )
    assert empty.returncode == 0, empty.stderr
    nothing = "".join(page.extract_text() for page in PdfReader(tmp_path / "empty.pdf").pages)
    assert "0 incidents and 0 entries" in nothing
    to = ("--recipient", "spiffe://npa/desk/seoul", "--out", str(tmp_path / "x"))
    for lacks, named in ((("--reviewer", "lee"), "legal_basis"), (BASIS[:2], "--reviewer")):
        refused = tandem("report", *period, *mesh, *to, *lacks)
        assert refused.returncode == 2 and named in refused.stderr and not (tmp_path / "x").exists()
    unknown = tandem("report", "--order", "order-none", *period[2:], *mesh, *BASIS, "--out", str(tmp_path / "x"))
    assert unknown.returncode == 2 and "knows no order-none" in unknown.stderr


def ledger_references(made: Made, recipient: str = "spiffe://npa/desk/seoul") -> list[str]:
    """What the rows of the mesh's ledger with this recipient refer to."""
    query = "SELECT reference FROM ledger WHERE recipient = ?"
    with closing(sqlite3.connect(made.mesh.folder / "data" / "registry" / "registry.sqlite3")) as connection:
        return [reference for (reference,) in connection.execute(query, (recipient,))]

"""`tandem report`: a document that a judge can read, on one incident or on how an order was kept over a period."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from services.cli import arguments
from services.cli.evidence import collection as evidence_collection
from services.cli.evidence.collection import BundleGrounds
from services.cli.evidence.format import MAX_BUNDLE_BYTES
from services.cli.evidence.tar import CorruptArchive
from services.cli.explain.disclosures import reviewer_id
from services.cli.failure import MISUSED, CommandFailed, trouble
from services.cli.report import collection, compliance, incident
from services.cli.report.words import LANGUAGES, Words
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER
from services.common.observability import telemetry
from services.common.privacy.grounds import Purpose
from services.dispatch.evidence.model import EVIDENCE_LEGS


def report(
    incident_id: Annotated[str, typer.Argument(metavar="[INCIDENT]", help="Id of the incident.")] = "",
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The PDF to write. The file must not exist.")],
    bundle: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Evidence bundle, in the place of a mesh.")
    ] = None,
    order: Annotated[str, typer.Option(metavar="ID", help="Report on this order and a period.")] = "",
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="With --order: first moment, RFC 3339.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="With --order: end, exclusive, RFC 3339.")] = "",
    leg: Annotated[str, typer.Option(help="Whose evidence of the incident: police or probation.")] = "police",
    legal_basis: Annotated[
        str, typer.Option(metavar="CODE", help="From a mesh: code of the legal basis, such as STALKING_9_1_3_2.")
    ] = "",
    recipient: Annotated[str, typer.Option(metavar="ID", help="From a mesh: SPIFFE id of the recipient.")] = "",
    purpose: Annotated[
        Purpose, typer.Option(help="From a mesh: purpose of the disclosure.", case_sensitive=False)
    ] = Purpose.COURT,
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="From a mesh: name of who makes the report.")] = "",
    public_key: Annotated[Path | None, typer.Option(help="With --bundle: the custodian's public key.")] = None,
    language: Annotated[str, typer.Option(help="Language of the document: ko or en.")] = "ko",
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
) -> None:
    """Write the report on an incident, or on an order and a period, as a PDF.

    The report on an incident is made of its evidence bundle alone. A bundle with an altered byte is refused, with the place. The same
    bundle and language give the same bytes. A report that is made from a mesh is a disclosure, which the ledger records first; the
    bundle that proves it is written beside it, with the ending .tar. Exit code 3: the incident's entries have aged out.
    """
    if [bool(incident_id), bundle is not None, bool(order)].count(True) != 1:
        raise CommandFailed(
            "name one of these: INCIDENT, --bundle FILE, or --order ID with --from and --until", MISUSED
        )
    if language not in LANGUAGES:
        raise CommandFailed(f"--language: must be one of {', '.join(LANGUAGES)} (example: ko)", MISUSED)
    words = Words(language)
    if bundle is not None:
        made = _of_bundle(_read(bundle), _key(public_key), words)
    else:
        who, proof = reviewer_id(reviewer, "a report from a mesh"), out.with_suffix(".tar")
        telemetry.configure("report", sys.stderr)
        grounds = BundleGrounds(legal_basis=legal_basis, purpose=purpose.value, who=who, recipient=recipient)
        for path in (out,) if order else (out, proof):
            evidence_collection.require_new(path)
        if order:
            made = _of_order(order, since, until, folder=folder, grounds=grounds, words=words)
        else:
            evidence = _evidence(incident_id, leg, folder=folder, grounds=grounds)
            made = _of_bundle(evidence, None, words)
            evidence_collection.write(proof, evidence)
            print(f"{proof}: {len(evidence)} bytes, the bundle that proves the report")
    evidence_collection.write(out, made)
    print(f"{out}: {len(made)} bytes")


def _of_bundle(data: bytes, public_key: bytes | None, words: Words) -> bytes:
    try:
        return incident.of_bundle(data, public_key, words)
    except CorruptArchive as broken:
        raise CommandFailed(f"BROKEN {broken}: no report is made of it") from None


def _evidence(incident_id: str, leg: str, *, folder: Path, grounds: BundleGrounds) -> bytes:
    arguments.required_id("INCIDENT", incident_id)
    if leg not in EVIDENCE_LEGS:
        raise CommandFailed(f"--leg: must be one of {', '.join(EVIDENCE_LEGS)}", MISUSED)
    key = folder / "data" / "evidence.key"
    making = evidence_collection.make(mesh.load(folder), folder, incident_id, leg=leg, grounds=grounds, key_file=key)
    return uvloop.run(making)


def _of_order(order_id: str, since: str, until: str, *, folder: Path, grounds: BundleGrounds, words: Words) -> bytes:
    arguments.required_id("--order", order_id)
    from_ms, until_ms = arguments.moment_ms("--from", since), arguments.moment_ms("--until", until)
    if until_ms <= from_ms:
        raise CommandFailed("--until: must be later than --from", MISUSED)
    running = mesh.load(folder)
    collecting = collection.collect(running, folder, order_id, from_ms=from_ms, until_ms=until_ms, grounds=grounds)
    return compliance.pdf(uvloop.run(collecting), words)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            return opened.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise CommandFailed(f"{path}: {trouble(error)}", MISUSED) from None


def _key(path: Path | None) -> bytes | None:
    try:
        return bytes.fromhex(path.read_text().strip()) if path else None
    except (OSError, ValueError):
        raise CommandFailed(f"{path} isn't a public key of 64 hex digits", MISUSED) from None

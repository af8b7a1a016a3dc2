"""`tandem evidence`, `report` and `export`: an incident as a signed bundle, as a document for a judge, and in an exchange format."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from services.cli import usage
from services.client import mesh
from services.client.mesh import DEFAULT_FOLDER, MeshConnection
from services.common import times
from services.common.errors import InvalidField
from services.common.failure import FAILED, MISUSED, CommandFailed, printable, trouble
from services.common.messaging import dead_letters, flow, pull, stored
from services.common.observability import telemetry
from services.common.privacy.grounds import Purpose
from services.court import from_mesh
from services.court.evidence import bundle as evidence_bundle
from services.court.evidence import collection
from services.court.evidence.archive import MAX_BUNDLE_BYTES, CorruptArchive, NoBundle
from services.court.evidence.bundle import Verified
from services.court.evidence.collection import BundleGrounds
from services.court.evidence.leg_records import MeshRecords
from services.court.from_mesh import IncidentReport, reviewer_id
from services.court.report import incident
from services.court.report.words import LANGUAGES, Words
from services.dispatch.domain.leg import EVIDENCE_LEGS
from services.dispatch.exchange import messages
from services.dispatch.settings import for_leg
from tandem.dispatch.v1 import dispatch_pb2


class _IncidentOrCommand(usage.Group):
    """Command group in which `tandem evidence INCIDENT` means `tandem evidence make INCIDENT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["make", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_IncidentOrCommand, help="The evidence of one incident: make a bundle, or verify one.", no_args_is_help=True
)


@app.command(cls=usage.Command)
def make(
    incident_id: Annotated[str, typer.Argument(metavar="INCIDENT", help="Id of the incident.")],
    legal_basis: Annotated[
        str, typer.Option(metavar="CODE", help="Code of the legal basis, such as TAG_16_2 or STALKING_9_1_3_2.")
    ],
    recipient: Annotated[str, typer.Option(help="SPIFFE id of the recipient.")],
    *,
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="Name of the person who makes the bundle.")],
    leg: Annotated[
        str, typer.Option(help="Whose evidence: police, or probation without the protected persons.")
    ] = "police",
    purpose: Annotated[Purpose, typer.Option(help="Purpose of the disclosure.", case_sensitive=False)] = Purpose.COURT,
    out: Annotated[Path | None, typer.Option(help="File to write; default: INCIDENT-LEG.tar.")] = None,
    key: Annotated[Path | None, typer.Option(help="Signing key; default: DIR/data/evidence.key.")] = None,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Write an incident's evidence into one signed file. This is a disclosure, which the ledger records first."""
    usage.required_id("INCIDENT", incident_id)
    if leg not in EVIDENCE_LEGS:
        raise CommandFailed(f"--leg: must be one of {', '.join(EVIDENCE_LEGS)}", MISUSED)
    who = reviewer_id(reviewer, "a bundle")
    telemetry.configure("evidence", sys.stderr)
    grounds = BundleGrounds(legal_basis=legal_basis, purpose=purpose.value, who=who, recipient=recipient)
    records = MeshRecords(folder, for_leg("police").leg_databases)
    signer, path = key or records.key, out or Path(f"{incident_id}-{leg}.tar")
    collection.require_new(path)
    bundle = uvloop.run(
        collection.make(mesh.load(folder), records, incident_id, leg=leg, grounds=grounds, key_file=signer)
    )
    collection.write(path, bundle)
    print(f"{path}: {len(bundle)} bytes, signed with {signer}; the key to verify it is {signer.with_suffix('.pub')}")
    _report(_verified(path, None), False)


@app.command(cls=usage.Command)
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle.")],
    public_key: Annotated[Path | None, typer.Option(help="The custodian's public key (evidence.pub).")] = None,
    as_json: usage.AsJson = False,
) -> None:
    """Verify a bundle without any server or network: nothing was altered, and a refold reproduces the decision.

    Exit code 0: verified. 1: BROKEN, with member and fault, or the decision is DIFFERENT. 2: the file is no bundle, or file or key is
    unreadable.
    """
    known = _public_key(public_key)
    _report(_verified(file, known), as_json, known is not None)


def _verified(file: Path, public_key: bytes | None) -> Verified:
    try:
        return evidence_bundle.verify_bundle(_bundle_bytes(file), public_key)
    except NoBundle as error:
        raise CommandFailed(f"{file}: {error}", MISUSED) from None
    except CorruptArchive as broken:
        raise CommandFailed(f"BROKEN {broken}") from None


def _report(verified: Verified, as_json: bool, known_key: bool = False) -> None:
    fields = _summary(verified, known_key)
    print(json.dumps(fields) if as_json else "\n".join(map(printable, _lines(verified, fields))))
    if verified.differences:
        raise typer.Exit(FAILED)


def _lines(verified: Verified, fields: dict[str, Any]) -> Iterator[str]:
    incident, made = fields["incident_id"], f"made {fields['made_at']} with Tandem {fields['software']}"
    yield f"incident    {incident}, evidence for {fields['for']}, {made}"
    unknown = "" if fields["public_key_given"] else "; this doesn't prove whose key it is, as --public-key isn't given"
    yield f"signature   good, by {fields['public_key']}{unknown}"
    yield f"chains      {fields['events']} events, each as its leg wrote it"
    if fields["chains_missing"]:
        yield f"            MISSING: {', '.join(fields['chains_missing'])}"
    if not fields["whole"]:
        yield "entries     INCOMPLETE: THE LOG HAD ALREADY LOST EARLIER ENTRIES"
    yield f"decision    {fields['decision']}"
    for difference in fields["differences"]:
        yield f"            {difference}"
    for event in verified.events:
        if not event.alert_id:
            when = times.to_rfc3339(event.body["at_ms"])
            yield f"{when}  {event.leg:9}  {event.kind:12}  {event.body.get('by', '')}".rstrip()


def _summary(verified: Verified, known_key: bool) -> dict[str, Any]:
    manifest, replayed = verified.manifest, verified.replay
    if replayed is None:
        decision = "not in this bundle: it lacks the protected persons' positions; use the bundle for the police"
    elif replayed.differences:
        decision = "DIFFERENT"
    else:
        decision = f"{len(replayed.results)} alerts from {replayed.entries} entries are the same again, byte for byte"
    return {
        "incident_id": manifest["incident_id"],
        "for": manifest["for"],
        "made_at": times.to_rfc3339(manifest["made_at_ms"]),
        "software": manifest["software"],
        "public_key": verified.public_key.hex(),
        "public_key_given": known_key,
        "whole": manifest["whole"],
        "ended": manifest["ended"],
        "entries": replayed.entries if replayed else None,
        "events": len(verified.events),
        "chains_missing": manifest["chains_missing"],
        "decision": decision,
        "differences": verified.differences,
    }


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
    folder: usage.MeshFolder = DEFAULT_FOLDER,
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
    if bundle is not None:
        made = _of_bundle(bundle, public_key, Words(language))
    else:
        who, proof = reviewer_id(reviewer, "a report from a mesh"), out.with_suffix(".tar")
        telemetry.configure("report", sys.stderr)
        grounds = BundleGrounds(legal_basis=legal_basis, purpose=purpose.value, who=who, recipient=recipient)
        for path in (out,) if order else (out, proof):
            collection.require_new(path)
        if order:
            made = _of_order(order, since, until, folder=folder, grounds=grounds, language=language)
        else:
            made, evidence = _of_incident(incident_id, leg, folder=folder, grounds=grounds, language=language)
            collection.write(proof, evidence)
            print(f"{proof}: {len(evidence)} bytes, the bundle that proves the report")
    collection.write(out, made)
    print(f"{out}: {len(made)} bytes")


def _of_bundle(path: Path, public_key: Path | None, words: Words) -> bytes:
    try:
        return incident.incident_pdf(_bundle_bytes(path), _public_key(public_key), words)
    except NoBundle as error:
        raise CommandFailed(f"{path}: {error}", MISUSED) from None
    except CorruptArchive as broken:
        raise CommandFailed(f"BROKEN {broken}: no report is made of it") from None


def _of_incident(incident_id: str, leg: str, *, folder: Path, grounds: BundleGrounds, language: str) -> IncidentReport:
    usage.required_id("INCIDENT", incident_id)
    if leg not in EVIDENCE_LEGS:
        raise CommandFailed(f"--leg: must be one of {', '.join(EVIDENCE_LEGS)}", MISUSED)
    records = MeshRecords(folder, for_leg("police").leg_databases)
    making = from_mesh.incident_report(records, incident_id, leg=leg, grounds=grounds, language=language)
    return uvloop.run(making)


def _of_order(order_id: str, since: str, until: str, *, folder: Path, grounds: BundleGrounds, language: str) -> bytes:
    usage.required_id("--order", order_id)
    from_ms, until_ms = usage.moment_ms("--from", since), usage.moment_ms("--until", until)
    if until_ms <= from_ms:
        raise CommandFailed("--until: must be later than --from", MISUSED)
    records = MeshRecords(folder, for_leg("police").leg_databases)
    making = from_mesh.order_report(
        records, order_id, from_ms=from_ms, until_ms=until_ms, grounds=grounds, language=language
    )
    return uvloop.run(making)


def _bundle_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            return opened.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise CommandFailed(f"{path}: {trouble(error)}", MISUSED) from None


def _public_key(path: Path | None) -> bytes | None:
    try:
        return bytes.fromhex(path.read_text().strip()) if path else None
    except (OSError, ValueError):
        raise CommandFailed(f"{path} isn't a public key of 64 hex digits", MISUSED) from None


def export(
    incident_id: Annotated[str, typer.Argument(metavar="INCIDENT", help="Id of the incident.")],
    leg: Annotated[str, typer.Option(help="Leg whose half of the incident is printed.")] = "police",
    *,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Print the current state of one leg's half of an incident as EIDO: ids and states, no name, address or position."""
    usage.required_id("INCIDENT", incident_id)
    if leg not in flow.LEGS:
        raise CommandFailed(f"--leg: must be one of {', '.join(flow.LEGS)}", MISUSED)
    telemetry.configure("export", sys.stderr)
    steps = uvloop.run(_steps(mesh.load(folder), leg, incident_id))
    print(messages.eido_document(leg, steps).decode())


async def _steps(running: MeshConnection, leg: str, incident_id: str) -> list[dispatch_pb2.Step]:
    """The leg's steps of an incident, in order. Raises CommandFailed if there are none."""
    stream, subject = flow.INCIDENTS.name, flow.incident_subject(leg, incident_id)
    async with running.nats.bus_for_command("export") as (bus, _):
        if await bus.last_of(stream, subject) is None:
            raise CommandFailed(f"{stream} holds no step of the {leg} leg in {incident_id}", MISUSED)
        steps: list[dispatch_pb2.Step] = []
        async for messages in pull.read(bus, stream, 1, subjects=(subject,)):
            for message in messages:
                try:
                    steps.append(stored.step(message.data, message.subject))
                except InvalidField as error:
                    dead_letters.pass_over(bus, "export", stream, sequence=message.sequence, error=error)
            if messages[-1].pending == 0:
                break
        return steps

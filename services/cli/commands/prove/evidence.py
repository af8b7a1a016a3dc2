"""`tandem evidence`: write an incident's evidence as one signed file, and verify such files without any server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from services.cli import arguments, usage
from services.cli.evidence import bundle as evidence_bundle
from services.cli.evidence import collection
from services.cli.evidence.bundle import Verified
from services.cli.evidence.collection import BundleGrounds
from services.cli.evidence.format import MAX_BUNDLE_BYTES
from services.cli.evidence.tar import CorruptArchive
from services.cli.explain.disclosures import reviewer_id
from services.cli.failure import FAILED, MISUSED, CommandFailed, trouble
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER
from services.cli.terminal import printable
from services.common import times
from services.common.observability import telemetry
from services.common.privacy.grounds import Purpose
from services.dispatch.evidence.model import EVIDENCE_LEGS


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
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
) -> None:
    """Write an incident's evidence into one signed file. This is a disclosure, which the ledger records first."""
    arguments.required_id("INCIDENT", incident_id)
    if leg not in EVIDENCE_LEGS:
        raise CommandFailed(f"--leg: must be one of {', '.join(EVIDENCE_LEGS)}", MISUSED)
    who = reviewer_id(reviewer, "a bundle")
    telemetry.configure("evidence", sys.stderr)
    grounds = BundleGrounds(legal_basis=legal_basis, purpose=purpose.value, who=who, recipient=recipient)
    signer, path = key or folder / "data" / "evidence.key", out or Path(f"{incident_id}-{leg}.tar")
    collection.require_new(path)
    bundle = uvloop.run(
        collection.make(mesh.load(folder), folder, incident_id, leg=leg, grounds=grounds, key_file=signer)
    )
    collection.write(path, bundle)
    print(f"{path}: {len(bundle)} bytes, signed with {signer}; the key to verify it is {signer.with_suffix('.pub')}")
    _report(_verified(path, None), False)


@app.command(cls=usage.Command)
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle.")],
    public_key: Annotated[Path | None, typer.Option(help="The custodian's public key (evidence.pub).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Verify a bundle without any server or network: nothing was altered, and a refold reproduces the decision.

    Exit code 0: verified. 1: BROKEN, with member and fault, or the decision is DIFFERENT. 2: file or key is unreadable.
    """
    try:
        known = bytes.fromhex(public_key.read_text().strip()) if public_key else None
    except (OSError, ValueError):
        raise CommandFailed(f"{public_key} isn't a public key of 64 hex digits", MISUSED) from None
    _report(_verified(file, known), as_json, known is not None)


def _verified(file: Path, public_key: bytes | None) -> Verified:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise CommandFailed(f"{file}: {trouble(error)}", MISUSED) from None
    try:
        return evidence_bundle.verify(data, public_key)
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

"""`tandem evidence`: what one incident rests on as one signed file, and its proof without any server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from typer.core import TyperGroup

from services.cli.evidence import bundle as evidence_bundle
from services.cli.evidence import collection
from services.cli.evidence.bundle import Verified
from services.cli.evidence.collection import BundleGrounds
from services.cli.evidence.format import MAX_BUNDLE_BYTES
from services.cli.evidence.tar import CorruptArchive
from services.cli.failure import FAILED, MISUSED, CommandFailed
from services.cli.simulate.actors import REVIEWER
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER
from services.cli.terminal import printable
from services.common import fields, times
from services.common.observability import telemetry
from services.common.rpc.errors import InvalidField
from services.dispatch.evidence.model import LEGS


class _IncidentOrCommand(TyperGroup):
    """`tandem evidence INCIDENT` is `tandem evidence make INCIDENT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["make", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_IncidentOrCommand, help="The evidence of one incident.", no_args_is_help=True)


@app.command()
def make(
    incident_id: Annotated[str, typer.Argument(metavar="INCIDENT", help="Id of the incident.")],
    basis: Annotated[
        str, typer.Option(help="Code of the article that allows it, such as TAG_16_2 or STALKING_9_1_3_2.")
    ],
    recipient: Annotated[str, typer.Option(help="SPIFFE id of the one who gets it.")],
    leg: Annotated[
        str, typer.Option(help="Whose evidence: police, or probation without the protected persons.")
    ] = "police",
    purpose: Annotated[str, typer.Option(help="What for.")] = "COURT",
    who: Annotated[str, typer.Option(help="SPIFFE id of the one who makes it.")] = REVIEWER,
    out: Annotated[Path | None, typer.Option(help="File to write; INCIDENT-LEG.tar unless given.")] = None,
    key: Annotated[Path | None, typer.Option(help="Key that signs; DIR/data/evidence.key unless given.")] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
) -> None:
    """Write what an incident rests on into one signed file. It is a disclosure, and goes into the ledger first."""
    try:
        fields.required_id("INCIDENT", incident_id)
    except InvalidField as error:
        raise CommandFailed(str(error), MISUSED) from None
    if leg not in LEGS:
        raise CommandFailed(f"--leg: must be one of {', '.join(LEGS)}", MISUSED)
    telemetry.configure("evidence", sys.stderr)
    grounds = BundleGrounds(basis, purpose, who, recipient)
    signer = key or folder / "data" / "evidence.key"
    bundle = uvloop.run(collection.make(mesh.load(folder), folder, incident_id, leg, grounds, signer))
    path = out or Path(f"{incident_id}-{leg}.tar")
    collection.write(path, bundle)
    print(f"{path}: {len(bundle)} bytes, signed with {signer}; the key that proves it is {signer.with_suffix('.pub')}")
    _report(_verified(path, None), False)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle.")],
    public_key: Annotated[Path | None, typer.Option(help="The keeper's public key (evidence.pub).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prove a bundle, without any server or network: nothing was altered, and the decision comes again.

    Exit code 0: proven. 1: BROKEN, with the member and the fault, or the decision is DIFFERENT. 2: file or key can't be read.
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
        raise CommandFailed(f"{file}: {error.strerror}", MISUSED) from None
    try:
        return evidence_bundle.verify(data, public_key)
    except CorruptArchive as broken:
        raise CommandFailed(f"BROKEN {broken}") from None


def _report(found: Verified, as_json: bool, known_key: bool = False) -> None:
    told = _told(found, known_key)
    print(json.dumps(told) if as_json else "\n".join(map(printable, _lines(found, told))))
    if found.differences:
        raise typer.Exit(FAILED)


def _lines(found: Verified, told: dict[str, Any]) -> Iterator[str]:
    yield f"incident    {told['incident_id']}, evidence for {told['for']}, made {told['made_at']} with Tandem {told['software']}"
    unknown = "" if told["public_key_given"] else "; whose that is must be known from elsewhere"
    yield f"signature   good, by {told['public_key']}{unknown}"
    yield f"chains      {told['events']} events, each as its leg wrote it"
    if told["chains_missing"]:
        yield f"            MISSING: {', '.join(told['chains_missing'])}"
    if not told["whole"]:
        yield "entries     THE LOG HAD LOST SOME OF WHAT CAME BEFORE"
    yield f"decision    {told['decision']}"
    for difference in told["differences"]:
        yield f"            {difference}"
    for event in found.events:
        if not event.alert_id:
            when = times.to_rfc3339(event.body["at_ms"])
            yield f"{when}  {event.leg:9}  {event.kind:12}  {event.body.get('by', '')}".rstrip()


def _told(found: Verified, known_key: bool) -> dict[str, Any]:
    manifest, again = found.manifest, found.replay
    if again is None:
        decision = "not in this bundle: it lacks where the protected persons were; the police's shows it"
    elif again.differences:
        decision = "DIFFERENT"
    else:
        decision = f"{len(again.again)} alerts from {again.entries} entries are the same again, byte for byte"
    return {
        "incident_id": manifest["incident_id"],
        "for": manifest["for"],
        "made_at": times.to_rfc3339(manifest["made_at_ms"]),
        "software": manifest["software"],
        "public_key": found.public_key.hex(),
        "public_key_given": known_key,
        "whole": manifest["whole"],
        "ended": manifest["ended"],
        "entries": again.entries if again else None,
        "events": len(found.events),
        "chains_missing": manifest["chains_missing"],
        "decision": decision,
        "differences": found.differences,
    }

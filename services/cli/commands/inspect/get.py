"""`tandem get`: read one record. Each reading is a row of the ledger of disclosures."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from google.protobuf import json_format

from services.cli import arguments
from services.cli.calls import call
from services.cli.explain import disclosures
from services.cli.explain.cases import case_json
from services.cli.explain.disclosures import Reader
from services.cli.feasibility import stored
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.common.privacy.grounds import Purpose, RecordKind
from tandem.registry.v1 import disclosure_pb2


class ReadKind(StrEnum):
    """Kind of a record that can be read."""

    WEARER = "wearer"
    PERSON = "person"
    ORDER = "order"


_KINDS = {
    ReadKind.WEARER: (RecordKind.WEARER,),
    ReadKind.PERSON: (RecordKind.PROTECTED_PERSON,),
    # A joint case names the wearer and the protected persons too.
    ReadKind.ORDER: (RecordKind.ORDER, RecordKind.WEARER, RecordKind.PROTECTED_PERSON),
}


def get(
    kind: Annotated[ReadKind, typer.Argument(help="Kind of the record.")],
    id_: Annotated[str, typer.Argument(metavar="ID", help="The agency's id of the record.")],
    legal_basis: Annotated[str, typer.Option(metavar="CODE", help="Code of the legal basis, such as TAG_16_2.")],
    *,
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="Name of the reader.")],
    purpose: Annotated[Purpose, typer.Option(help="Purpose of the disclosure.", case_sensitive=False)] = Purpose.AUDIT,
    reference: Annotated[str, typer.Option(metavar="ID", help="Incident, case or order that it concerns.")] = "",
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
) -> None:
    """Print one record as JSON. The ledger of disclosures records the reading first.

    Wearers and persons are printed as `tandem put` takes them, and an order as it is enforced: its newest joint case in the log. Of
    a protected person, a reviewer sees neither her contact nor where she lives.
    """
    arguments.required_id("ID", id_)
    running = mesh.load(folder)
    to = disclosures.reader(
        reviewer,
        legal_basis,
        purpose,
        now_ms=running.clock.now_ms(),
        needed_by="a reading",
        kinds=_KINDS[kind],
    )
    if kind is ReadKind.ORDER:
        record = case_json(uvloop.run(stored.read(running, id_, "", to=to)))
    else:
        record = uvloop.run(_read(running, kind, id_, to=to, reference=reference))
    print(json.dumps(record, ensure_ascii=False, indent=2))


async def _read(running: MeshConnection, kind: ReadKind, id_: str, *, to: Reader, reference: str) -> dict[str, Any]:
    """The record of a person as the registry discloses it to a reviewer."""
    grounds = disclosure_pb2.Grounds(
        legal_basis=to.legal_basis,
        purpose=disclosure_pb2.Purpose.Value(f"PURPOSE_{to.purpose.value}"),
        reference=reference,
    )
    async with mesh.connect(running) as clients:
        identity = clients.identity(to.spiffe_id)
        if kind is ReadKind.WEARER:
            wearer_request = disclosure_pb2.ReadWearerRequest(wearer_id=id_, grounds=grounds)
            wearer = await call(clients.disclosures.ReadWearer, wearer_request, identity)
            return json_format.MessageToDict(wearer.wearer, preserving_proto_field_name=True)
        person_request = disclosure_pb2.ReadProtectedPersonRequest(person_id=id_, grounds=grounds)
        person = await call(clients.disclosures.ReadProtectedPerson, person_request, identity)
        return json_format.MessageToDict(person.protected_person, preserving_proto_field_name=True)

"""`tandem put`: put one record of an agency into a running mesh, from a JSON file or standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import uvloop

from services.cli.bulk import AnyRecord, put_records
from services.cli.failure import MISUSED, CommandFailed
from services.cli.simulate.actors import MOJ_RECORDS, NPA_RECORDS
from services.cli.simulate.files import FileError, InputPlace, json_object, message_of, read_text
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import printable
from services.registry.records import translate
from tandem.registry.v1 import registry_pb2

STDIN = Path("-")


class Kind(StrEnum):
    """Kind of a record."""

    WEARER = "wearer"
    TAG = "tag"
    PERSON = "person"
    DEVICE = "device"
    ORDER = "order"


class _Form(NamedTuple):
    """How a kind of record is read, and which agency puts it."""

    message: type[AnyRecord]
    parse: Callable[[Any], object]
    """Checks the record as the registry does. Raises InvalidField."""
    agency: str


_FORMS = {
    Kind.WEARER: _Form(registry_pb2.Wearer, translate.parse_wearer, MOJ_RECORDS),
    Kind.TAG: _Form(registry_pb2.Tag, translate.parse_tag, MOJ_RECORDS),
    Kind.PERSON: _Form(registry_pb2.ProtectedPerson, translate.parse_protected_person, NPA_RECORDS),
    Kind.DEVICE: _Form(registry_pb2.Device, translate.parse_device, NPA_RECORDS),
    Kind.ORDER: _Form(registry_pb2.Order, translate.parse_order, NPA_RECORDS),
}


def put(
    kind: Annotated[Kind, typer.Argument(help="Kind of the record.")],
    file: Annotated[
        Path, typer.Argument(help="JSON file with the fields of the record, see docs; - for standard input.")
    ],
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
) -> None:
    """Put one record as its agency does: wearers and tags as the Ministry, all others as the police.

    The fields are those of registry.proto. A record that exists is replaced if its source_version is greater.
    """
    form = _FORMS[kind]
    place = InputPlace(file)
    try:
        text = sys.stdin.read() if file == STDIN else read_text(file)
        record = message_of(place, json_object(place, text), form.message, parse=form.parse)
    except FileError as error:
        raise CommandFailed(str(error), MISUSED) from None
    except UnicodeDecodeError:
        raise CommandFailed("standard input isn't text in UTF-8", MISUSED) from None
    result = uvloop.run(_put(mesh.load(folder), record, form.agency))
    for warning in result.warnings:
        print(printable(f"warning: {warning.field}: {warning.reason}"), file=sys.stderr)
    print(registry_pb2.PutOutcome.Name(result.outcome).lower())


async def _put(running: MeshConnection, record: AnyRecord, agency: str) -> registry_pb2.RecordResult:
    """The registry's result for the record. Raises CommandFailed if it refuses the record."""
    async with mesh.connect(running) as clients:
        (result,) = await put_records(clients.registry, [record], clients.identity(agency))
    if result.HasField("refusal"):
        violations = result.refusal.field_violations
        reasons = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise CommandFailed(printable(f"refused: {reasons or result.refusal.message}"), MISUSED)
    return result

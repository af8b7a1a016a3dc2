"""`tandem put`, `import` and `get`: records of the agencies, stored one by one or in bulk, and read by a disclosure."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import uvloop
from google.protobuf import json_format

from services.cli import csv_records, terminal, usage
from services.cli.csv_records import CsvLine, Fault
from services.cli.simulate.files import FileError, InputPlace, json_object, message_of, read_text
from services.cli.terminal import SafeConsole
from services.client import calls, mesh
from services.client.actors import MOJ_RECORDS, NPA_RECORDS
from services.client.calls import AnyRecord, call, put_records
from services.client.mesh import DEFAULT_FOLDER, MeshConnection
from services.common.failure import MISUSED, CommandFailed, printable
from services.common.privacy.grounds import Purpose, RecordKind
from services.court import from_mesh
from services.court.explain.explanation import case_json
from services.court.from_mesh import Reader
from services.registry.records import translate
from tandem.registry.v1 import disclosure_pb2, registry_pb2

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
    folder: usage.MeshFolder = DEFAULT_FOLDER,
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
    result = uvloop.run(_put_record(mesh.load(folder), record, form.agency))
    for warning in result.warnings:
        print(printable(f"warning: {warning.field}: {warning.reason}"), file=sys.stderr)
    print(registry_pb2.PutOutcome.Name(result.outcome).lower())


async def _put_record(running: MeshConnection, record: AnyRecord, agency: str) -> registry_pb2.RecordResult:
    """The registry's result for the record. Raises CommandFailed if it refuses the record."""
    async with mesh.connect(running) as clients:
        (result,) = await put_records(clients.registry, [record], clients.identity(agency))
    if result.HasField("refusal"):
        violations = result.refusal.field_violations
        reasons = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise CommandFailed(printable(f"refused: {reasons or result.refusal.message}"), MISUSED)
    return result


_OWNERS = (registry_pb2.Wearer, registry_pb2.ProtectedPerson)
"""Types of records that the other records of the same line refer to. They are put first."""
_MINISTRY = (registry_pb2.Wearer, registry_pb2.Tag)
"""Records of the Ministry; the others are records of the police."""


def import_(
    table: Annotated[
        Path,
        typer.Argument(help="wearers.csv, orders.csv or devices.csv; its first line names the columns, see examples/."),
    ],
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the lines without importing them.")] = False,
) -> None:
    """Import wearers, orders or devices from a CSV file. Bad lines are reported, and the others imported.

    The file is UTF-8 or, as spreadsheets write it in Korea, CP949. Exit code 2 if a line was bad.
    """
    read = csv_records.read(table)
    lines = read.lines
    faults = [line.fault for line in lines if line.fault]
    imported = _Imported()
    if not dry_run:
        imported = uvloop.run(_put_lines(mesh.load(folder), [line for line in lines if not line.fault]))
        faults += imported.faults.values()
    console = SafeConsole(highlight=False, soft_wrap=True)
    for warning in sorted(imported.warnings, key=lambda warning: warning.line):
        console.print("warning", str(warning), style="yellow")
    for fault in sorted(faults, key=lambda fault: fault.line):
        console.print(str(fault), style="red")
    if read.encoding != csv_records.UTF_8:
        console.print(f"the file was read as {read.encoding}: look at a name on the console to see that it is right")
    good = len(lines) - len({fault.line for fault in faults})
    done = "would be imported" if dry_run else "imported"
    counts = ", ".join(f"{count} {name.lower()}" for name, count in sorted(imported.outcomes.items()))
    console.print(f"{good} of {len(lines)} lines {done}{f': {counts}' if counts else ''}")
    raise typer.Exit(MISUSED if faults else 0)


@dataclass
class _Imported:
    """Results of an import, as the registry answered."""

    faults: dict[int, Fault] = field(default_factory=dict)
    """First refusal of each refused line, by line number."""
    warnings: list[Fault] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    """Number of records by outcome."""

    def add(self, line: int, result: registry_pb2.RecordResult) -> None:
        """Count the result for a record of a line."""
        if result.HasField("refusal"):
            self.faults.setdefault(line, _fault(line, result.refusal))
            return
        self.outcomes[registry_pb2.PutOutcome.Name(result.outcome)] += 1
        self.warnings += [Fault(line, warning.field, warning.reason) for warning in result.warnings]


async def _put_lines(running: MeshConnection, lines: Sequence[CsvLine]) -> _Imported:
    """Puts the wearers and persons of all lines, then the other records of those lines of which no record was refused."""
    imported = _Imported()
    async with mesh.connect(running) as clients:
        with terminal.progress_bar() as shown:
            task = shown.add_task("importing", total=sum(len(line.records) for line in lines))
            for owners in (True, False):
                records = [
                    (line.number, record)
                    for line in lines
                    if line.number not in imported.faults
                    for record in line.records
                    if isinstance(record, _OWNERS) is owners
                ]
                results = await calls.put_records(
                    clients.registry,
                    [record for _, record in records],
                    clients.identity(_identity(records[0][1] if records else None)),
                    on_answered=lambda count: shown.advance(task, count),
                )
                for (number, _), result in zip(records, results, strict=True):
                    imported.add(number, result)
    return imported


def _identity(record: calls.AnyRecord | None) -> str:
    """SPIFFE id of the agency that owns a record. All records of a file have the same owner."""
    return MOJ_RECORDS if isinstance(record, _MINISTRY) else NPA_RECORDS


def _fault(line: int, refusal: registry_pb2.Refusal) -> Fault:
    """The registry's refusal of a record, as a fault. The refusal's text begins with the field, if a field is wrong."""
    if refusal.field_violations:
        return Fault(line, refusal.field_violations[0].field, refusal.field_violations[0].description)
    field_path, separator, reason = refusal.message.partition(": ")
    return Fault(line, field_path, reason) if separator and " " not in field_path else Fault(line, "", refusal.message)


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
    folder: usage.MeshFolder = DEFAULT_FOLDER,
) -> None:
    """Print one record as JSON. The ledger of disclosures records the reading first.

    Wearers and persons are printed as `tandem put` takes them, and an order as it is enforced: its newest joint case in the log. Of
    a protected person, a reviewer sees neither her contact nor where she lives.
    """
    usage.required_id("ID", id_)
    running = mesh.load(folder)
    to = from_mesh.checked_reader(
        reviewer,
        legal_basis,
        purpose,
        now_ms=running.clock.now_ms(),
        needed_by="a reading",
        kinds=_KINDS[kind],
    )
    if kind is ReadKind.ORDER:
        record = case_json(uvloop.run(from_mesh.read_stored_order(running, id_, "", to=to)))
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

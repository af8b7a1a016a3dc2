"""`tandem import`: import an agency's records from a CSV file into a running mesh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from services.cli import bulk, csv_records, progress
from services.cli.csv_records import CsvLine, Fault
from services.cli.failure import MISUSED
from services.cli.simulate.actors import MOJ_RECORDS, NPA_RECORDS
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.terminal import SafeConsole
from tandem.registry.v1 import registry_pb2

_OWNERS = (registry_pb2.Wearer, registry_pb2.ProtectedPerson)
"""Types of records that the other records of the same line refer to. They are put first."""
_MINISTRY = (registry_pb2.Wearer, registry_pb2.Tag)
"""Records of the Ministry; the others are records of the police."""


def import_(
    table: Annotated[
        Path,
        typer.Argument(help="wearers.csv, orders.csv or devices.csv; its first line names the columns, see examples/."),
    ],
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
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
        imported = uvloop.run(_put(mesh.load(folder), [line for line in lines if not line.fault]))
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


async def _put(running: MeshConnection, lines: Sequence[CsvLine]) -> _Imported:
    """Puts the wearers and persons of all lines, then the other records of those lines of which no record was refused."""
    imported = _Imported()
    async with mesh.connect(running) as clients:
        with progress.bar() as shown:
            task = shown.add_task("importing", total=sum(len(line.records) for line in lines))
            for owners in (True, False):
                records = [
                    (line.number, record)
                    for line in lines
                    if line.number not in imported.faults
                    for record in line.records
                    if isinstance(record, _OWNERS) is owners
                ]
                results = await bulk.put_records(
                    clients.registry,
                    [record for _, record in records],
                    clients.identity(_identity(records[0][1] if records else None)),
                    on_answered=lambda count: shown.advance(task, count),
                )
                for (number, _), result in zip(records, results, strict=True):
                    imported.add(number, result)
    return imported


def _identity(record: bulk.AnyRecord | None) -> str:
    """SPIFFE id of the agency that owns a record. All records of a file have the same owner."""
    return MOJ_RECORDS if isinstance(record, _MINISTRY) else NPA_RECORDS


def _fault(line: int, refusal: registry_pb2.Refusal) -> Fault:
    """The registry's refusal of a record, as a fault. The refusal's text begins with the field, if a field is wrong."""
    if refusal.field_violations:
        return Fault(line, refusal.field_violations[0].field, refusal.field_violations[0].description)
    field_path, separator, reason = refusal.message.partition(": ")
    return Fault(line, field_path, reason) if separator and " " not in field_path else Fault(line, "", refusal.message)

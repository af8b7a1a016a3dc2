"""`tandem import`: import an agency's records from a CSV file into a running mesh."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import grpc.aio
import typer
import uvloop
from google.protobuf.message import Message

from services.cli import csv_records, progress
from services.cli.calls import call, may_succeed_later
from services.cli.csv_records import CsvLine, Fault
from services.cli.failure import FAILED, MISUSED, CommandFailed, of_rpc
from services.cli.simulate.actors import MOJ_RECORDS, NPA_RECORDS
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, Clients, MeshConnection
from services.cli.terminal import SafeConsole
from tandem.registry.v1 import registry_pb2

CONCURRENCY = 8
"""Number of lines that are put concurrently."""


def import_(
    table: Annotated[Path, typer.Argument(help="wearers.csv or orders.csv; its first line names the columns.")],
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the lines without importing them.")] = False,
) -> None:
    """Import wearers or orders from a CSV file. Bad lines are reported, and the others imported.

    Exit code 2 if a line was bad.
    """
    lines = csv_records.read(table)
    faults = [line.fault for line in lines if line.fault]
    outcomes: Counter[str] = Counter()
    warnings: list[Fault] = []
    if not dry_run:
        refused, outcomes, warnings = uvloop.run(_put(mesh.load(folder), [line for line in lines if not line.fault]))
        faults += refused
    console = SafeConsole(highlight=False, soft_wrap=True)
    for warning in sorted(warnings, key=lambda warning: warning.line):
        console.print("warning", str(warning), style="yellow")
    for fault in sorted(faults, key=lambda fault: fault.line):
        console.print(str(fault), style="red")
    good = len(lines) - len({fault.line for fault in faults})
    done = "would be imported" if dry_run else "imported"
    counts = ", ".join(f"{count} {name.lower()}" for name, count in sorted(outcomes.items()))
    console.print(f"{good} of {len(lines)} lines {done}{f': {counts}' if counts else ''}")
    raise typer.Exit(MISUSED if faults else 0)


async def _put(running: MeshConnection, lines: Sequence[CsvLine]) -> tuple[list[Fault], Counter[str], list[Fault]]:
    """Puts all lines. Returns faults of refused lines, counts of the outcomes, and warnings."""
    faults: list[Fault] = []
    warnings: list[Fault] = []
    outcomes: Counter[str] = Counter()
    waiting = iter(lines)

    async with mesh.connect(running) as clients:
        with progress.bar() as shown:
            task = shown.add_task("importing", total=len(lines))

            async def work() -> None:
                for line in waiting:
                    try:
                        warnings.extend(await _put_line(clients, line, outcomes))
                    except grpc.aio.AioRpcError as error:
                        if may_succeed_later(error):
                            raise
                        faults.append(_fault(line.number, error))
                    shown.advance(task)

            workers = [asyncio.create_task(work()) for _ in range(CONCURRENCY)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
    return faults, outcomes, warnings


def _fault(line: int, error: grpc.aio.AioRpcError) -> Fault:
    """The registry's refusal of a line, as a fault. The refusal's text begins with the field, if a field is wrong."""
    refusal = of_rpc(error)
    if refusal.exit_code == FAILED:
        raise error
    text = error.details() or refusal.message
    field, separator, reason = text.partition(": ")
    return Fault(line, field, reason) if separator and " " not in field else Fault(line, "", text)


async def _put_line(clients: Clients, line: CsvLine, outcomes: Counter[str]) -> list[Fault]:
    warnings = []
    for record in line.records:
        method, request, identity = _request(clients, record)
        answer: Any = await call(method, request, clients.identity(identity))
        outcomes[registry_pb2.PutOutcome.Name(answer.outcome)] += 1
        warnings += [Fault(line.number, warning.field, warning.reason) for warning in getattr(answer, "warnings", ())]
    return warnings


def _request(clients: Clients, record: Message) -> tuple[Any, Message, str]:
    match record:
        case registry_pb2.Wearer():
            return clients.registry.PutWearer, registry_pb2.PutWearerRequest(wearer=record), MOJ_RECORDS
        case registry_pb2.Tag():
            return clients.registry.PutTag, registry_pb2.PutTagRequest(tag=record), MOJ_RECORDS
        case registry_pb2.ProtectedPerson():
            sent = registry_pb2.PutProtectedPersonRequest(protected_person=record)
            return clients.registry.PutProtectedPerson, sent, NPA_RECORDS
        case registry_pb2.Order():
            return clients.registry.PutOrder, registry_pb2.PutOrderRequest(order=record), NPA_RECORDS
    raise CommandFailed(f"{type(record).__name__} can't be put")

"""`tandem quarantine` and `tandem dead-letters`: reports and messages that were refused, with the reasons."""

from __future__ import annotations

import json
import sys
from collections import deque
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
import uvloop
from google.protobuf.message import DecodeError
from rich.table import Column, Table

from services.cli import usage
from services.cli.terminal import fitted, for_results
from services.client import mesh
from services.client.calls import call
from services.client.mesh import DEFAULT_FOLDER, OPERATOR, MeshConnection
from services.common import times
from services.common.failure import printable
from services.common.messaging import flow, pull
from services.common.messaging.pull import Delivered
from services.common.observability import telemetry
from tandem.common.v1 import alert_pb2
from tandem.ingest.v1 import ingest_pb2

INCOMPLETE = (
    "Incomplete: more reports were refused than are kept. A row without a device may combine several devices; the oldest counts are "
    "dropped."
)


def quarantine(
    device: Annotated[str, typer.Option(help="Show this device only.")] = "",
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    as_json: usage.AsJson = False,
) -> None:
    """List the reports that were refused in the last 7 days: counts, never their contents."""
    answer = uvloop.run(_ask(mesh.load(folder), device))
    rows = [
        {
            "device_id": counted.device_id,
            "sender": counted.sender,
            "reason": ingest_pb2.RefusalCode.Name(counted.code).removeprefix("REFUSAL_CODE_"),
            "count": counted.count,
            "first": times.to_rfc3339(times.from_timestamp(counted.first)),
            "last": times.to_rfc3339(times.from_timestamp(counted.last)),
        }
        for counted in answer.quarantined
    ]
    if as_json:
        print(json.dumps({"quarantined": rows, "incomplete": answer.incomplete}))
        return
    console = for_results()
    if not rows:
        console.print("no reports were refused")
        return
    table = Table("device", "sender", "reason", "count", "first", "last")
    for row in rows:
        table.add_row(*(str(value) or "-" for value in row.values()))
    console.print(fitted(console, table))
    if answer.incomplete:
        console.print(INCOMPLETE)


async def _ask(running: MeshConnection, device_id: str) -> ingest_pb2.ListQuarantineResponse:
    async with mesh.connect(running) as clients:
        request = ingest_pb2.ListQuarantineRequest(device_id=device_id)
        return await call(clients.ingest.ListQuarantine, request, clients.identity(OPERATOR))


FORGED = "FORGED"
"""Reader of a dead letter whose subject isn't that of its content: another user of the server than the named reader wrote it."""


@dataclass(frozen=True, slots=True)
class ListedDeadLetter:
    """A dead letter as the command lists it."""

    stream: str
    sequence: int
    """Sequence of the unusable message in its stream; of a forged dead letter, its own."""
    by: str
    """The reader that couldn't use the message, or FORGED."""
    reason: str
    kept_at: str
    """When it was kept, RFC 3339."""


def dead_letters(
    by: Annotated[str, typer.Option(help="Show those of this reader only, such as fold or police-alerts.")] = "",
    last: Annotated[int, typer.Option(help="Number of the newest ones to show.", min=1)] = 100,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    *,
    as_json: usage.AsJson = False,
) -> None:
    """List the messages that a reader couldn't use, with the reason. The runbook says for each reader what to do."""
    telemetry.configure("dead-letters", sys.stderr)
    total, newest = uvloop.run(_read(mesh.load(folder), by, last))
    if as_json:
        print(json.dumps({"total": total, "dead_letters": [asdict(letter) for letter in newest]}))
        return
    console = for_results()
    if not newest:
        console.print(f"there are no dead letters{f' of {printable(by)}' if by else ''}")
        return
    table = Table("kept", "stream", Column("message", justify="right"), "by", Column("reason", overflow="fold"))
    for letter in newest:
        row = (f"{letter.kept_at[:19]}Z", letter.stream, str(letter.sequence), letter.by, letter.reason)
        table.add_row(*row, style="bold red" if letter.by == FORGED else None)
    console.print(fitted(console, table))
    if total > len(newest):
        console.print(f"the newest {len(newest)} of {total}")


async def _read(running: MeshConnection, by: str, last: int) -> tuple[int, list[ListedDeadLetter]]:
    """The number of all dead letters of a reader, or of all readers, and the newest ones."""
    total, newest = 0, deque[ListedDeadLetter](maxlen=last)
    async with running.nats.bus_for_command("operator") as (bus, patience):
        bounds = await bus.bounds_of(flow.DEAD_LETTERS.name)
        if bounds.first > bounds.last:
            return 0, []
        patience.reschedule(None)  # reading a year of them may take long
        async for message in pull.between(bus, flow.DEAD_LETTERS.name, bounds.first, last=bounds.last):
            letter = _listed(message)
            if by in ("", letter.by):
                total += 1
                newest.append(letter)
    return total, list(newest)


def _listed(message: Delivered) -> ListedDeadLetter:
    kept_at = times.to_rfc3339(message.stamp_ms)
    try:
        letter = alert_pb2.DeadLetter.FromString(message.data)
        expected = flow.dead_letter_subject(letter.by, letter.stream, letter.sequence)
    except (DecodeError, KeyError):
        letter, expected = alert_pb2.DeadLetter(), ""
    if message.subject != expected:
        return ListedDeadLetter(
            stream=flow.DEAD_LETTERS.name,
            sequence=message.sequence,
            by=FORGED,
            reason=message.subject,
            kept_at=kept_at,
        )
    return ListedDeadLetter(
        stream=letter.stream, sequence=letter.sequence, by=letter.by, reason=letter.reason, kept_at=kept_at
    )

"""Tags of a benchmark that report once and confirm each command, as real ones do, until all of them were asked for their interval."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterable
from typing import Any

import grpc.aio

from bench.ingestion import saturated
from bench.ingestion.saturated import Tally
from services.client.load_generator import METHOD
from services.common.failure import CommandFailed
from services.common.rpc import server
from services.common.rpc.server import Metadata
from tandem.ingest.v1 import ingest_pb2

WINDOW = 8
"""Batches of reports in flight."""
ASKED_WITHIN_S = 300.0
"""Maximum time until all tags were asked, seconds. The fold spreads the requests over 20 s."""


async def confirm_all(address: str, identity: Metadata, reports: Iterable[bytes], *, tags: Collection[str]) -> None:
    """Sends reports on one stream, and returns once each of these tags has got a command and all receipts are stored.

    Raises CommandFailed where a report is refused, or where a tag isn't asked within ASKED_WITHIN_S.
    """
    asked: set[str] = set()
    try:
        async with asyncio.timeout(ASKED_WITHIN_S), server.channel(address) as channel:
            method: Any = channel.stream_stream(METHOD, None, ingest_pb2.ReportResponse.FromString)
            call = method(metadata=identity)
            left, unanswered = iter(reports), 0
            for message in itertools.islice(left, WINDOW):
                await call.write(message)
                unanswered += 1
            while unanswered or not asked.issuperset(tags):
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    raise CommandFailed(
                        "ingest ended the stream of the tags before all of them were asked for their interval"
                    )
                saturated.count(answer, Tally())
                for message in itertools.islice(left, answer.batches):
                    await call.write(message)
                    unanswered += 1
                unanswered -= answer.batches
                if answer.commands:
                    asked.update(command.device_id for command in answer.commands)
                    await call.write(_receipts(answer.commands))
                    unanswered += 1
            await call.done_writing()
    except TimeoutError:
        silent = len(set(tags) - asked)
        raise CommandFailed(f"{silent} tags weren't asked for their interval within {ASKED_WITHIN_S:.0f} s") from None


def _receipts(commands: Iterable[ingest_pb2.DeviceCommand]) -> bytes:
    receipts = [
        ingest_pb2.CommandReceipt(command_id=command.command_id, device_id=command.device_id) for command in commands
    ]
    return ingest_pb2.ReportRequest(receipts=receipts).SerializeToString()

"""A caller that opens far too many streams, or sends invalid batches, is refused; its neighbours aren't affected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from services.common.rpc import gatekeeper, server
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.support.ingest.ingest import WITHIN_S, Client, IngestMesh, details, event, position, request, violation

STREAMS, CONNECTIONS = 10_000, 20
"""Streams that the caller opens, and connections that carry them; a connection carries at most 512 streams."""
ALLOWED = 256
CROWD_WITHIN_S = 90.0
MAX_MEMORY_MB = 600
"""Far above the needed memory. Without a bound on open streams, there would be none on their memory either."""
ACCEPTED, REFUSED = ingest_pb2.ACCEPTED, ingest_pb2.REFUSED
METHOD = "/tandem.ingest.v1.IngestService/Report"


@pytest.fixture
async def neighbour(mesh: IngestMesh) -> AsyncIterator[Client]:
    """A vendor that behaves well."""
    async with mesh.connected() as connected:
        await connected.route("tag")
        yield connected


class Neighbour:
    """A stream that keeps sending, one batch after the other."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name
        self.answered = 0
        self._over = asyncio.Event()
        self._sending = asyncio.create_task(self._send())

    async def ended(self) -> int:
        """Sends a last batch, ends the stream and returns the number of batches, all of which were answered."""
        self._over.set()
        async with asyncio.timeout(WITHIN_S):
            return await self._sending

    async def _send(self) -> int:
        call = self._client.open()
        batch = 0
        over = False
        while not over:
            over = self._over.is_set()
            batch += 1
            await call.write(request(batch, position("tag", f"{self._name}-{batch}")))
            answer: Any = await call.read()
            assert (answer.batch, list(answer.outcomes)) == (batch, [ACCEPTED])
            self.answered = batch
            await asyncio.sleep(0.01)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        return batch


def peak_memory_mb(pid: int) -> int:
    """Returns the peak resident memory of a process, in MB."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("no /proc here to read the memory of a process from")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) >> 10


@pytest.mark.timeout(240)
async def test_ten_thousand_streams_of_one_vendor(mesh: IngestMesh, neighbour: Client) -> None:
    bystander = Neighbour(neighbour, "bystander")
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(_own_connection(mesh)) for _ in range(CONNECTIONS)]
        crowd = [Client(channel, neighbour.bus, "crowd") for channel in channels]
        await crowd[0].route("crowd")
        calls = [crowd[n % CONNECTIONS].open() for n in range(STREAMS)]
        answers = [asyncio.create_task(call.read()) for call in calls]
        async with asyncio.timeout(CROWD_WITHIN_S):
            while sum(answer.done() for answer in answers) < STREAMS - ALLOWED:  # noqa: ASYNC110 - nobody counts them
                await asyncio.sleep(0.1)
            works = [n for n, answer in enumerate(answers) if not answer.done()]
            assert len(works) == ALLOWED
            for n in works:
                await calls[n].write(request(n, position("crowd", f"crowd-{n}")))
            for n in works:
                answer: Any = await answers[n]
                assert (answer.batch, list(answer.outcomes)) == (n, [ACCEPTED])
        for n in set(range(STREAMS)) - set(works):
            refused = answers[n].exception()
            assert isinstance(refused, grpc.aio.AioRpcError)
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details(refused, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
        async with asyncio.timeout(WITHIN_S):  # it shares a processor with the crowd, whose streams are still open
            while bystander.answered <= 10:  # noqa: ASYNC110 - nobody counts them
                await asyncio.sleep(0.01)
        assert await bystander.ended() > 10
        for n in works:
            calls[n].cancel()
        # The cancelled streams don't count any more.
        await crowd[1].deliver([request(1, position("crowd", "one-of-the-crowd"))], set())
    await Neighbour(neighbour, "after").ended()
    assert peak_memory_mb(mesh.service.pid) < MAX_MEMORY_MB


def _own_connection(mesh: IngestMesh) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(mesh.address, options=[("grpc.use_local_subchannel_pool", 1)])


# ── bad frames ───────────────────────────────────────────────────────────────────────────────────────────────────────


def frame(*reports: Any) -> bytes:
    """A request as bytes on the wire."""
    return request(1, *reports).SerializeToString()


UNREADABLE = gatekeeper.unreadable("tandem.ingest.v1.ReportRequest").reason
BAD_FRAMES: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "positions", "a batch holds 1 to 1000 reports, this one 0"),
    "too many": (
        frame(*(position("tag", f"many-{n}") for n in range(1_001))),
        "positions",
        "a batch holds 1 to 1000 reports, this one 1001",
    ),
    "no UTF-8": (
        frame(position("tag", "utf-XX")).replace(b"utf-XX", b"utf-\xff\xfe"),
        "",
        UNREADABLE,
    ),
    "half a frame": (frame(position("tag", "half"))[:-3], "", UNREADABLE),
}


@pytest.mark.parametrize("what", BAD_FRAMES)
async def test_a_bad_frame_ends_its_stream_and_no_other(mesh: IngestMesh, neighbour: Client, what: str) -> None:
    raw, field, reason = BAD_FRAMES[what]
    bystander = Neighbour(neighbour, f"bystander-{what.replace(' ', '-')}")
    before = set(await neighbour.stored())
    async with server.channel(mesh.address) as channel:
        method: Any = channel.stream_stream(METHOD, response_deserializer=ingest_pb2.ReportResponse.FromString)
        call = method(iter([raw]), metadata=neighbour.identity)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async with asyncio.timeout(WITHIN_S):
                await call.read()
    assert violation(ended.value) == (field, reason)
    await bystander.ended()
    new_ids = set(await neighbour.stored()) - before
    assert {report_id for report_id in new_ids if not report_id.startswith("bystander-")} == set()


async def test_devices_of_another_vendor_and_unknown_events_are_refused_one_by_one(
    mesh: IngestMesh, neighbour: Client
) -> None:
    bystander = Neighbour(neighbour, "bystander-claims")
    async with server.channel(mesh.address) as channel:
        claimant = Client(channel, neighbour.bus, "claimant")
        await claimant.route("own")
        unknown = event("own", "from-the-future")
        unknown.event = 99  # type: ignore[assignment]
        batch = request(1, position("own", "own"), position("tag", "claimed"), event("tag", "claimed-e"), unknown)
        (answer,) = await claimant.send(batch)
        unary: Any = await ingest_pb2_grpc.IngestServiceStub(channel).ReportBatch(
            ingest_pb2.ReportBatchRequest(positions=batch.positions, equipment=batch.equipment),
            metadata=claimant.identity,
            timeout=WITHIN_S,
        )
    for response in (answer, unary):
        assert list(response.outcomes) == [ACCEPTED, REFUSED, REFUSED, REFUSED]
        assert [(refusal.field, refusal.code) for refusal in response.refusals] == [
            ("positions[1].device_id", ingest_pb2.REFUSAL_CODE_NOT_YOURS),
            ("equipment[0].device_id", ingest_pb2.REFUSAL_CODE_NOT_YOURS),
            ("equipment[1].event", ingest_pb2.REFUSAL_CODE_INVALID),
        ]
    await bystander.ended()
    stored = await neighbour.stored()
    assert stored["own"] == 2 and not {"claimed", "claimed-e", "from-the-future"} & set(stored)

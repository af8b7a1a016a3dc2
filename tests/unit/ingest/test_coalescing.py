"""Requests of a sender that become one batch: indexes, errors and trace contexts of their reports."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from services.common.errors import Unavailable
from services.ingest import translate
from services.ingest.admission.checks import RoutedPositions
from services.ingest.batch import Batch, Reports
from services.ingest.domain import Endpoint, Position, Positions, Reason, Refusal, Sender
from services.ingest.endpoints import grpc_api
from services.ingest.endpoints.grpc_api import MAX_COALESCED, Batches, PendingAnswer, ReportStream, request_size_of
from services.ingest.intake import InFlightLimiter
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2

SENDER = Sender("spiffe://vendor/v", "v", "")
CONTEXTS = ("", f"00-{'ab' * 16}-{'cd' * 8}-00")


def request(number: int, *latitudes_deg: float) -> ingest_pb2.ReportRequest:
    """A request with a position at each latitude; the report ids are the number and the index."""
    positions = []
    for i, lat_deg in enumerate(latitudes_deg):
        position = ingest_pb2.Position(
            device_id=f"d{number}", report_id=f"{number}-{i}", lat_deg=lat_deg, lon_deg=127, accuracy_m=5
        )
        position.fix_time.GetCurrentTime()
        positions.append(position)
    return ingest_pb2.ReportRequest(batch=number, positions=positions)


class Intake:
    """Stand-in that writes each batch at once, refuses some reports by index, and can fail."""

    def __init__(self, refused: Sequence[int] = (), error: Exception | None = None) -> None:
        self.batches: list[list[str]] = []
        """Report ids of each batch."""
        self._refused, self._error = refused, error
        self.in_arrears = False
        """Whether the sender owes a long penalty delay."""
        self.has_passed = asyncio.Event()
        """Cleared while the sender waits for its penalty delay."""
        self.has_passed.set()

    def is_in_arrears(self, sender: Sender) -> bool:
        return self.in_arrears

    async def admit(self, batch: Batch, sender: Sender, reports: Reports, *, endpoint: Endpoint) -> None:
        batch.check()
        self.batches.append(list(reports.positions.report_ids))
        if self._error:
            raise self._error
        batch.write([Refusal(i, "device_id", "is unknown", Reason.UNKNOWN_DEVICE) for i in self._refused])
        await self.has_passed.wait()


class Heard:
    """Stand-in for the commands that keeps the sessions of the devices."""

    def __init__(self) -> None:
        self.sessions: dict[str, ReportStream] = {}

    def heard(self, sessions: Mapping[str, Any]) -> None:
        self.sessions |= sessions


async def bring(admission: Batches, stream: ReportStream, message: ingest_pb2.ReportRequest) -> None:
    """Brings a request that a stream has read into the intake."""
    answer = PendingAnswer(
        number=message.batch,
        count=len(message.positions) + len(message.equipment),
        positions=len(message.positions),
        equipment=len(message.equipment),
        together=False,
        receipts=(),
        held=request_size_of(message),
    )
    await stream.window(answer.held)
    stream.answer(answer)
    await admission.admit(stream, message, answer)


async def sent(intake: Intake, *requests: ingest_pb2.ReportRequest) -> tuple[list[ReportStream], Heard]:
    """Sends each request on a stream of its own, all in one moment."""
    heard, streams = Heard(), []
    admission = Batches(cast(Any, intake), cast(Any, heard))
    for message in requests:
        stream = ReportStream(SENDER, InFlightLimiter())
        await bring(admission, stream, message)
        streams.append(stream)
    await asyncio.gather(*admission._workers)
    return streams, heard


async def test_small_requests_become_one_batch_and_each_gets_the_refusals_of_its_reports() -> None:
    intake = Intake(refused=[2])
    streams, heard = await sent(intake, request(1, 37, 38), request(2, 37, 38), request(3, 37))
    assert intake.batches == [["1-0", "1-1", "2-0", "2-1", "3-0"]]
    answers = [await stream.next() for stream in streams]
    assert [[refusal.index for refusal in answer.refusals] for answer in answers if answer] == [[], [0], []]
    assert heard.sessions == {"d1": streams[0], "d2": streams[1], "d3": streams[2]}


async def test_a_large_request_is_a_batch_by_itself_and_goes_the_same_way() -> None:
    intake = Intake()
    (stream,), heard = await sent(intake, request(1, *range(30, 40)))
    answer = await stream.next()
    assert answer and len(answer.outcomes) == 10 and len(intake.batches) == 1
    assert heard.sessions == {}, "the stand-in names no accepted device"


async def test_a_batch_holds_a_bounded_number_of_requests() -> None:
    intake = Intake()
    await sent(intake, *(request(n, 37) for n in range(MAX_COALESCED + 1)))
    assert [len(ids) for ids in intake.batches] == [MAX_COALESCED, 1]


async def test_every_stream_with_a_request_in_a_failed_batch_ends_with_its_error() -> None:
    error = Unavailable("a device can't be looked up")
    streams, _ = await sent(Intake(error=error), request(1, 37), request(2, 37))
    for stream in streams:
        try:
            await stream.next()
        except Unavailable as raised:
            assert raised is error
        else:
            raise AssertionError("the stream went on")


def test_an_unreadable_report_is_named_by_its_index_in_the_batch_and_the_others_keep_their_contexts() -> None:
    reports = grpc_api.read_requests([request(1, 37, 91), request(2, 37)], [(2, CONTEXTS[0]), (1, CONTEXTS[1])])
    assert reports.positions.report_ids == ["1-0", "2-0"] and reports.position_indexes == [0, 2]
    assert [(refusal.index, refusal.field) for refusal in reports.unreadable] == [(1, "lat_deg")]
    assert reports.claimed == {1: "d1"} and reports.contexts == [(1, CONTEXTS[0]), (1, CONTEXTS[1])]


def test_positions_that_are_kept_keep_their_partitions_and_contexts() -> None:
    rows = [Position(f"d{n}", "r", 1, lat_e7=1, lon_e7=1, accuracy_mm=1) for n in range(3)]
    routed = RoutedPositions(Positions.of(rows), [(0,), (1,), (0, 1)], [(2, CONTEXTS[0]), (1, CONTEXTS[1])])
    kept = routed.only([0, 2])
    assert kept.columns.device_ids == ["d0", "d2"] and kept.partitions == [(0,), (0, 1)]
    assert kept.contexts == [(1, CONTEXTS[0]), (1, CONTEXTS[1])]
    assert RoutedPositions(Positions.of(rows), [(0,)] * 3, ()).only([1]).contexts == ()


async def test_streams_that_bring_too_many_refused_reports_take_turns_and_delay_no_panic() -> None:
    intake = Intake(refused=[0])
    intake.in_arrears = True
    intake.has_passed.clear()
    admission = Batches(cast(Any, intake), cast(Any, Heard()))
    streams = [ReportStream(SENDER, InFlightLimiter()) for _ in range(3)]
    for stream in streams:
        stream.brings_refused = True
    for number, stream in enumerate(streams):
        await bring(admission, stream, request(number, *range(30, 40)))  # returns, so that the stream is read on
    await asyncio.sleep(0)
    assert len(intake.batches) == 1, "the others wait for the penalty delay of the first"
    panic = request(9, *range(30, 40))
    panic.equipment.add(device_id="d9", report_id="panic", event=log_pb2.PANIC_BUTTON).event_time.GetCurrentTime()
    other = asyncio.create_task(bring(admission, streams[2], panic))
    while len(intake.batches) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert intake.batches[1][0] == "9-0"
    intake.has_passed.set()
    await asyncio.gather(other, *admission._workers)
    assert len(intake.batches) == 4 and all(stream.brings_refused for stream in streams)
    intake.in_arrears = False
    await bring(admission, streams[0], request(10, *range(30, 40)))
    await asyncio.gather(*admission._workers)
    assert not streams[0].brings_refused


@pytest.mark.parametrize("count", [1, 3, 4])
def test_positions_are_read_at_once_however_few_they_are(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(msg: ingest_pb2.Position) -> Position:
        raise AssertionError("a sound position was read by itself")

    monkeypatch.setattr(translate, "parse_position", parse)
    reports = grpc_api.read_requests([request(n, 37.5) for n in range(count)])
    assert reports.positions.report_ids == [f"{n}-0" for n in range(count)] and not reports.unreadable


@pytest.mark.parametrize("count", [1, 4])
def test_a_missing_device_id_is_named_as_missing(count: int) -> None:
    nameless = request(0, 37.5)
    nameless.positions[0].device_id = ""
    reports = grpc_api.read_requests([nameless, *(request(n, 37.5) for n in range(1, count))])
    assert [(refusal.index, refusal.field, refusal.reason) for refusal in reports.unreadable] == [
        (0, "device_id", "is missing")
    ]
    assert list(reports.position_indexes) == list(range(1, count))

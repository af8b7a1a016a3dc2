"""What devices do is judged by their reports alone: the interval that they keep, and the requests for a position that they answer."""

from __future__ import annotations

import pytest

from services.ingest.domain import Position, Positions
from services.ingest.observed import Obedience, ObservedReports
from tandem.common.v1 import command_pb2

NOW_MS = 1_780_000_000_000


def interval(interval_s: int, until_ms: int = NOW_MS + 3_600_000) -> command_pb2.Command:
    instruction = command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=interval_s))
    return command_pb2.Command(command_id="c", device_id="tag", instruction=instruction, expires_at_ms=until_ms)


def locate(command_id: str, issued_at_ms: int) -> command_pb2.Command:
    return command_pb2.Command(
        command_id=command_id,
        device_id="tag",
        instruction=command_pb2.Instruction(locate_now=command_pb2.LocateNow()),
        issued_at_ms=issued_at_ms,
        expires_at_ms=issued_at_ms + 60_000,
    )


class Reports:
    """Reports of a device, whose time is that of the mesh unless it is given."""

    def __init__(self) -> None:
        self.observed, self.now_ms = ObservedReports(), NOW_MS

    def fix(self, after_s: float, *, clock_ms: int = 0) -> None:
        self.now_ms += round(after_s * 1000)
        position = Position("tag", "r", self.now_ms + clock_ms, 375_000_000, 1_270_000_000, 5_000)
        self.observed.accepted(Positions.of([position]), self.now_ms)

    def obeys(self, interval_s: int) -> Obedience:
        return self.observed.get("tag").obeys(interval_s, self.now_ms)


@pytest.fixture
def reports() -> Reports:
    return Reports()


def test_a_device_that_keeps_the_interval_obeys(reports: Reports) -> None:
    assert reports.obeys(60) is Obedience.NOT_YET, "nothing is delivered"
    reports.observed.delivered(interval(60), reports.now_ms)
    for _ in range(3):
        reports.fix(60)
        assert reports.obeys(60) is Obedience.NOT_YET
    reports.fix(63)
    assert reports.obeys(60) is Obedience.YES


def test_a_device_that_confirms_and_reports_as_before_does_not_obey(reports: Reports) -> None:
    reports.observed.watch("tag", NOW_MS + 3_600_000)
    for _ in range(5):
        reports.fix(120)
    reports.observed.delivered(interval(30), reports.now_ms)  # its receipt
    assert reports.obeys(30) is Obedience.NOT_YET
    reports.fix(115)
    assert reports.obeys(30) is Obedience.NOT_YET
    reports.now_ms += 119_000
    assert reports.obeys(30) is Obedience.NOT_YET
    reports.now_ms += 2_000
    assert reports.obeys(30) is Obedience.NO, "it misses a fourth report"
    for _ in range(5):
        reports.fix(60)
    assert reports.obeys(30) is Obedience.NO


def test_one_lost_report_and_one_step_of_its_clock_change_nothing(reports: Reports) -> None:
    reports.observed.delivered(interval(60), reports.now_ms)
    for after_s in (60, 60, 120, 60, 60):
        reports.fix(after_s)
    assert reports.obeys(60) is Obedience.YES
    for clock_ms in (90_000, 90_000, -90_000, -90_000, -90_000, -90_000, 0, 0):
        reports.fix(60, clock_ms=clock_ms)
    assert reports.obeys(60) is Obedience.YES


def test_buffered_fixes_say_nothing_about_the_interval(reports: Reports) -> None:
    reports.observed.delivered(interval(60), reports.now_ms)
    for n in range(20):
        reports.fix(0.1, clock_ms=-3_600_000 + n * 5_000)
    assert reports.observed.get("tag").interval_ms(reports.now_ms) is None


def test_a_renewed_interval_counts_from_its_first_command(reports: Reports) -> None:
    reports.observed.delivered(interval(60), reports.now_ms)
    for _ in range(5):
        reports.fix(60)
    reports.observed.delivered(interval(60), reports.now_ms)
    assert reports.obeys(60) is Obedience.YES
    reports.observed.delivered(interval(30), reports.now_ms)
    assert reports.obeys(30) is Obedience.NOT_YET


def test_a_request_for_the_position_is_answered_by_a_fix_in_time(reports: Reports) -> None:
    reports.observed.sent(locate("l-1", reports.now_ms))
    reports.fix(1, clock_ms=-30_000)  # taken before
    reports.fix(3)
    reports.observed.sent(locate("l-2", reports.now_ms + 1))
    reports.fix(90)
    device = reports.observed.get("tag")
    assert (device.locates_sent, device.locates_answered) == (2, 1)
    issued_ms = reports.now_ms
    reports.fix(1)
    reports.observed.sent(locate("l-3", issued_ms))  # the stream says it after the answer came
    assert (device.locates_sent, device.locates_answered) == (3, 2)


def test_only_devices_of_which_something_is_asked_are_observed(reports: Reports) -> None:
    reports.fix(10)
    assert not reports.observed.get("tag").fixes_ms
    reports.observed.watch("tag", reports.now_ms + 60_000)
    reports.fix(10)
    assert len(reports.observed.get("tag").fixes_ms) == 1
    reports.observed.forget(reports.now_ms + 60_000)
    reports.fix(10)
    assert not reports.observed.get("tag").fixes_ms

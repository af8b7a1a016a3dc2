"""When a reader counts as reading, by what it has heard of the server and what it works on."""

from __future__ import annotations

import pytest

from services.common.observability import readiness
from services.common.observability.readiness import SILENT_AFTER_S, STUCK_AFTER_S, Readiness


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        """As time.monotonic."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(readiness, "time", one)
    return one


def test_a_reader_reads_once_the_server_has_said_so_and_nothing_waits(clock: Clock) -> None:
    process = Readiness()
    reader = process.reader("ALERTS")
    assert process.unable() == "ALERTS isn't being read"
    with reader.reading():
        assert process.unable() == "ALERTS isn't being read yet"
        clock.now_s += SILENT_AFTER_S + 1  # its consumer can't be opened
        assert process.unable() == "ALERTS hasn't been read for 6 s"
        reader.heard()
        assert process.unable() == "the reader of ALERTS is still catching up"
        reader.caught_up()
        assert process.unable() == ""
        clock.now_s += SILENT_AFTER_S + 1
        assert process.unable() == "ALERTS hasn't been read for 6 s"
        reader.heard()
        assert process.unable() == ""
    assert process.unable() == "ALERTS isn't being read"


def test_work_that_takes_its_time_is_borne_and_work_that_never_ends_is_not(clock: Clock) -> None:
    process = Readiness()
    reader = process.reader("LOG_0")
    with reader.reading():
        reader.heard()
        reader.caught_up()
        with reader.working():
            clock.now_s += STUCK_AFTER_S
            assert process.unable() == ""
            clock.now_s += 2
            assert process.unable() == "LOG_0: the same messages have been worked on for 12 s"
        assert process.unable() == "", "the heartbeats of that time haven't been looked at yet"


def test_what_can_wait_leaves_a_process_ready_and_is_said(clock: Clock) -> None:
    process = Readiness()
    reader = process.lesser_reader("traces")
    assert (process.unable(), process.degraded()) == ("", ""), "another process reads them"
    with reader.reading():
        assert process.degraded() == "", "it has only begun"
        clock.now_s += SILENT_AFTER_S + 1
        assert (process.unable(), process.degraded()) == ("", "traces hasn't been read for 6 s")
        reader.heard()
        reader.caught_up()
        assert process.degraded() == ""


def test_the_first_reason_is_given_and_all_that_waits() -> None:
    process = Readiness()
    for reason in ("", "first", "second"):
        process.need(lambda reason=reason: reason)  # type: ignore[misc]
        process.want(lambda reason=reason: reason)  # type: ignore[misc]
    assert (process.unable(), process.degraded()) == ("first", "first; second")

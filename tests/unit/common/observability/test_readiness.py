"""Readiness of readers, by the signs of the server and the duration of their work."""

from __future__ import annotations

import pytest

from services.common.observability import health
from services.common.observability.health import SILENT_AFTER_S, STUCK_AFTER_S, Readiness


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        """Replaces time.monotonic."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(health, "time", stopped)
    return stopped


def test_a_reader_is_ready_once_the_server_answers_and_it_has_caught_up(clock: Clock) -> None:
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


def test_slow_work_keeps_a_reader_ready_but_stuck_work_does_not(clock: Clock) -> None:
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
        assert process.unable() == "", "heartbeats that arrived during the work haven't been read yet"


def test_an_optional_reader_leaves_a_process_ready_and_degraded(clock: Clock) -> None:
    process = Readiness()
    reader = process.optional_reader("traces")
    assert (process.unable(), process.degraded()) == ("", ""), "another process may read them"
    with reader.reading():
        assert process.degraded() == "", "the reader has only begun"
        clock.now_s += SILENT_AFTER_S + 1
        assert (process.unable(), process.degraded()) == ("", "traces hasn't been read for 6 s")
        reader.heard()
        reader.caught_up()
        assert process.degraded() == ""


def test_unable_gives_the_first_reason_and_degraded_gives_all() -> None:
    process = Readiness()
    for reason in ("", "first", "second"):
        process.need(lambda reason=reason: reason)  # type: ignore[misc]
        process.want(lambda reason=reason: reason)  # type: ignore[misc]
    assert (process.unable(), process.degraded()) == ("first", "first; second")

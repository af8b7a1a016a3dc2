"""Log lines about news that field follows: an ordinary start has no error, and an outage has one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from services.field import news
from services.field.news import NOTICES, OFFERS, REOPEN_S, RETRY_S, START_S, WORKED_S, FollowedNews


class Time:
    """A monotonic clock that a test moves."""

    now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(news, "time", made)
    return made


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as lines:
        yield lines


def levels(logs: list[EventDict]) -> list[tuple[str, str]]:
    return [(line["event"], line["log_level"]) for line in logs]


def test_a_leg_that_comes_up_after_field_is_no_error(clock: Time, logs: list[EventDict]) -> None:
    offers = FollowedNews(OFFERS, leg="police")
    for _ in range(3):
        offers.lost("UNAVAILABLE")
        clock.now_s += 1
        assert offers.away == "UNAVAILABLE"
    offers.found()
    offers.found()
    assert levels(logs) == [("offers_awaited", "info"), ("offers_followed", "info")] and logs[0]["leg"] == "police"
    offers.lost("UNAVAILABLE")
    assert levels(logs)[2:] == [("offers_not_followed", "error")], "the start is over once the leg was followed"


def test_a_leg_that_does_not_come_up_is_an_error_after_the_start(clock: Time, logs: list[EventDict]) -> None:
    notices = FollowedNews(NOTICES)
    notices.lost("UNAVAILABLE")
    clock.now_s += START_S
    notices.lost("UNAVAILABLE")
    notices.lost("UNAVAILABLE")
    assert levels(logs) == [("notices_awaited", "info"), ("notices_not_followed", "error")]


def test_a_leg_that_refuses_field_is_an_error_at_once(clock: Time, logs: list[EventDict]) -> None:
    FollowedNews(NOTICES).lost("PERMISSION_DENIED")
    assert levels(logs) == [("notices_not_followed", "error")]


def test_the_end_of_a_stream_that_worked_is_no_failure_unless_the_next_try_fails(
    clock: Time, logs: list[EventDict]
) -> None:
    notices = FollowedNews(NOTICES)
    notices.found()
    clock.now_s += WORKED_S
    notices.found()
    assert (notices.lost("UNAVAILABLE"), notices.away) == (REOPEN_S, "")
    notices.found()
    clock.now_s += WORKED_S
    assert (notices.lost("ended"), notices.away) == (REOPEN_S, "")
    assert levels(logs) == [("notices_followed", "info")]
    assert (notices.lost("UNAVAILABLE"), notices.away) == (RETRY_S, "UNAVAILABLE")
    notices.found()
    assert notices.lost("UNAVAILABLE") == RETRY_S, "a stream that ends at once isn't opened again at once"
    assert levels(logs)[1:] == [
        ("notices_not_followed", "error"),
        ("notices_followed", "info"),
        ("notices_not_followed", "error"),
    ]

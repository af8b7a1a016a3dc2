"""A position is asked for when a report is overdue: by the interval of the tag's last gaps, or by a new one that the tag will keep."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec
from tests.support.geofence.stories import Story, second


def away(at_s: float, mps: float = 1.5) -> float:
    """Where the wearer is: ten minutes 220 m north of the person, then on the way from her."""
    return 220 + mps * max(0.0, at_s - 600)


def obeyed(story: Story, from_s: float, until_s: float, *, every_s: float | None = None, mps: float = 1.5) -> float:
    """The tag reports as asked, or at an interval of its own, and her phone each minute. Returns when the tag's last report came."""
    at_s = last_s = from_s
    phone_s = from_s - from_s % 60
    while at_s < until_s:
        last_s = at_s
        while phone_s < at_s:
            story.at(phone_s, "phone", 0)
            phone_s += 60
        story.at(at_s, "tag", away(at_s, mps))
        story.tick(at_s + min(every_s or 60, 22) - 1)  # a new interval is asked for within 20 s
        at_s += every_s or story.needed_s(at_s)
    return last_s


def lengthened(story: Story, every_s: float | None = None) -> float:
    """A tag reports until a longer interval than at first is asked of it. Returns when the last report before that request came."""
    at_s = 1.0
    while True:
        obeyed(story, at_s, at_s + 1, every_s=every_s)
        if story.intervals() and story.intervals()[-1] > 40:
            return at_s
        at_s += every_s or story.needed_s(at_s)


@pytest.mark.parametrize("mps", [1.5, 5, 10])  # the faster the wearer goes, the sooner one request follows another
def test_a_tag_that_obeys_is_not_overdue_because_a_longer_interval_was_asked(mps: float) -> None:
    story = Story()
    story.case()
    obeyed(story, 1, 1600, mps=mps)
    assert min(story.intervals()) <= 33 and max(story.intervals()) >= 54
    assert not story.located_s()


def test_a_report_that_fails_after_a_longer_interval_was_asked_is_overdue_by_that_interval() -> None:
    story = Story()
    story.case()
    last_s = lengthened(story)
    story.tick(last_s + 300)
    assert story.located_s()[0] == last_s + story.intervals()[-1] + 8
    assert len(story.located_s()) == 3


@pytest.mark.parametrize("reports", [1, 2, 3, 4])
def test_a_tag_that_stops_obeying_is_overdue_by_its_own_gaps_from_the_third_report_on(reports: int) -> None:
    story = Story()
    story.case()
    first_s = lengthened(story) + 30
    last_s = obeyed(story, first_s, first_s + 30 * reports, every_s=30)
    story.tick(last_s + 300)
    asked_s = [request.interval_s for request in story.requests if request.interval_s and second(request) < last_s][-1]
    assert asked_s > 40
    awaited_s = story.located_s()[0] - last_s - 8
    assert awaited_s == asked_s if reports < 3 else 30 <= awaited_s <= 33


def test_a_tag_that_never_obeyed_is_overdue_by_its_own_gaps() -> None:
    story = Story()
    story.case()
    last_s = lengthened(story, every_s=15)
    story.tick(last_s + 300)
    assert story.located_s()[0] == last_s + 15 + 8


def test_what_is_expected_of_a_tag_is_in_the_checkpoint() -> None:
    story = Story()
    story.case()
    lengthened(story)
    sensing = story.state.sensing["tag"]
    assert sensing.obeyed_ms is not None and sensing.asked_s == story.intervals()[-1]
    assert codec.decode(codec.encode(story.state)).sensing == story.state.sensing

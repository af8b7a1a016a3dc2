"""Points of the list of incidents: what changed after each, in pages, and when nobody knows any more."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidField
from services.dispatch.leg import feed
from services.dispatch.leg.feed import ChangedPage, ListingChanges


def test_each_changed_incident_is_given_once_and_the_oldest_change_first() -> None:
    changes = ListingChanges()
    changes.note(["i-1", "i-2"])
    start = changes.point
    changes.note(["i-3", "i-1"])
    changes.note(["i-3"])
    assert changes.since(start, 10) == ChangedPage(["i-1", "i-3"], changes.point, has_more=False)
    assert changes.since(changes.point, 10) == ChangedPage([], changes.point, has_more=False)


def test_pages_give_all_changes_also_those_that_come_between_them() -> None:
    changes, seen = ListingChanges(), []
    point = changes.point
    changes.note(f"i-{n}" for n in range(5))
    while (page := changes.since(point, 2)) and page.incident_ids:
        seen += page.incident_ids
        if len(seen) == 2:
            changes.note(["i-0"])
        point = page.point
        assert page.has_more is (page.point != changes.point)
    assert seen == ["i-0", "i-1", "i-2", "i-3", "i-4", "i-0"]


def test_a_point_of_another_start_a_later_one_and_a_forgotten_one_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_CHANGED", 2)
    changes = ListingChanges()
    start = changes.point
    changes.note(["i-1", "i-2"])
    assert changes.since(start, 10)
    first = changes.point
    changes.note(["i-3"])
    assert changes.since(start, 10) is None, "the change of i-1 is forgotten"
    assert changes.since(first, 10) == ChangedPage(["i-3"], changes.point, has_more=False)
    assert changes.since(ListingChanges().point, 10) is None
    assert changes.since(changes.point + "0", 10) is None


@pytest.mark.parametrize("text", ["", "1", "-1", "a-", "a b-1", "a-²", "a--1", "a-" + "9" * 19])
def test_a_text_that_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(InvalidField, match="changed_after"):
        ListingChanges().since(text, 10)

"""Bounds on the agencies' lists that are in progress."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidField, TooMuchInProgress
from services.registry.domain.reconciliation import Agency, Listed
from services.registry.domain.records import ListedKind
from services.registry.reconciliation import IncomingLists


def part(*names: str) -> list[Listed]:
    return [Listed(ListedKind.WEARER, name, 1, bytes(32)) for name in names]


def test_a_caller_has_a_bounded_number_of_lists_and_other_callers_are_not_held_up() -> None:
    lists = IncomingLists(max_streams=2)
    with lists.begin("a", Agency.MOJ), lists.begin("a", Agency.MOJ):
        with pytest.raises(TooMuchInProgress, match="at most 2 lists"), lists.begin("a", Agency.MOJ):
            pass
        with lists.begin("b", Agency.MOJ) as other:
            other.add(part("w-1"))
    with lists.begin("a", Agency.MOJ), lists.begin("a", Agency.MOJ):
        pass


def test_the_lists_of_an_agency_hold_a_bounded_number_of_records_until_they_end() -> None:
    lists = IncomingLists(max_records=3)
    with lists.begin("a", Agency.MOJ) as first, lists.begin("a", Agency.MOJ) as second:
        first.add(part("w-1", "w-2"))
        with pytest.raises(TooMuchInProgress, match="at most 3 records"):
            second.add(part("w-1", "w-2"))
        with lists.begin("p", Agency.NPA) as other:
            other.add(part("w-1", "w-2", "w-3"))
        second.add(part("w-1"))
    with lists.begin("a", Agency.MOJ) as third:
        third.add(part("w-1", "w-2", "w-3"))
        with pytest.raises(InvalidField, match="at most 3"):
            third.add(part("w-4"))


def test_a_list_that_fails_halfway_is_forgotten_completely() -> None:
    lists = IncomingLists(max_records=3)
    with pytest.raises(InvalidField) as refused, lists.begin("a", Agency.MOJ) as failed:
        failed.add(part("w-1", "w-2", "w-1"))
    assert refused.value.field == "records[2].record_id"
    with lists.begin("a", Agency.MOJ) as complete:
        complete.add(part("w-1", "w-2", "w-3"))
        assert [record.record_id for record in complete.records] == ["w-1", "w-2", "w-3"]

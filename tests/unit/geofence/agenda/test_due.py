"""The agenda against a sorted list: the same moments in the same order, however cases are dropped and planned."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from services.geofence.domain.state import Agenda, Due

Operation: TypeAlias = Callable[[Agenda, list[Due]], None]

DUES = st.builds(Due, at_ms=st.integers(0, 5), case_id=st.sampled_from(["", "a", "b", "c"]), is_boundary=st.booleans())


def adding(due: Due) -> Operation:
    def add(agenda: Agenda, expected: list[Due]) -> None:
        agenda.add(due)
        expected.append(due)

    return add


def dropping(case_id: str) -> Operation:
    def drop(agenda: Agenda, expected: list[Due]) -> None:
        agenda.drop_case(case_id)
        expected[:] = [due for due in expected if due.case_id != case_id]

    return drop


def pop(agenda: Agenda, expected: list[Due]) -> None:
    if expected:
        assert agenda.pop() == expected.pop(expected.index(min(expected)))


OPERATIONS = st.one_of(DUES.map(adding), st.sampled_from(["a", "b", "c"]).map(dropping), st.just(pop))


@given(st.lists(DUES, max_size=5), st.lists(OPERATIONS, max_size=40))
def test_the_agenda_is_a_sorted_list(begins: list[Due], operations: list[Operation]) -> None:
    agenda, expected = Agenda(begins), list(begins)
    for operation in operations:
        operation(agenda, expected)
        assert list(agenda) == sorted(expected)
        assert len(agenda) == len(expected)
        assert agenda.next_ms == (min(expected).at_ms if expected else None)


class CountedDue(Due):
    """A moment that counts how often moments are compared."""

    comparisons = 0

    def __lt__(self, other: tuple[object, ...]) -> bool:
        CountedDue.comparisons += 1
        return tuple.__lt__(self, other)


def comparisons_of_renewals(cases: int) -> int:
    """Comparisons while each of so many cases is dropped and planned once more, as in a renewal of all orders."""
    agenda = Agenda(CountedDue(n, f"case-{n}", True) for n in range(cases))
    CountedDue.comparisons = 0
    for n in range(cases):
        agenda.drop_case(f"case-{n}")
        agenda.add(CountedDue(cases + n, f"case-{n}", True))
    assert len(agenda) == cases
    return CountedDue.comparisons


def test_a_renewal_of_all_cases_grows_with_their_number_and_not_with_its_square() -> None:
    assert comparisons_of_renewals(2_000) < 20 * comparisons_of_renewals(200)

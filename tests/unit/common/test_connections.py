"""Bounds on connections: whatever happens, an address and a sender displace only their own, and the costs stay within their bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.web.connections import Senders, Strangers

MAX, MAX_SOURCE = 20, 8


def source(connection: int) -> str:
    return f"address-{connection % 4}"


class Played:
    """Strangers, and what their connections cost by the steps that were played."""

    def __init__(self) -> None:
        self.strangers = Strangers[int](MAX, MAX_SOURCE)
        self.cost_of: dict[int, int] = {}
        self.served: set[int] = set()
        """Connections whose peers wait for an answer."""

    def play(self, step: str, connection: int, cost: int) -> list[int]:
        """Plays a step, and returns the connections to close."""
        if (step == "enter") == (connection in self.cost_of):
            return []
        self.served.discard(connection)
        match step:
            case "enter":
                self.cost_of[connection] = cost
                return self.strangers.enter(connection, source(connection), cost)
            case "weigh":
                self.cost_of[connection] = cost
                return self.strangers.weigh(connection, cost)
            case "serve":
                self.served.add(connection)
                self.strangers.serve(connection)
            case "await":
                self.strangers.await_peer(connection)
            case "leave":
                del self.cost_of[connection]
                self.strangers.leave(connection)
        return []

    def check_bounds(self) -> None:
        """Checks that an address, and all together, are within their bounds unless all their peers wait for answers."""
        assert len(self.strangers) == len(self.cost_of)
        for name in map(source, self.cost_of):
            own = [connection for connection in self.cost_of if source(connection) == name]
            assert sum(self.cost_of[each] for each in own) <= MAX_SOURCE or self.served.issuperset(own)
        assert sum(self.cost_of.values()) <= MAX or self.served.issuperset(self.cost_of)


STEPS = st.tuples(st.sampled_from(["enter", "weigh", "serve", "await", "leave"]), st.integers(0, 40), st.integers(1, 5))


@given(st.lists(STEPS))
def test_costs_stay_within_their_bounds_and_an_address_displaces_its_own(steps: list[tuple[str, int, int]]) -> None:
    played = Played()
    for step, connection, cost in steps:
        closed = played.play(step, connection, cost)
        assert not played.served.intersection(closed)
        if sum(played.cost_of.values()) <= MAX:
            assert {source(each) for each in closed} <= {source(connection)}
        for each in closed:
            del played.cost_of[each]
        played.check_bounds()


def test_the_one_that_has_waited_longest_goes_first_and_progress_counts_as_new() -> None:
    strangers = Strangers[str](100, 3)
    assert [strangers.enter(name, "address", 1) for name in "abc"] == [[], [], []]
    assert strangers.weigh("a", 1) == []
    assert strangers.enter("d", "address", 1) == ["b"]
    strangers.serve("c")
    assert strangers.enter("e", "address", 1) == ["a"]
    strangers.await_peer("c")
    assert strangers.enter("f", "address", 1) == ["d"]


def test_a_newcomer_goes_if_all_others_wait_for_answers() -> None:
    strangers = Strangers[str](100, 1)
    strangers.enter("a", "address", 1)
    strangers.serve("a")
    assert strangers.enter("b", "address", 1) == ["b"]
    assert strangers.enter("c", "elsewhere", 1) == []


def test_a_sender_keeps_its_bound_also_with_requests_on_all_connections() -> None:
    senders = Senders[str](100, 2)
    assert [senders.enter(name, "phone") for name in "ab"] == [[], []]
    assert senders.enter("c", "phone") == ["a"]
    senders.rest("c")
    assert senders.enter("d", "phone") == ["c"]
    assert senders.sender_of("d") == "phone" and senders.sender_of("c") is None


def test_a_connection_that_brings_another_senders_request_counts_for_that_one() -> None:
    senders = Senders[str](2, 1)
    assert senders.enter("shared", "first") == []
    assert senders.enter("own", "second") == []
    assert senders.enter("shared", "second") == ["own"]
    found = [(senders.enter(name, name), senders.is_over) for name in ("first", "third")]
    assert found == [([], False), ([], True)]
    senders.leave("first")
    assert not senders.is_over

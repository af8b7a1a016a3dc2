"""Messages that may be in flight together: never two of one device or one case, and routes before cases."""

from __future__ import annotations

from services.registry import relay as module
from services.registry.relay import flights
from services.registry.unit_of_work import OutboxRow


def case(row_id: int, case_id: str, version: int, size: int = 1) -> OutboxRow:
    return OutboxRow(id=row_id, subject="log.0.case", msg_id=f"{case_id}:{version}", payload=bytes(size))


def route(row_id: int, device_id: str, version: int = 1) -> OutboxRow:
    return OutboxRow(id=row_id, subject=f"$KV.devices.{device_id}", msg_id=f"route:{device_id}:{version}", payload=b"r")


def ids(rows: list[OutboxRow]) -> list[list[int]]:
    return [[row.id for row in flight] for flight in flights(rows)]


def test_messages_of_different_cases_and_devices_are_in_flight_together() -> None:
    assert ids([route(1, "a"), route(2, "b"), case(3, "x", 1), case(4, "y", 1)]) == [[1, 2], [3, 4]]


def test_a_newer_version_waits_for_the_older_one() -> None:
    assert ids([case(1, "x", 1), case(2, "y", 1), case(3, "x", 2), case(4, "z", 1)]) == [[1, 2], [3, 4]]
    assert ids([route(1, "a", 1), route(2, "a", 2), route(3, "b")]) == [[1], [2, 3]]


def test_routes_precede_the_cases_of_their_batch() -> None:
    assert ids([case(1, "x", 1), route(2, "a"), case(3, "y", 1)]) == [[2], [1, 3]]


def test_heads_of_the_ledger_are_published_one_after_the_other() -> None:
    heads = [OutboxRow(id=n, subject="ledger.head", msg_id=f"head:{n}", payload=b"") for n in (1, 2)]
    assert ids(heads) == [[1], [2]]


def test_large_messages_arent_in_flight_together() -> None:
    half = module.MAX_FLIGHT_BYTES // 2 + 1
    assert ids([case(1, "x", 1, half), case(2, "y", 1, half), case(3, "z", 1)]) == [[1], [2, 3]]


def test_no_flight_is_so_long_that_a_live_report_waits_for_it() -> None:
    rows = [case(n, f"case-{n}", 1) for n in range(3 * module.MAX_FLIGHT + 1)]
    assert list(map(len, ids(rows))) == [module.MAX_FLIGHT] * 3 + [1]


def test_nothing_gives_no_flight() -> None:
    assert flights([]) == []

"""When the watchdog finds nats-server stuck and when it has it started again: stories of looks, a second apart."""

from __future__ import annotations

from collections.abc import Iterable

from services.cli.stack.watchdog import RETRY_AFTER_S, STUCK_AFTER_S, ServerCheck, WatchdogState, judge

FINE = ServerCheck(pid=1, connected=True, answered=True, failed=(), limiter=True, began_s=0.0, ended_s=0.0)
SILENT = FINE._replace(answered=False)
CUT_OFF = SILENT._replace(connected=False)
FAILED = FINE._replace(failed=("LOG_0",))
GONE = CUT_OFF._replace(pid=None)


def told_and_restarted(*looks: ServerCheck) -> tuple[list[int], list[int]]:
    """At which seconds the server is found stuck, and at which it is started again."""
    watched, told, restarted = WatchdogState(), [], []
    for second, look in enumerate(looks):
        watched, tell, restart = judge(watched, look._replace(began_s=second, ended_s=second))
        told += [second] if tell else []
        restarted += [second] if restart else []
    return told, restarted


def times(count: int, look: ServerCheck) -> Iterable[ServerCheck]:
    return [look] * count


def test_a_server_that_works_is_left_alone() -> None:
    assert told_and_restarted(*times(100, FINE)) == ([], [])


def test_unanswered_probes_for_ten_seconds_are_a_stuck_server() -> None:
    silent = int(STUCK_AFTER_S)
    assert told_and_restarted(FINE, *times(silent, SILENT), FINE, *times(silent, SILENT)) == ([], [])
    assert told_and_restarted(FINE, *times(silent + 1, SILENT)) == ([1 + silent], [1 + silent])


def test_a_failed_write_needs_no_patience() -> None:
    assert told_and_restarted(FINE, FAILED) == ([1], [1])


def test_it_is_started_again_only_once_the_disk_has_room_and_told_of_once() -> None:
    full = FAILED._replace(limiter=False)
    assert told_and_restarted(FINE, *times(60, full), FAILED) == ([1], [61])


def test_a_server_that_goes_on_failing_is_started_again_every_thirty_seconds() -> None:
    again = int(RETRY_AFTER_S)
    new = [FAILED._replace(pid=2 + n) for n in range(3) for _ in range(again)]
    told, restarted = told_and_restarted(FAILED, *new)
    assert restarted == [0, again, 2 * again, 3 * again]
    assert told == [0, 1, 1 + again, 1 + 2 * again]


def test_a_server_that_ends_slowly_is_not_ended_again_meanwhile() -> None:
    assert told_and_restarted(*times(9, FAILED), *times(3, GONE), FINE._replace(pid=2)) == ([0], [0])


def test_one_that_starts_may_take_its_time_before_it_lets_anyone_in() -> None:
    recovering = CUT_OFF._replace(pid=2)
    assert told_and_restarted(FINE, GONE, *times(300, recovering), FINE._replace(pid=2)) == ([], [])


def test_a_stopped_process_loses_its_connections_and_is_stuck_all_the_same() -> None:
    assert told_and_restarted(FINE, *times(5, SILENT), *times(10, CUT_OFF)) == ([11], [11])


def test_a_new_process_begins_anew() -> None:
    assert told_and_restarted(*times(9, SILENT), *times(9, SILENT._replace(pid=2))) == ([], [])

"""The watchdog detects a stuck nats-server and restarts it: sequences of checks, one second apart."""

from __future__ import annotations

from collections.abc import Iterable

from services.local.nats_server import RETRY_AFTER_S, STUCK_AFTER_S, ServerCheck, WatchdogState, judge

FINE = ServerCheck(pid=1, connected=True, answered=True, failed=(), has_space=True, began_s=0.0, ended_s=0.0)
SILENT = FINE._replace(answered=False)
CUT_OFF = SILENT._replace(connected=False)
FAILED = FINE._replace(failed=("LOG_0",))
GONE = CUT_OFF._replace(pid=None)


def notified_and_restarted(*checks: ServerCheck) -> tuple[list[int], list[int]]:
    """The seconds at which the server is found stuck, and the seconds at which it is restarted."""
    state = WatchdogState()
    notified = []
    restarted = []
    for second, check in enumerate(checks):
        state, notify, restart = judge(state, check._replace(began_s=second, ended_s=second))
        notified += [second] if notify else []
        restarted += [second] if restart else []
    return notified, restarted


def times(count: int, check: ServerCheck) -> Iterable[ServerCheck]:
    return [check] * count


def test_a_working_server_is_left_alone() -> None:
    assert notified_and_restarted(*times(100, FINE)) == ([], [])


def test_a_server_with_unanswered_probes_for_ten_seconds_is_stuck() -> None:
    silent = int(STUCK_AFTER_S)
    assert notified_and_restarted(FINE, *times(silent, SILENT), FINE, *times(silent, SILENT)) == ([], [])
    assert notified_and_restarted(FINE, *times(silent + 1, SILENT)) == ([1 + silent], [1 + silent])


def test_a_failed_write_counts_at_once() -> None:
    assert notified_and_restarted(FINE, FAILED) == ([1], [1])


def test_a_stuck_server_is_notified_once_and_restarted_when_the_disk_has_space() -> None:
    full = FAILED._replace(has_space=False)
    assert notified_and_restarted(FINE, *times(60, full), FAILED) == ([1], [61])


def test_a_server_that_keeps_failing_is_restarted_every_thirty_seconds() -> None:
    retry_s = int(RETRY_AFTER_S)
    new = [FAILED._replace(pid=2 + n) for n in range(3) for _ in range(retry_s)]
    notified, restarted = notified_and_restarted(FAILED, *new)
    assert restarted == [0, retry_s, 2 * retry_s, 3 * retry_s]
    assert notified == [0, 1, 1 + retry_s, 1 + 2 * retry_s]


def test_a_server_that_ends_slowly_is_ended_only_once() -> None:
    assert notified_and_restarted(*times(9, FAILED), *times(3, GONE), FINE._replace(pid=2)) == ([0], [0])


def test_a_starting_server_may_take_its_time_to_accept_connections() -> None:
    recovering = CUT_OFF._replace(pid=2)
    assert notified_and_restarted(FINE, GONE, *times(300, recovering), FINE._replace(pid=2)) == ([], [])


def test_a_stopped_process_that_loses_its_connections_is_stuck() -> None:
    assert notified_and_restarted(FINE, *times(5, SILENT), *times(10, CUT_OFF)) == ([11], [11])


def test_the_count_restarts_with_a_new_process() -> None:
    assert notified_and_restarted(*times(9, SILENT), *times(9, SILENT._replace(pid=2))) == ([], [])

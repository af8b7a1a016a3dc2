"""Retention: positions that no decision needs any more leave the state and the checkpoint."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec, fold
from services.geofence.domain.detectors.anomalies import DEPARTED, Departed
from services.geofence.domain.kinematics import plausibility
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, WINDOW_MS, Track
from services.geofence.domain.state import State
from tests.support.geofence.stories import T0_MS, Story

HOUR_S = 3_600


def is_in_checkpoint(state: State, fix: Fix) -> bool:
    """Whether the bytes of a checkpoint contain a fix: its report id, or its low words among the packed ones."""
    encoded = codec.encode(state)
    words = b"".join((value & 0xFFFFFFFF).to_bytes(4, "little") for value in (fix.x_mm, fix.y_mm, fix.z_mm))
    return words in encoded or f"{fix.x_mm}".encode() in encoded or f'"{fix.report_id}"'.encode() in encoded


def moving(story: Story, device_id: str, from_s: int, until_s: int) -> list[Fix]:
    """Reports of a device that walks far from the target; returns its fixes so far."""
    for at_s in range(from_s, until_s, 60):
        story.at(at_s, device_id, 30_000 + at_s)
    return list(story.state.tracks[device_id].fixes)


def test_fixes_past_the_window_leave_the_checkpoint() -> None:
    story = Story()
    story.case()
    early = moving(story, "tag", 0, HOUR_S)
    assert all(is_in_checkpoint(story.state, fix) for fix in early)
    moving(story, "tag", HOUR_S, 5 * HOUR_S)
    assert not any(is_in_checkpoint(story.state, fix) for fix in early)


def test_old_positions_are_dropped_in_one_order_before_and_after_a_checkpoint() -> None:
    # The devices of an open ring are measured against each other as they are dropped, so the order decides which ways are kept.
    whole, restarted = Story(), Story()
    for story in (whole, restarted):
        story.case()
        for at_s in range(0, 900, 15):
            story.at(at_s, "tag", 50 if at_s < 300 else 20_000)
            story.at(at_s, "phone", 0)
        if story is restarted:
            story.state = codec.decode(codec.encode(story.state))
        for at_s in range(960, 4 * HOUR_S, 60):
            story.tick(at_s)
        for at_s in range(4 * HOUR_S, 4 * HOUR_S + 300, 15):
            story.at(at_s, "tag", 20_000)
            story.at(at_s, "phone", 0)
    assert restarted.outputs == whole.outputs and codec.encode(restarted.state) == codec.encode(whole.state)


def test_a_device_that_no_case_names_leaves_the_checkpoint_two_hours_after_its_last_report() -> None:
    story = Story()
    story.case()
    for at_s in range(0, 600, 60):
        story.at(at_s, "stray", 30_000 + at_s)
    last = story.state.tracks["stray"].recent[-1]
    assert is_in_checkpoint(story.state, last)
    story.tick(4 * HOUR_S)
    assert "stray" not in story.state.tracks and not is_in_checkpoint(story.state, last)


def test_the_positions_of_an_ended_case_leave_the_checkpoint() -> None:
    story = Story()
    story.case(valid_until_ms=T0_MS + 1000 * HOUR_S)
    fixes = moving(story, "tag", 0, HOUR_S - 60)
    place = Departed(1, fixes[5].x_mm, fixes[5].y_mm, fixes[5].z_mm)
    (case_state,) = story.state.cases.values()
    DEPARTED.of(case_state)["tag"] = [place]
    story.tick(HOUR_S + 1)
    assert case_state.ended and is_in_checkpoint(story.state, fixes[-1])
    story.tick(4 * HOUR_S)
    assert "tag" not in story.state.tracks
    assert not any(is_in_checkpoint(story.state, fix) for fix in fixes)


def test_of_a_silent_device_only_the_newest_positions_stay() -> None:
    story = Story()
    story.case()
    fixes = moving(story, "tag", 0, 2 * HOUR_S)
    story.tick(5 * HOUR_S)
    kept = story.state.tracks["tag"].fixes
    assert kept == fixes[-len(kept) :] and len(kept) <= plausibility.JUDGED_FIXES
    assert not any(is_in_checkpoint(story.state, fix) for fix in fixes[: -len(kept)])


@pytest.mark.parametrize("before_s", [0, HOUR_S - 1])
def test_positions_of_the_window_stay(before_s: int) -> None:
    story = Story()
    story.case()
    fixes = moving(story, "tag", 0, 1_200)
    story.tick(WINDOW_MS // 1000 + UNKNOWN_AFTER_MS // 1000 - before_s)
    assert story.state.tracks["tag"].fixes == fixes


def test_the_sweep_comes_once_an_hour() -> None:
    state = State(0)
    hour_ms = fold.SWEEP_INTERVAL_MS
    state.tracks["stray"] = Track([Fix(1, 1, "r", 0, 0, 0, 5)])
    fold._destroy_old(state, 10**9 * hour_ms, 10**9 * hour_ms + hour_ms - 1)
    assert "stray" in state.tracks
    fold._destroy_old(state, 10**9 * hour_ms + hour_ms - 1, 10**9 * hour_ms + hour_ms)
    assert "stray" not in state.tracks

"""The trail of a reader: short, and near enough to any place that a stream may go back to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.messaging.cursors import StreamCursor
from services.common.messaging.trails import Trail


def cursor(sequence: int) -> StreamCursor:
    return StreamCursor(sequence, sequence, "00")


@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.data())
def test_a_trail_is_short_and_what_is_read_again_is_in_proportion_to_what_was_lost(
    steps: list[int], data: st.DataObject
) -> None:
    trail, at = Trail(), 0
    seen: list[int] = []
    for step in steps:
        at += step
        trail.add(cursor(at))
        seen.append(at)
    assert trail.newest == cursor(at) and len(trail.known) <= at.bit_length() + 1
    assert Trail.parse(str(trail)).known == trail.known
    kept = data.draw(st.sampled_from(seen))
    common = max((one.sequence for one in trail.known if one.sequence <= kept), default=0)
    lost = at - kept
    assert at - common <= 4 * (lost + max(steps)) or common == min(seen)
    trail.cut(cursor(kept))
    assert all(one.sequence <= kept for one in trail.known)
    trail.cut(None)
    assert not trail.known and str(trail) == ""


def test_a_position_of_before_has_an_empty_trail() -> None:
    assert Trail.parse("").newest is None


def test_after_the_stream_went_back_sequences_are_used_again() -> None:
    trail = Trail()
    for sequence in (10, 20, 30):
        trail.add(cursor(sequence))
    trail.cut(cursor(10))
    trail.add(StreamCursor(20, 99, "11"))
    assert trail.newest == StreamCursor(20, 99, "11") and cursor(20) not in trail.known

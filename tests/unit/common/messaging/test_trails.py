"""The trail of a reader: it is short, and it has an entry near any place to which a stream may go back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.messaging.cursors import StreamCursor
from services.common.messaging.trails import Trail


def cursor(sequence: int) -> StreamCursor:
    return StreamCursor(sequence, sequence, "00")


@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.data())
def test_a_trail_is_short_and_rereading_is_proportional_to_the_loss(steps: list[int], data: st.DataObject) -> None:
    trail, last = Trail(), 0
    added: list[int] = []
    for step in steps:
        last += step
        trail.add(cursor(last))
        added.append(last)
    assert trail.newest == cursor(last) and len(trail.known) <= last.bit_length() + 1
    assert Trail.parse(str(trail)).known == trail.known
    kept = data.draw(st.sampled_from(added))
    common = max((known.sequence for known in trail.known if known.sequence <= kept), default=0)
    lost = last - kept
    assert last - common <= 4 * (lost + max(steps)) or common == min(added)
    trail.cut(cursor(kept))
    assert all(known.sequence <= kept for known in trail.known)
    trail.cut(None)
    assert not trail.known and str(trail) == ""


def test_a_position_without_a_stored_trail_has_an_empty_trail() -> None:
    assert Trail.parse("").newest is None


def test_a_trail_accepts_reused_sequences_after_the_stream_went_back() -> None:
    trail = Trail()
    for sequence in (10, 20, 30):
        trail.add(cursor(sequence))
    trail.cut(cursor(10))
    trail.add(StreamCursor(20, 99, "11"))
    assert trail.newest == StreamCursor(20, 99, "11") and cursor(20) not in trail.known

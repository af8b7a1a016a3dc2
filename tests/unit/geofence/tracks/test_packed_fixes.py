"""Packed fixes: nothing is lost, equal fixes have equal bytes, and a packed track answers as a plain one does."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest

from services.geofence.domain.kinematics.fixes import MIN_RECENT, Fix, PackedFixes, Row, pack_rows
from services.geofence.domain.kinematics.track import Track

WORD = 1 << 32
EDGES = (0, 1, -1, WORD - 1, WORD, -WORD, -WORD - 1, (1 << 63) - 1, -(1 << 63))
IDS = ("", "r-1", "보고-1", "a\nb", "\n")


def rows_of(packed: PackedFixes) -> list[Row]:
    return list(packed.rows(0, len(packed)))


def _rows(rng: random.Random, ids: tuple[str, ...]) -> list[Row]:
    """Some rows, with numbers from one range of high words, or from all."""
    numbers = rng.choice(((5, 7, 1_000), EDGES))
    accuracies = rng.choice((((5, 0), (7, 0)), ((5, 0), (500_000, 3)), ((0, 3), (WORD - 1, 1), (WORD - 1, 0))))

    def number() -> int:
        return rng.choice(numbers)

    return [
        (number(), number(), rng.choice(ids), number(), number(), number(), *rng.choice(accuracies))
        for _ in range(rng.randrange(1, 9))
    ]


@pytest.mark.parametrize("seed", range(40))
def test_all_values_of_fixes_are_kept(seed: int) -> None:
    rng = random.Random(seed)
    first, second = _rows(rng, IDS[: rng.randrange(1, 6)]), _rows(rng, IDS[:3])
    rows = first + second
    packed = pack_rows(first) + pack_rows(second)
    assert rows_of(packed) == rows and len(packed) == len(rows) and packed.is_whole()
    assert packed.normalised() == pack_rows(rows)
    for start in range(len(rows)):
        for stop in range(start, len(rows) + 1):
            assert list(packed.rows(start, stop)) == rows[start:stop]
    assert all(packed.may_hold_point(row[3:6]) for row in rows)
    for left_out in range(1, len(rows)):
        without_oldest, without_newest = packed.without_oldest(left_out), packed.without_newest(left_out)
        assert rows_of(without_oldest) == rows[left_out:] and rows_of(without_newest) == rows[:-left_out]
        assert without_oldest.normalised() == pack_rows(rows[left_out:])
        assert without_newest.normalised() == pack_rows(rows[:-left_out])


def test_parts_whose_sources_change_alike_keep_all_values() -> None:
    rows: list[Row] = [(number, number, f"r-{number}", 5, 7, 9, 11, number % 2) for number in range(32)]
    packed = pack_rows(rows[:16]) + pack_rows(rows[16:])
    assert packed.is_whole() and rows_of(packed) == rows and packed.time_ms(31) == 31
    assert packed.normalised() == pack_rows(rows)


def test_a_track_whose_sources_change_at_each_fix_is_restored_twice() -> None:
    fixes = [Fix(60_000 * i, 60_000 * i, f"r-{i}", 5, 7, 9, 11, 1 + 2 * (i % 2)) for i in range(2 * MIN_RECENT)]
    track = Track(fixes)
    for _ in range(2):
        whole = track.all_packed()
        assert whole is not None
        track = Track()
        track.hold(whole)
    assert track.fixes == fixes


def test_a_fix_takes_about_30_bytes() -> None:
    assert _bytes_of(_two_hours()) < 31 * 480
    assert not pack_rows(_two_hours()).may_hold_point((5, 5, 5))


def test_two_hours_of_a_wearer_stay_below_64_kib_with_sources_that_change() -> None:
    assert _bytes_of([fix._replace(source=3) for fix in _two_hours()]) < 31 * 480
    assert _bytes_of([fix._replace(source=number % 4) for number, fix in enumerate(_two_hours())]) < 55 * 480 < 65_536


def _two_hours() -> list[Fix]:
    rng = random.Random(1)
    return [_fix(rng, number)._replace(y_mm=4_050_000_000 + number, source=0) for number in range(480)]


def _bytes_of(fixes: list[Fix]) -> int:
    packed = pack_rows(fixes)
    return len(packed.low_words) + len(packed.high_words) + len(packed.report_ids)


@pytest.mark.parametrize(
    "damaged",
    [
        PackedFixes(b"", b"", ""),
        PackedFixes(bytes(48), bytes(24), "a"),
        PackedFixes(bytes(48), bytes(25), "a\nb"),
        PackedFixes(bytes(48), bytes(72), "a\nb"),
    ],
)
def test_parts_that_do_not_fit_are_refused(damaged: PackedFixes) -> None:
    with pytest.raises(ValueError, match="parts"):
        Track().hold(damaged)


def _fix(rng: random.Random, number: int) -> Fix:
    time_ms = 1_790_000_000_000 + 15_000 * number + rng.choice((0, 0, 0, -15_000, -30_000, 7))
    fix_ms = time_ms + (rng.randrange(100_000) if rng.random() < 0.02 else 0)
    x_mm, y_mm = (-3_000_000_000 + rng.randrange(50_000), 4_000_000_000 + rng.randrange(400_000_000))
    source = rng.choice((0, 0, 0, 1, 3))
    return Fix(time_ms, fix_ms, f"r-{number}", x_mm, y_mm, 3_800_000_000, rng.randrange(50_000), source)


@pytest.mark.parametrize("seed", range(8))
def test_a_packed_track_answers_as_a_plain_one(seed: int) -> None:
    rng = random.Random(seed)
    packed = Track()
    plain = Track()
    for number in range(300):
        fix = _fix(rng, number - (rng.randrange(150) if rng.random() < 0.05 else 0))
        assert packed.add(fix) == plain.add(fix)
        if rng.random() < 0.1:
            packed.pack()
        if number == 200:
            for track in (packed, plain):
                track.drop(track.count_before(fix.time_ms - 1_500_000, 9))
        _compare(packed, plain, rng)
    packed.pack()
    assert packed.older_count and packed.all_packed() == plain.all_packed()
    restored = Track()
    whole = packed.all_packed()
    assert whole is not None
    restored.hold(whole)
    assert restored.older_count and len(restored.recent) == MIN_RECENT
    assert restored.all_packed() == whole and restored.fixes == plain.fixes


def _compare(packed: Track, plain: Track, rng: random.Random) -> None:
    fixes = plain.fixes
    assert (packed.count, packed.first_ms, packed.last()) == (len(fixes), fixes[0].time_ms, fixes[-1])
    at_ms = rng.choice(fixes).time_ms + rng.choice((-1, 0, 1, 4_000))
    until_ms = at_ms + rng.choice((0, 20_000, 400_000))
    assert packed.round(at_ms) == plain.round(at_ms) and packed.last_before(at_ms) == plain.last_before(at_ms)
    assert packed.known_at(at_ms) == plain.known_at(at_ms) and packed.accuracy_at(at_ms) == plain.accuracy_at(at_ms)
    assert packed.is_on_jump(at_ms) == plain.is_on_jump(at_ms)
    assert list(packed.assumed(at_ms, until_ms)) == list(plain.assumed(at_ms, until_ms))
    assert list(packed.joined(at_ms, until_ms)) == list(plain.joined(at_ms, until_ms))
    assert packed.path_since_mm(at_ms) == plain.path_since_mm(at_ms)
    assert packed.unknown_after_ms() == plain.unknown_after_ms()
    assert packed.kept_interval_ms() == plain.kept_interval_ms() and packed.longer_gap_ms() == plain.longer_gap_ms()
    assert packed.pace_mps() == plain.pace_mps()
    count, before = rng.randrange(1, 60), rng.randrange(1, 9)
    assert packed.newest(count) == fixes[-count:]
    assert packed.count_before(at_ms, count) == plain.count_before(at_ms, count)
    since = packed.since(at_ms, before)
    index = bisect_left(fixes, (at_ms,))
    assert since == fixes[-len(since) :] and since[0] <= fixes[max(0, index - before)]
    assert packed.contradicts(fixes[index - 1]._replace(accuracy_mm=1)) == plain.contradicts(
        fixes[index - 1]._replace(accuracy_mm=1)
    )
    if rng.random() < 0.2:
        assert list(packed.backwards()) == fixes[::-1]

"""Which tokens of a device are good once a new one was issued."""

from __future__ import annotations

import pytest

from services.registry.device_token import DeviceToken, rotated, valid_at

NOW_MS = 1_000_000
A, B, C, D, E = (bytes([n]) for n in range(5))


def test_the_first_token_is_good_until_it_is_revoked() -> None:
    assert rotated([], A, NOW_MS, 60) == [DeviceToken(A, None)]
    assert valid_at([DeviceToken(A, None)], NOW_MS * 1_000_000) == [DeviceToken(A, None)]


@pytest.mark.parametrize(
    ("until_ms", "keep_s", "then_ms"),
    [
        (None, 60, NOW_MS + 60_000),
        (NOW_MS + 1, 60, NOW_MS + 1),  # it lasts no longer for another one's sake
        (NOW_MS + 60_001, 60, NOW_MS + 60_000),
        (None, 0, None),
        (NOW_MS + 1, 0, None),
        (NOW_MS, 60, None),  # the end is exclusive
    ],
)
def test_an_older_token_is_kept_as_long_as_was_asked_and_no_longer_than_it_was_good(
    until_ms: int | None, keep_s: int, then_ms: int | None
) -> None:
    kept = [DeviceToken(A, then_ms)] if then_ms else []
    assert rotated([DeviceToken(A, until_ms)], B, NOW_MS, keep_s) == [*kept, DeviceToken(B, None)]


def test_of_many_the_newest_four_are_good() -> None:
    tokens: list[DeviceToken] = []
    for hashed in (A, B, C, D, E):
        tokens = rotated(tokens, hashed, NOW_MS, 60)
    assert [token.sha256 for token in tokens] == [B, C, D, E]
    assert [token.valid_until_ms for token in tokens] == [NOW_MS + 60_000] * 3 + [None]


def test_what_is_over_is_good_no_more() -> None:
    tokens = [DeviceToken(A, NOW_MS), DeviceToken(B, NOW_MS + 1)]
    assert valid_at(tokens, NOW_MS) == [DeviceToken(B, NOW_MS + 1)]

"""Validity and rotation of a device's tokens."""

from __future__ import annotations

import pytest

from services.registry.domain.device_tokens import DeviceToken, rotated_tokens, valid_tokens

NOW_MS = 1_000_000
A, B, C, D, E = (bytes([n]) for n in range(5))


def test_the_first_token_is_valid_without_an_end() -> None:
    assert rotated_tokens([], A, NOW_MS, keep_older_for_s=60) == [DeviceToken(A, None)]
    assert valid_tokens([DeviceToken(A, None)], NOW_MS * 1_000_000) == [DeviceToken(A, None)]


@pytest.mark.parametrize(
    ("until_ms", "keep_s", "then_ms"),
    [
        (None, 60, NOW_MS + 60_000),
        (NOW_MS + 1, 60, NOW_MS + 1),  # a rotation never prolongs a token
        (NOW_MS + 60_001, 60, NOW_MS + 60_000),
        (None, 0, None),
        (NOW_MS + 1, 0, None),
        (NOW_MS, 60, None),  # the end is exclusive
    ],
)
def test_an_older_token_stays_valid_for_the_requested_time_at_most(
    until_ms: int | None, keep_s: int, then_ms: int | None
) -> None:
    kept = [DeviceToken(A, then_ms)] if then_ms else []
    assert rotated_tokens([DeviceToken(A, until_ms)], B, NOW_MS, keep_older_for_s=keep_s) == [
        *kept,
        DeviceToken(B, None),
    ]


def test_only_the_newest_four_tokens_stay_valid() -> None:
    tokens: list[DeviceToken] = []
    for hashed in (A, B, C, D, E):
        tokens = rotated_tokens(tokens, hashed, NOW_MS, keep_older_for_s=60)
    assert [token.sha256 for token in tokens] == [B, C, D, E]
    assert [token.valid_until_ms for token in tokens] == [NOW_MS + 60_000] * 3 + [None]


def test_an_expired_token_is_not_valid() -> None:
    tokens = [DeviceToken(A, NOW_MS), DeviceToken(B, NOW_MS + 1)]
    assert valid_tokens(tokens, NOW_MS) == [DeviceToken(B, NOW_MS + 1)]

"""Whose phone a token is: by the registry, and by its last answer while it is away."""

from __future__ import annotations

import grpc
import pytest

from services.common.errors import Unauthenticated, Unavailable
from services.field import credentials
from services.field.credentials import PhoneSession
from tests.support.field.known import known_phones

HERS = PhoneSession("phone-1", "person-1", "token-1", "key")


async def test_the_registry_is_asked_early_and_locks_nobody_out_while_it_is_away() -> None:
    async with known_phones() as (known, registry):
        for _ in range(3):
            await known.check(HERS)
        assert registry.asked == 1
        # Ingest doesn't know the token, perhaps because it has lost its routes, and the registry is away.
        registry.error = grpc.StatusCode.UNAVAILABLE
        await known.check(HERS, is_doubted=True)
        await known.check(HERS)
        registry.error = grpc.StatusCode.NOT_FOUND
        with pytest.raises(Unauthenticated):
            await known.check(HERS, is_doubted=True)
        registry.error = grpc.StatusCode.UNAVAILABLE
        with pytest.raises(Unavailable):
            await known.check(HERS)


async def test_a_token_of_another_phone_is_refused() -> None:
    async with known_phones() as (known, _):
        with pytest.raises(Unauthenticated):
            await known.check(PhoneSession("phone-2", "person-1", "token-1", "key"))


async def test_the_phone_that_was_asked_for_longest_ago_is_dropped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "MAX_KNOWN", 2)
    async with known_phones() as (known, registry):
        first, second, third = (PhoneSession("phone-1", "person-1", f"token-{n}", "key") for n in range(3))
        for session in (first, second):
            await known.check(session)
        await known.check(first, is_doubted=True)
        await known.check(third)
        asked = registry.asked
        await known.check(first)
        assert registry.asked == asked
        await known.check(second)
        assert registry.asked == asked + 1

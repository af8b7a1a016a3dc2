"""Accounts at the identity provider while their users are signed in: closed, of another role, unknown, or not to be asked about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.console.pages.texts import TEXTS
from tests.support.console.console import PATIENCE_S, ConsoleBench, Visitor, console_bench
from tests.support.console.identity_provider import IdentityProvider, identity_provider, settings_at

pytestmark = pytest.mark.asyncio(loop_scope="module")
KIM = {"preferred_username": "kim", "roles": ["staff", "npa-112"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[IdentityProvider]:
    async with identity_provider() as running_provider:
        yield running_provider


@pytest.fixture
def provider(running: IdentityProvider) -> IdentityProvider:
    """An honest provider where Kim signs in, and which gives refresh tokens."""
    running.person = dict(KIM)
    running.refresh_tokens = ["first"]
    running.refusal = None
    return running


async def is_in(visitor: Visitor) -> bool:
    return (await visitor.get("/search"))[0] == 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def checking(running: IdentityProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConsoleBench]:
    """A console that checks accounts each second."""
    settings = settings_at(running.port) | {"TANDEM_OIDC_CHECK_INTERVAL_S": "1"}
    async with console_bench(tmp_path_factory.mktemp("checking"), settings) as running_console:
        yield running_console


async def until_refreshed(provider: IdentityProvider, times: int) -> None:
    """Returns after so many further refreshes."""
    wanted = provider.refreshed + times
    async with asyncio.timeout(PATIENCE_S):
        while provider.refreshed < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def end_of(visitor: Visitor) -> str:
    """Returns where the sign-in page says that the session ended, once it has."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status, _, headers = await visitor.get("/search", Accept="text/html")
            if status == 303:
                return headers["Location"]
            await asyncio.sleep(0.05)


def changed_person(provider: IdentityProvider, claims: dict[str, Any]) -> None:
    provider.person = KIM | claims


@pytest.mark.parametrize(
    ("end", "change"),
    [
        ("closed", lambda provider: setattr(provider, "refresh_tokens", ["of somebody else"])),
        ("closed", lambda provider: changed_person(provider, {"sub": "4712"})),
        ("closed", lambda provider: changed_person(provider, {"aud": "another-client"})),
        ("role_changed", lambda provider: changed_person(provider, {"roles": ["moj-tracking"]})),
        ("role_changed", lambda provider: changed_person(provider, {"roles": []})),
    ],
)
async def test_a_session_ends_with_its_account_and_an_open_stream_with_it(
    checking: ConsoleBench, provider: IdentityProvider, end: str, change: Callable[[IdentityProvider], None]
) -> None:
    async with checking.visitor() as visitor:
        assert (await visitor.come_back())[0] == 200
        await until_refreshed(provider, 2)
        assert await is_in(visitor)
        async with visitor.stream() as messages:
            await anext(messages)
            change(provider)
            async with asyncio.timeout(PATIENCE_S):
                async for _ in messages:
                    pass
        assert await end_of(visitor) == f"/sign-in?ended={end}"
        assert TEXTS[f"ended_{end}"][0] in await visitor.read(f"/sign-in?ended={end}")


async def test_sessions_stay_while_the_provider_is_away_or_refuses_the_console_itself(
    checking: ConsoleBench, provider: IdentityProvider
) -> None:
    async with checking.visitor() as visitor:
        for refusal in ((503, "temporarily_unavailable"), (401, "invalid_client")):
            provider.refusal = None
            assert (await visitor.come_back())[0] == 200
            provider.refusal = refusal
            await until_refreshed(provider, 1)
            assert await is_in(visitor)


async def test_a_restarted_console_checks_a_session_before_it_shows_a_page(
    provider: IdentityProvider, tmp_path: Path
) -> None:
    async with console_bench(tmp_path, settings_at(provider.port)) as before, before.visitor() as visitor:
        assert (await visitor.come_back())[0] == 200
        cookie = next(to.value for to in visitor.client.cookie_jar if to.key == "tandem_session")
    assert "first" not in cookie and "ZmlycXN0" not in cookie
    async with console_bench(tmp_path, settings_at(provider.port)) as after, after.visitor() as visitor:
        session = {"Cookie": f"tandem_session={cookie}", "Accept": "text/html"}
        assert (await visitor.get("/search", **session))[0] == 200
        assert provider.refreshed
        provider.refresh_tokens = ["of somebody else"]
    async with console_bench(tmp_path, settings_at(provider.port)) as after, after.visitor() as visitor:
        status, _, headers = await visitor.get("/search", **session)
        assert (status, headers["Location"]) == (303, "/sign-in?ended=closed")


async def test_without_a_refresh_token_a_session_ends_with_the_id_token(
    checking: ConsoleBench, provider: IdentityProvider
) -> None:
    provider.refresh_tokens = []
    provider.person = KIM | {"exp": int(time.time()) + 2}
    async with checking.visitor() as visitor:
        assert (await visitor.come_back())[0] == 200
        assert await end_of(visitor) == "/sign-in"

"""Signing in to the console by an identity provider: a real one over HTTP, honest and lying, before the real process."""

from __future__ import annotations

import base64
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio
from joserfc import jwt

from services.console.pages.texts import TEXTS
from services.console.settings import ConsoleSettings
from tests.support.common.certificates import Authority
from tests.support.console.console import INCIDENT, ConsoleBench, Visitor, console_bench
from tests.support.console.identity_provider import CLIENT, IdentityProvider, identity_provider, new_key, settings_at

pytestmark = pytest.mark.asyncio(loop_scope="module")
UNPROVEN = TEXTS["refused_token"][0]
KIM = {"preferred_username": "kim", "roles": ["staff", "npa-112"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[IdentityProvider]:
    async with identity_provider() as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(running: IdentityProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConsoleBench]:
    async with console_bench(tmp_path_factory.mktemp("oidc"), settings_at(running.port)) as one:
        yield one


@pytest.fixture
def provider(running: IdentityProvider) -> IdentityProvider:
    """Honest, and Kim signs in."""
    running.person, running.make, running.told = dict(KIM), None, {}
    running.shown = [running.key]
    return running


async def is_in(visitor: Visitor) -> bool:
    return (await visitor.get("/search"))[0] == 200


# ── in and out ──


async def test_whoever_has_a_role_is_in_by_their_own_name_and_out_again(
    bench: ConsoleBench, provider: IdentityProvider
) -> None:
    async with bench.visitor() as one:
        assert 'href="/sign-in/begin"' in await one.read("/sign-in")
        back = await one.callback()
        asked = provider.asked[-1]
        assert (asked["response_type"], asked["code_challenge_method"], asked["prompt"]) == ("code", "S256", "login")
        async with one.client.get(one.url + back, allow_redirects=False) as answer:
            assert answer.status == 200 and 'content="0;url=/"' in await answer.text()
            assert answer.cookies["tandem_session"]["samesite"] == "Strict"
        bench.asked.clear()
        await one.read(f"/incidents/{INCIDENT}")
        assert ("police", "ListIncidents", "spiffe://npa/desk/kim") in bench.asked
        for token in ("", "0" * 64):
            assert (await one.post("/sign-out", csrf=token))[0] == 403
        assert (await one.post("/sign-out", origin="https://elsewhere.example"))[0] == 403
        assert await is_in(one)
        assert (await one.post("/sign-out"))[0] == 303
        assert not await is_in(one)


async def test_where_there_is_a_provider_there_are_no_development_users(
    bench: ConsoleBench, provider: IdentityProvider
) -> None:
    async with bench.visitor() as one:
        text = await one.read("/sign-in")
        assert 'name="role"' not in text
        assert (await one.post("/sign-in", role="police", name="kim"))[0] == 405
        assert not await is_in(one)


async def test_a_session_of_a_development_user_ends_when_a_provider_is_configured(
    bench: ConsoleBench, tmp_path: Path
) -> None:
    async with console_bench(tmp_path) as before, before.visitor("police") as one:
        cookie = next(iter(one.client.cookie_jar)).value
        key = (tmp_path / "console" / "session.key").read_bytes()
    (tmp_path / "later" / "console").mkdir(parents=True)
    (tmp_path / "later" / "console" / "session.key").write_bytes(key)
    async with console_bench(tmp_path / "later", settings_at(1)) as after, after.visitor() as one:
        assert (await one.get("/search", Cookie=f"tandem_session={cookie}"))[0] == 401


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"preferred_username": "kim"}, r"kim"),
        ({"preferred_username": "Kim.Minsu@npa.example"}, r"kim-minsu-[0-9a-f]{12}"),
        ({"preferred_username": "console"}, r"console-[0-9a-f]{12}"),
        ({"preferred_username": "김민수"}, r"user-[0-9a-f]{12}"),
        ({"preferred_username": None}, r"user-[0-9a-f]{12}"),
    ],
)
async def test_a_name_that_the_ledger_cannot_hold_becomes_one_that_nobody_else_has(
    bench: ConsoleBench, provider: IdentityProvider, claims: dict[str, Any], name: str
) -> None:
    names = set()
    for sub in ("4711", "4712"):
        provider.person = {**KIM, **claims, "sub": sub}
        async with bench.visitor() as one:
            assert (await one.come_back())[0] == 200
            found = re.search(rf"· ({name})</span>", await one.read("/search"))
            assert found
            names.add(found[1])
    assert len(names) == (1 if claims["preferred_username"] == "kim" else 2)


# ── answers that aren't to what this browser asked ──


async def test_an_answer_counts_in_the_browser_that_asked_and_for_what_it_asked(
    bench: ConsoleBench, provider: IdentityProvider
) -> None:
    async with bench.visitor() as one, bench.visitor() as other:
        strange, own = await other.callback(), await one.callback()
        code = parse_qs(urlsplit(own).query)["code"][0]
        for address in (
            strange,  # another's sign-in: theirs would be what is done here
            f"/sign-in/callback?code={code}&state={'0' * 64}",
            f"/sign-in/callback?code={code}",
        ):
            status, text, _ = await one.get(address)
            assert status == 403 and TEXTS["refused_state"][0] in text
            assert not await is_in(one)
            own = await one.callback()  # what was refused is over
        assert (await one.get(own.replace("iss=", "iss=x")))[0] == 403
        status, _, _ = await one.get(await one.callback())
        assert status == 200 and await is_in(one)


async def test_a_code_is_good_once(bench: ConsoleBench, provider: IdentityProvider) -> None:
    async with bench.visitor() as one:
        back = await one.callback()
        attempt = next(to.value for to in one.client.cookie_jar if to.key == "tandem_attempt")
        assert (await one.get(back))[0] == 200
        async with bench.visitor() as thief:
            for sent in ({}, {"Cookie": f"tandem_attempt={attempt}"}):
                assert (await thief.get(back, **sent))[0] == 403
                assert not await is_in(thief)
        assert await is_in(one)


async def test_a_code_that_was_stolen_is_good_for_nothing_in_another_attempt(
    bench: ConsoleBench, provider: IdentityProvider
) -> None:
    async with bench.visitor() as one, bench.visitor() as thief:
        stolen = parse_qs(urlsplit(await one.callback()).query)["code"][0]
        own = await thief.callback()
        status, _, _ = await thief.get(re.sub(r"code=[0-9a-f]+", f"code={stolen}", own))
        assert status == 403 and not await is_in(thief)


# ── tokens that prove nothing ──


def part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def unsigned(provider: IdentityProvider, claims: dict[str, Any]) -> str:
    return f"{part({'alg': 'none', 'kid': 'first'})}.{part(claims)}."


def signed_with_the_public_key(provider: IdentityProvider, claims: dict[str, Any]) -> str:
    signed = f"{part({'alg': 'HS256', 'kid': 'first'})}.{part(claims)}"
    mac = hmac.digest(provider.key.as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def altered(provider: IdentityProvider, claims: dict[str, Any]) -> str:
    head, _, mac = provider.signed({**claims, "roles": []}).split(".")
    return f"{head}.{part(claims)}.{mac}"


def of_an_unknown_key(provider: IdentityProvider, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": "unknown"}, claims, new_key("unknown"))


def of_another_key(provider: IdentityProvider, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": "first"}, claims, new_key("first"))


@pytest.mark.parametrize(
    "make", [unsigned, signed_with_the_public_key, altered, of_an_unknown_key, of_another_key, lambda *_: "rubbish"]
)
async def test_a_token_that_the_provider_did_not_sign_lets_nobody_in(
    bench: ConsoleBench, provider: IdentityProvider, make: Callable[[IdentityProvider, dict[str, Any]], str]
) -> None:
    provider.make = lambda claims: make(provider, claims)
    async with bench.visitor() as one:
        status, text = await one.come_back()
        assert status == 403 and UNPROVEN in text
        assert not await is_in(one)


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "0" * 64},
        {"nonce": None},
        {"aud": "another-client"},
        {"aud": [CLIENT, "another-client"]},
        {"azp": "another-client"},
        {"iss": "http://localhost:1"},
        {"exp": int(time.time()) - 120},
        {"exp": None},
        {"iat": int(time.time()) + 3600},
        {"sub": None},
    ],
)
async def test_a_token_for_others_or_of_another_time_lets_nobody_in(
    bench: ConsoleBench, provider: IdentityProvider, claims: dict[str, Any]
) -> None:
    provider.person |= claims
    async with bench.visitor() as one:
        status, text = await one.come_back()
        assert status == 403 and UNPROVEN in text
        assert not await is_in(one)


async def test_a_new_key_counts_from_when_it_is_shown_and_an_old_one_until_it_is_not(
    bench: ConsoleBench, provider: IdentityProvider
) -> None:
    old, new = provider.key, new_key("second")
    provider.key = new
    try:
        async with bench.visitor() as one:
            assert (await one.come_back())[0] == 403
            provider.shown = [old, new]
            assert (await one.come_back())[0] == 200
        provider.key, provider.shown = old, [new]
        async with bench.visitor() as one:
            assert (await one.come_back())[0] == 403
    finally:
        provider.key, provider.shown = old, [old]


# ── roles ──


@pytest.mark.parametrize(
    "roles", [None, [], "", "npa", ["staff"], [["npa-112"]], {"npa-112": True}, ["npa-112", "moj-tracking"], "police"]
)
async def test_without_one_role_nobody_is_in(bench: ConsoleBench, provider: IdentityProvider, roles: Any) -> None:
    provider.person["roles"] = roles
    async with bench.visitor() as one:
        status, text = await one.come_back()
        assert status == 403 and 'href="/sign-in"' in text
        assert not await is_in(one)


async def test_with_certificates_the_console_is_one_roles_and_says_to_services_who_asks(
    provider: IdentityProvider, tmp_path: Path
) -> None:
    authority = Authority("Tandem tests")
    async with console_bench(tmp_path, settings_at(provider.port), authority) as bench, bench.visitor() as one:
        provider.person["roles"] = "moj-tracking"
        status, text = await one.come_back()
        assert (status, await is_in(one)) == (403, False)
        assert "another role" in text or "다른 소속" in text
        provider.person["roles"] = ["npa-112-night", "moj-tracking"]
        assert (await one.come_back())[0] == 200
        await one.read(f"/incidents/{INCIDENT}")
        assert ("police", "ListIncidents", "spiffe://npa/desk/console/kim") in bench.asked
        cookie = next(to for to in one.client.cookie_jar if to.key == "tandem_session")
        assert cookie["secure"] and cookie["httponly"]


# ── a provider that is away ──


async def test_a_provider_that_is_away_is_said_and_changes_nothing_for_who_is_in(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(identity_provider())
        bench = await stack.enter_async_context(console_bench(tmp_path, settings_at(own.port)))
        one, late = [await stack.enter_async_context(bench.visitor()) for _ in range(2)]
        own.person = dict(KIM)
        assert (await one.come_back())[0] == 200
        back = await late.callback()
        await own.stop()
        async with late.client.get(bench.url + back) as answer:
            assert answer.status == 503 and 'href="/sign-in"' in await answer.text()
            assert "tandem_session" not in answer.cookies
        for visitor in (one, late):
            async with visitor.client.get(bench.url + "/sign-in/begin", allow_redirects=False) as answer:
                assert answer.status == 503 and "tandem_session" not in answer.cookies
        assert (await is_in(one), await is_in(late)) == (True, False)


@pytest.mark.parametrize(
    "told",
    [
        {"issuer": "http://localhost:1"},
        {"authorization_endpoint": "http://id.example/auth"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": None},
    ],
)
async def test_a_document_of_another_issuer_or_without_https_sends_nobody_anywhere(
    bench: ConsoleBench, provider: IdentityProvider, told: dict[str, Any]
) -> None:
    provider.told = told
    async with bench.visitor() as one:
        assert (await one.get("/sign-in/begin"))[0] == 503


@pytest.mark.parametrize("name", ["token_endpoint", "jwks_uri"])
async def test_no_secret_goes_and_no_key_comes_by_plain_http(
    bench: ConsoleBench, provider: IdentityProvider, name: str
) -> None:
    provider.told = {name: "http://id.example/x"}
    async with bench.visitor() as one:
        assert (await one.come_back())[0] == 503
        assert not await is_in(one)


async def test_a_provider_that_wants_the_secret_in_the_form_gets_it_there(
    bench: ConsoleBench, provider: IdentityProvider
) -> None:
    provider.told = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    async with bench.visitor() as one:
        assert (await one.come_back())[0] == 200


# ── settings ──


@pytest.mark.parametrize(
    "bad",
    [
        {"oidc_client_secret": ""},
        {"oidc_roles": ""},
        {"oidc_issuer": "http://id.example"},
        {"oidc_issuer": "https://id.example/?a=b"},
        {"oidc_roles": "watch=x"},
        {"oidc_roles": "police="},
        {"oidc_roles": "police=a,probation=a"},
        {"console_role": "operator"},
    ],
)
async def test_a_provider_that_is_half_configured_or_could_be_overheard_is_refused(bad: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "oidc_issuer": "https://id.example/realms/npa",
        "oidc_client_id": "c",
        "oidc_client_secret": "s",
        "oidc_roles": "police=npa-112",
    }
    ConsoleSettings(**good)
    with pytest.raises(ValueError, match="TANDEM_"):
        ConsoleSettings(**(good | bad))

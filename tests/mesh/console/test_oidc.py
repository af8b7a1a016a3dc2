"""Signing in to the console by an identity provider: a provider over HTTP, honest and lying, with the real console process."""

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

from services.console.pages.guard import STRANGER_BURST
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
    async with identity_provider() as running_provider:
        yield running_provider


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(running: IdentityProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConsoleBench]:
    async with console_bench(tmp_path_factory.mktemp("oidc"), settings_at(running.port)) as running_console:
        yield running_console


@pytest.fixture
def provider(running: IdentityProvider) -> IdentityProvider:
    """An honest provider where Kim signs in."""
    running.person = dict(KIM)
    running.make = None
    running.document_changes = {}
    running.shown = [running.key]
    return running


async def is_in(visitor: Visitor) -> bool:
    return (await visitor.get("/search"))[0] == 200


# ── signing in and out ──


async def test_a_user_with_a_role_signs_in_under_their_own_name_and_out(
    bench: ConsoleBench, provider: IdentityProvider
) -> None:
    async with bench.visitor() as visitor:
        assert 'href="/sign-in/begin"' in await visitor.read("/sign-in")
        back = await visitor.callback()
        asked = provider.asked[-1]
        assert (asked["response_type"], asked["code_challenge_method"], asked["prompt"]) == ("code", "S256", "login")
        async with visitor.client.get(visitor.url + back, allow_redirects=False) as answer:
            assert answer.status == 200 and 'content="0;url=/"' in await answer.text()
            assert answer.cookies["tandem_session"]["samesite"] == "Strict"
        bench.asked.clear()
        await visitor.read(f"/incidents/{INCIDENT}")
        assert ("police", "ListIncidents", "spiffe://npa/desk/console/kim") in bench.asked
        for token in ("", "0" * 64):
            assert (await visitor.post("/sign-out", csrf=token))[0] == 403
        assert (await visitor.post("/sign-out", origin="https://elsewhere.example"))[0] == 403
        assert await is_in(visitor)
        assert (await visitor.post("/sign-out"))[0] == 303
        assert not await is_in(visitor)


async def test_with_a_provider_there_are_no_development_users(bench: ConsoleBench, provider: IdentityProvider) -> None:
    async with bench.visitor() as visitor:
        text = await visitor.read("/sign-in")
        assert 'name="role"' not in text
        assert (await visitor.post("/sign-in", role="police", name="kim"))[0] == 405
        assert not await is_in(visitor)


async def test_a_session_of_a_development_user_ends_when_a_provider_is_configured(
    bench: ConsoleBench, tmp_path: Path
) -> None:
    async with console_bench(tmp_path) as before, before.visitor("police") as visitor:
        cookie = next(iter(visitor.client.cookie_jar)).value
        key = (tmp_path / "console" / "session.key").read_bytes()
    (tmp_path / "later" / "console").mkdir(parents=True)
    (tmp_path / "later" / "console" / "session.key").write_bytes(key)
    async with console_bench(tmp_path / "later", settings_at(1)) as after, after.visitor() as visitor:
        assert (await visitor.get("/search", Cookie=f"tandem_session={cookie}"))[0] == 401


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
async def test_a_name_that_the_ledger_cannot_hold_becomes_a_unique_one(
    bench: ConsoleBench, provider: IdentityProvider, claims: dict[str, Any], name: str
) -> None:
    names = set()
    for sub in ("4711", "4712"):
        provider.person = {**KIM, **claims, "sub": sub}
        async with bench.visitor() as visitor:
            assert (await visitor.come_back())[0] == 200
            found = re.search(rf"· ({name})</span>", await visitor.read("/search"))
            assert found
            names.add(found[1])
    assert len(names) == (1 if claims["preferred_username"] == "kim" else 2)


# ── answers to another browser or attempt ──


async def test_an_answer_counts_only_in_the_browser_and_attempt_that_asked(
    bench: ConsoleBench, provider: IdentityProvider
) -> None:
    async with bench.visitor() as visitor, bench.visitor() as other:
        strange, own = await other.callback(), await visitor.callback()
        code = parse_qs(urlsplit(own).query)["code"][0]
        for address in (
            strange,  # another person's sign-in: this browser's actions would count as theirs
            f"/sign-in/callback?code={code}&state={'0' * 64}",
            f"/sign-in/callback?code={code}",
        ):
            status, text, _ = await visitor.get(address)
            assert status == 403 and TEXTS["refused_state"][0] in text
            assert not await is_in(visitor)
            own = await visitor.callback()  # a refusal ends the attempt
        assert (await visitor.get(own.replace("iss=", "iss=x")))[0] == 403
        status, _, _ = await visitor.get(await visitor.callback())
        assert status == 200 and await is_in(visitor)


async def test_a_code_is_accepted_once(bench: ConsoleBench, provider: IdentityProvider) -> None:
    async with bench.visitor() as visitor:
        back = await visitor.callback()
        attempt = next(to.value for to in visitor.client.cookie_jar if to.key == "tandem_attempt")
        assert (await visitor.get(back))[0] == 200
        async with bench.visitor() as thief:
            for sent in ({}, {"Cookie": f"tandem_attempt={attempt}"}):
                assert (await thief.get(back, **sent))[0] == 403
                assert not await is_in(thief)
        assert await is_in(visitor)


async def test_a_stolen_code_is_refused_in_another_attempt(bench: ConsoleBench, provider: IdentityProvider) -> None:
    async with bench.visitor() as visitor, bench.visitor() as thief:
        stolen = parse_qs(urlsplit(await visitor.callback()).query)["code"][0]
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
    async with bench.visitor() as visitor:
        status, text = await visitor.come_back()
        assert status == 403 and UNPROVEN in text
        assert not await is_in(visitor)


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
async def test_a_token_for_another_client_or_time_lets_nobody_in(
    bench: ConsoleBench, provider: IdentityProvider, claims: dict[str, Any]
) -> None:
    provider.person |= claims
    async with bench.visitor() as visitor:
        status, text = await visitor.come_back()
        assert status == 403 and UNPROVEN in text
        assert not await is_in(visitor)


async def test_a_key_counts_only_while_the_provider_shows_it(bench: ConsoleBench, provider: IdentityProvider) -> None:
    old, new = provider.key, new_key("second")
    provider.key = new
    try:
        async with bench.visitor() as visitor:
            assert (await visitor.come_back())[0] == 403
            provider.shown = [old, new]
            assert (await visitor.come_back())[0] == 200
        provider.key, provider.shown = old, [new]
        async with bench.visitor() as visitor:
            assert (await visitor.come_back())[0] == 403
    finally:
        provider.key, provider.shown = old, [old]


# ── roles ──


@pytest.mark.parametrize(
    "roles", [None, [], "", "npa", ["staff"], [["npa-112"]], {"npa-112": True}, ["npa-112", "moj-tracking"], "police"]
)
async def test_without_exactly_one_role_nobody_signs_in(
    bench: ConsoleBench, provider: IdentityProvider, roles: Any
) -> None:
    provider.person["roles"] = roles
    async with bench.visitor() as visitor:
        status, text = await visitor.come_back()
        assert status == 403 and 'href="/sign-in"' in text
        assert not await is_in(visitor)


async def test_with_certificates_the_console_serves_one_role_and_names_its_user_to_services(
    provider: IdentityProvider, tmp_path: Path
) -> None:
    authority = Authority("Tandem tests")
    async with console_bench(tmp_path, settings_at(provider.port), authority) as bench, bench.visitor() as visitor:
        provider.person["roles"] = "moj-tracking"
        status, text = await visitor.come_back()
        assert (status, await is_in(visitor)) == (403, False)
        assert "another role" in text or "다른 소속" in text
        provider.person["roles"] = ["npa-112-night", "moj-tracking"]
        assert (await visitor.come_back())[0] == 200
        await visitor.read(f"/incidents/{INCIDENT}")
        assert ("police", "ListIncidents", "spiffe://npa/desk/console/kim") in bench.asked
        cookie = next(to for to in visitor.client.cookie_jar if to.key == "tandem_session")
        assert cookie["secure"] and cookie["httponly"]


# ── an unavailable provider ──


async def test_an_unavailable_provider_is_shown_and_changes_nothing_for_signed_in_users(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(identity_provider())
        bench = await stack.enter_async_context(console_bench(tmp_path, settings_at(own.port)))
        early, late = [await stack.enter_async_context(bench.visitor()) for _ in range(2)]
        own.person = dict(KIM)
        assert (await early.come_back())[0] == 200
        back = await late.callback()
        await own.stop()
        async with late.client.get(bench.url + back) as answer:
            assert answer.status == 503 and 'href="/sign-in"' in await answer.text()
            assert "tandem_session" not in answer.cookies
        for visitor in (early, late):
            async with visitor.client.get(bench.url + "/sign-in/begin", allow_redirects=False) as answer:
                assert answer.status == 503 and "tandem_session" not in answer.cookies
        assert (await is_in(early), await is_in(late)) == (True, False)
        # One address can neither make the console ask the provider without end, nor fill the disk with lines about forged forms.
        forged = 0
        while (await late.post("/sign-out", csrf="0" * 64))[0] == 403:
            forged += 1
            assert forged < 4 * STRANGER_BURST
        assert (tmp_path / "console.log").read_text().count('"event": "forged"') <= forged
        for path in ("/sign-in/begin", "/sign-in/callback?code=1&state=2"):
            status, text = 200, ""
            for _ in range(STRANGER_BURST):  # the limit lets some pass each second
                status, text, _ = await late.get(path, Accept="text/html")
                if status == 429:
                    break
            assert status == 429 and TEXTS["error_429"][0] in text
        assert await is_in(early)


@pytest.mark.parametrize(
    "document_changes",
    [
        {"issuer": "http://localhost:1"},
        {"authorization_endpoint": "http://id.example/auth"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": None},
    ],
)
async def test_a_document_of_another_issuer_or_without_https_sends_nobody_anywhere(
    bench: ConsoleBench, provider: IdentityProvider, document_changes: dict[str, Any]
) -> None:
    provider.document_changes = document_changes
    async with bench.visitor() as visitor:
        assert (await visitor.get("/sign-in/begin"))[0] == 503


@pytest.mark.parametrize("name", ["token_endpoint", "jwks_uri"])
async def test_no_secret_is_sent_and_no_key_is_read_by_plain_http(
    bench: ConsoleBench, provider: IdentityProvider, name: str
) -> None:
    provider.document_changes = {name: "http://id.example/x"}
    async with bench.visitor() as visitor:
        assert (await visitor.come_back())[0] == 503
        assert not await is_in(visitor)


async def test_a_provider_that_wants_the_secret_in_the_form_gets_it_there(
    bench: ConsoleBench, provider: IdentityProvider
) -> None:
    provider.document_changes = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    async with bench.visitor() as visitor:
        assert (await visitor.come_back())[0] == 200


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
async def test_a_half_configured_or_plaintext_provider_is_refused(bad: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "oidc_issuer": "https://id.example/realms/npa",
        "oidc_client_id": "c",
        "oidc_client_secret": "s",
        "oidc_roles": "police=npa-112",
    }
    ConsoleSettings(**good)
    with pytest.raises(ValueError, match="TANDEM_"):
        ConsoleSettings(**(good | bad))

"""Signing in to the console in a real browser, at a certified OpenID provider (oidc-provider), all with certificates."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.console.pages.texts import TEXTS
from tests.browser.driver import HERE, Browser, browser
from tests.support.common.certificates import Authority
from tests.support.common.ports import free_port
from tests.support.console.console import INCIDENT, PATIENCE_S, ConsoleBench, console_bench

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    # A closed browser leaves warnings.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
KIM = {"preferred_username": "kim", "roles": ["staff", "npa-112"]}
CHECK_S = 1
CLIENTS = ("console", "without-refresh", "of-another-issuer")
ENGLISH = 1


class CertifiedProvider:
    """The process of provider.mjs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()

    async def answer(self) -> Any:
        """Reads the next answer."""
        assert self._process.stdout
        async with asyncio.timeout(PATIENCE_S):
            return json.loads(await self._process.stdout.readline())["result"]

    async def __call__(self, command: str, **given: Any) -> Any:
        """Runs a command of provider.mjs and returns its result."""
        assert self._process.stdin
        async with self._lock:
            self._process.stdin.write(json.dumps({"command": command, **given}).encode() + b"\n")
            return await self.answer()


@asynccontextmanager
async def certified_provider(
    port: int, cert: Path, key: Path, *, callbacks: dict[str, str]
) -> AsyncIterator[CertifiedProvider]:
    """Runs the provider for these clients and their callback addresses."""
    process = await asyncio.create_subprocess_exec(
        *("node", "provider.mjs", str(port), str(cert), str(key), json.dumps(callbacks)),
        cwd=HERE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # its notices about forms for development
    )
    running = CertifiedProvider(process)
    try:
        assert await running.answer() == "ready"
        yield running
    finally:
        process.kill()
        await process.wait()


@dataclass
class Agency:
    """The provider, a browser, and the police's console for each client of the provider."""

    provider: CertifiedProvider
    browser: Browser
    consoles: dict[str, ConsoleBench]

    async def sign_in(self, page: str, client: str = "console", person: str = "4711") -> None:
        """Signs in at the provider's form, and returns when the browser is back at the console."""
        url = self.consoles[client].url
        await self.browser("open", page=page, url=f"{url}/sign-in", language="en")
        await self.browser("click", page=page, selector="a[href='/sign-in/begin']")
        await self.browser("fill", page=page, selector="input[name=login]", value=person)
        await self.browser("fill", page=page, selector="input[name=password]", value="any")
        await self.browser("click", page=page, selector="button.login-submit")

    async def live(self, page: str) -> None:
        """Returns when the page is the live page of a user who is signed in."""
        await self.browser("wait", page=page, selector="body.live nav a[aria-current]")

    async def until_counted(self, what: str, least: int) -> None:
        """Returns when the provider has seen something so many times."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.provider("seen"))[what] < least:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def text(self, page: str, selector: str) -> str:
        """Text of an element, when it is there."""
        await self.browser("wait", page=page, selector=selector)
        return str((await self.browser("text", page=page, selector=selector))[0])


def key_hash(cert: Path) -> str:
    """Hash of a certificate's public key, as Chromium expects it."""
    public = x509.load_pem_x509_certificate(cert.read_bytes()).public_key()
    encoded = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(encoded).digest()).decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agency(packages: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Agency]:
    folder = tmp_path_factory.mktemp("sign-in")
    authority, port = Authority("Tandem tests"), free_port()
    cert, key = authority.server().write(folder, "provider")
    (folder / "authority.pem").write_bytes(authority.cert)
    async with AsyncExitStack() as stack:
        consoles = {}
        for client in CLIENTS:
            host = "127.0.0.1" if client == "of-another-issuer" else "localhost"
            settings = {
                "TANDEM_OIDC_ISSUER": f"https://{host}:{port}",
                "TANDEM_OIDC_CLIENT_ID": client,
                "TANDEM_OIDC_CLIENT_SECRET": "a secret: with/characters",
                "TANDEM_OIDC_ROLES": "police=npa-112,probation=moj-tracking",
                "TANDEM_OIDC_CHECK_INTERVAL_S": str(CHECK_S),
                "SSL_CERT_FILE": str(folder / "authority.pem"),
            }
            own = folder / client
            own.mkdir()
            consoles[client] = await stack.enter_async_context(console_bench(own, settings, authority))
        callbacks = {client: f"{bench.url}/sign-in/callback" for client, bench in consoles.items()}
        provider = await stack.enter_async_context(certified_provider(port, cert, key, callbacks=callbacks))
        pages = [folder / client / "tandem-service-console.pem" for client in CLIENTS]
        seen = await stack.enter_async_context(browser(",".join(key_hash(path) for path in (cert, *pages))))
        yield Agency(provider, seen, consoles)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def honest(agency: Agency) -> None:
    """Kim's account is open, and the provider is honest."""
    await agency.provider("account", id="4711", claims=KIM)
    await agency.provider("lie", claims={})


async def test_an_officer_signs_in_with_pkce_and_acts_under_their_own_name(agency: Agency) -> None:
    await agency.sign_in("officer")
    await agency.live("officer")
    assert set((await agency.provider("seen"))["challenges"]) == {"S256"}
    console = agency.consoles["console"]
    await agency.browser("open", page="officer", url=f"{console.url}/incidents/{INCIDENT}")
    assert "kim" in await agency.text("officer", ".who")
    assert ("police", "ListIncidents", "spiffe://npa/desk/console/kim") in console.asked
    (session,) = [
        cookie for cookie in await agency.browser("cookies", page="officer") if cookie["name"] == "tandem_session"
    ]
    assert session["secure"] and session["httpOnly"] and session["sameSite"] == "Strict"
    assert len(session["value"]) < 4_000


async def test_a_session_goes_on_while_the_provider_confirms_the_account(agency: Agency) -> None:
    """The provider replaces the refresh token at each use, and a used one would end the session."""
    await agency.sign_in("long")
    await agency.live("long")
    begun = (await agency.provider("seen"))["refreshed"]
    await agency.until_counted("refreshed", begun + 3)
    await agency.browser("open", page="long", url=agency.consoles["console"].url + "/search")
    assert "kim" in await agency.text("long", ".who")


@pytest.mark.parametrize(
    ("claims", "end"), [(None, "closed"), ({**KIM, "roles": ["moj-tracking"]}, "role_changed"), ({}, "role_changed")]
)
async def test_an_open_live_page_ends_with_its_account_and_says_why(
    agency: Agency, claims: dict[str, Any] | None, end: str
) -> None:
    await agency.sign_in(end)
    await agency.live(end)
    await agency.provider("account", id="4711", claims=claims)
    assert await agency.text(end, "#session-ended") == TEXTS[f"ended_{end}"][ENGLISH]
    console = agency.consoles["console"].url
    # An answer that the officer was about to give comes too late, too.
    answer = f"""fetch("/incidents/{INCIDENT}/acknowledge", {{
        method: "POST",
        headers: {{ "X-CSRF-Token": document.querySelector("input[name=csrf]").value }},
        body: new URLSearchParams({{ assignment: "assignment-1", offer: "1", seen: "OFFERED" }}),
    }}).then(async (answer) => [answer.status, await answer.text()])"""
    status, text = await agency.browser("eval", page=end, expression=answer)
    assert status == 401 and "sign in first" in text
    await agency.browser("open", page=end, url=f"{console}/search")
    assert await agency.browser("text", page=end, selector=".who form[action='/sign-out']") == []


async def test_an_account_of_another_role_is_refused_and_one_that_gets_the_role_signs_in(agency: Agency) -> None:
    await agency.provider("account", id="4711", claims={**KIM, "roles": ["moj-tracking"]})
    await agency.sign_in("moved")
    assert TEXTS["refused_other_role"][ENGLISH] in await agency.text("moved", "main")
    await agency.provider("account", id="4711", claims=KIM)
    await agency.sign_in("moved")
    await agency.live("moved")


@pytest.mark.parametrize("lie", [{"nonce": "of another attempt"}, {"aud": "another-client"}])
async def test_a_token_with_another_nonce_or_audience_lets_nobody_in(agency: Agency, lie: dict[str, str]) -> None:
    await agency.provider("lie", claims=lie)
    await agency.sign_in("lied-to")
    assert TEXTS["refused_token"][ENGLISH] in await agency.text("lied-to", "main")
    await agency.browser("open", page="lied-to", url=agency.consoles["console"].url + "/search")
    assert await agency.browser("text", page="lied-to", selector=".who form[action='/sign-out']") == []


async def test_a_provider_of_another_issuer_gets_no_browser(agency: Agency) -> None:
    url = agency.consoles["of-another-issuer"].url
    assert await agency.browser("open", page="elsewhere", url=f"{url}/sign-in/begin", language="en") == 503
    assert TEXTS["refused_provider_away"][ENGLISH] in await agency.text("elsewhere", "main")


async def test_signing_out_ends_the_session_here_and_its_grant_at_the_provider(agency: Agency) -> None:
    await agency.sign_in("leaving")
    await agency.live("leaving")
    revoked = (await agency.provider("seen"))["revoked"]
    await agency.browser("click", page="leaving", selector="form[action='/sign-out'] button")
    await agency.browser("wait", page="leaving", selector="a[href='/sign-in/begin']")
    await agency.until_counted("revoked", revoked + 1)
    await agency.browser("open", page="leaving", url=agency.consoles["console"].url + "/search")
    await agency.browser("wait", page="leaving", selector="a[href='/sign-in/begin']")


async def test_without_a_refresh_token_a_session_ends_with_the_token_and_one_signs_in_once_more(agency: Agency) -> None:
    await agency.sign_in("short", "without-refresh")
    await agency.live("short")
    # The page is left open, and leads to the sign-in page by itself when the token is over.
    async with asyncio.timeout(PATIENCE_S * 3):
        while not await agency.browser("text", page="short", selector="a[href='/sign-in/begin']"):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    await agency.sign_in("short", "without-refresh")
    await agency.live("short")

"""Fuzz tests of crafted links, cookies, redirects and host headers, which must get their specified answers.

`make fuzz` runs them for minutes, `make test` runs the same few examples each time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.web import server as common_web
from services.console.domain.people import ConsoleUser, Role
from services.console.pages.guard import Ask, RouteGuard, see_other
from services.console.settings import ConsoleSettings
from services.console.sign_in.sessions import SignedCookies, new_session
from services.dispatch.exchange.links import InvalidLink, Links, Token

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
"""Duration for all targets together, seconds. If 0, the default, each target gets one round of the same two hundred examples."""
LINKS = Links("police", bytes(range(32)), "http://127.0.0.1:1")
WRITTEN = LINKS.write(Token("police", "assign-1", "car-7", 2_000, "nonce-1"))
COOKIES = SignedCookies([bytes(range(32))], "")
SEALED = COOKIES.seal(new_session(ConsoleUser(Role.POLICE, "duty-1"), time.time()))
ORIGIN = "https://console.example"
BROWSERS_DROP = str.maketrans("", "", "\t\r\n")

PIECES = st.sampled_from(
    ["/", "//", "\\", "\t", "\r\n", "..", ".", "?", "#", "@", ":", "evil.example", "%2f", "\x00", " ", "경"]
)
PATHS = st.lists(PIECES | st.text(max_size=3), max_size=8).map("".join) | st.lists(PIECES, max_size=6).map(
    lambda pieces: "/" + "".join(pieces)
)
HOST_PIECES = st.sampled_from(
    ["[", "]", "::1", "127.0.0.1", "localhost", ":", "80", "@", ".", "v1", "%", "evil.example"]
)
HOSTS = st.lists(HOST_PIECES, max_size=6).map("".join) | st.text(st.characters(codec="ascii"), max_size=12)


@st.composite
def tokens(draw: st.DrawFn, valid: str) -> str:
    """A valid text with parts removed, doubled or replaced, or an arbitrary text."""
    text = valid
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=3) | st.just("[" * 3_000)) + text[at + draw(st.integers(0, 3)) :]
    return text if draw(st.booleans()) else draw(st.text(max_size=40))


def link(text: str) -> None:
    try:
        LINKS.read(text, 1_000)
    except InvalidLink as refused:
        assert refused.answer.status == 403
    else:
        assert text == WRITTEN


def redirect(text: str) -> None:
    location = see_other(text).headers["Location"]
    for seen in (location, location.translate(BROWSERS_DROP).replace("\\", "/")):
        leads_to = urlsplit(urljoin(ORIGIN + "/page", seen))
        assert (leads_to.scheme, leads_to.netloc) == ("https", "console.example")


def host(text: str) -> None:
    async def page(ask: Ask) -> web.Response:
        return web.Response()

    route = RouteGuard(ConsoleSettings(dev_secret="x"), [bytes(32)]).open_get("/", page)
    request = make_mocked_request("GET", "/", {"Host": text})
    handler = cast(common_web.Handler, route.handler)
    status = asyncio.run(_status(handler, request))
    assert status in (200, 400, 421)
    if status == 200:
        assert text.lower().rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]") or text.lower() in (
            "127.0.0.1",
            "localhost",
            "[::1]",
        )


def cookie(text: str) -> None:
    session = COOKIES.unseal(text, time.time())
    # A signature has several spellings in base64. What it signs has one.
    assert session is None or text.rpartition(".")[0] == SEALED.rpartition(".")[0]
    assert COOKIES.unseal_attempt(text, time.time()) is None


async def _status(handler: common_web.Handler, request: web.Request) -> int:
    return (await handler(request)).status


TARGETS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "link": (link, tokens(WRITTEN)),
    "cookie": (cookie, tokens(SEALED)),
    "redirect": (redirect, PATHS),
    "host": (host, HOSTS),
}


@pytest.mark.parametrize("name", TARGETS)
def test_crafted_input_gets_its_specified_answer(name: str) -> None:
    target, strategy = TARGETS[name]

    @settings(
        max_examples=2_000 if SECONDS else 200,
        derandomize=not SECONDS,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def attempt(crafted: Any) -> None:
        target(crafted)

    until_s = time.monotonic() + SECONDS / len(TARGETS)
    rounds = 0
    while not rounds or time.monotonic() < until_s:
        attempt()
        rounds += 1
    print(f"{name}: {rounds} rounds")

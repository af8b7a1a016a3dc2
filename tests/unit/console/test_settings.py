"""Settings of the console: insecure ones are refused, and they limit what pages load and who signs in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from services.console.pages.guard import RouteGuard
from services.console.pages.sign_in import SigningIn
from services.console.settings import ConsoleSettings


@pytest.mark.parametrize(
    "bad",
    [
        {"host": "192.0.2.1"},
        {"registry": "dns:///registry:7401"},
        {"public_origins": "console.example"},
        {"tiles": "javascript:alert(1)"},
        {"streets": "javascript:alert(1)"},
        {"streets": "https://tiles.example/{z}/{x}.png"},
        {"streets": "https://tiles.example/streets; script-src *"},
        {"tls_cert": Path("c"), "tls_key": Path("k"), "tls_ca": Path("a")},
        {"tls_cert": Path("c"), "tls_key": Path("k"), "tls_ca": Path("a"), "console_role": "police"},
    ],
)
def test_insecure_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="TANDEM_"):
        ConsoleSettings(**bad)


@pytest.mark.parametrize(
    "streets",
    [
        "https://tiles.example/streets.pmtiles",
        "https://tiles.example:8443/{z}/{x}/{y}.pbf?key=abc",
        "http://127.0.0.1/{z}/{x}/{y}@2x.png",
    ],
)
def test_streets_are_fetched_from_their_own_origin_alone(streets: str) -> None:
    settings = ConsoleSettings(streets=streets)
    response = web.Response()
    RouteGuard(settings, [bytes(32)]).protect(response)
    origin = "/".join(streets.split("/")[:3])
    assert settings.tiles_origins == (origin,)
    policy = response.headers["Content-Security-Policy"].split("; ")
    assert f"connect-src 'self' {origin}" in policy and f"img-src 'self' data: blob: {origin}" in policy
    assert "script-src 'self'" in policy


async def test_nobody_signs_in_without_development_tokens() -> None:
    settings = ConsoleSettings()
    signing_in = SigningIn(settings, RouteGuard(settings, [bytes(32)]))
    ask = cast(Any, type("Ask", (), {"form": {"role": "police", "name": "kim"}}))
    with pytest.raises(web.HTTPForbidden):
        await signing_in.signed_in(ask)

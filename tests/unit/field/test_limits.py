"""Rate limits of field: neither a stranger behind her address nor the phone that hers replaced can use up hers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from services.common.observability.metrics import unexposed
from services.common.privacy.secret_keys import open_keys
from services.common.web.server import served
from services.field import guard
from services.field.credentials import PhoneCookies, PhoneSession, UnitCookies, UnitSession
from tests.support.field.alone import running_field
from tests.support.field.phone import PhoneClient, phone, position

BURST = 5
SLOW = 1e-6
"""A rate at which no place comes back during a test, a second."""


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADDRESS", "PHONE", "UNIT_PAGE"):
        monkeypatch.setattr(guard, f"{name}_PER_S", SLOW)
        monkeypatch.setattr(guard, f"{name}_BURST", BURST)


@asynccontextmanager
async def known_phone(url: str, folder: Path) -> AsyncIterator[PhoneClient]:
    """A phone with the cookies of her app and of a unit's page."""
    async with phone(url) as client:
        keys = open_keys(folder / "cookies.key")
        client.take_cookie(PhoneCookies(keys).seal(PhoneSession("phone-1", "person-1", "t", client.public)))
        client.take_cookie(UnitCookies(keys).seal(UnitSession("police", "car-1", "t", client.public)), "unit")
        yield client


PATHS = ("/api/push", "/api/unit/push")


async def test_a_stranger_behind_her_address_is_refused_and_she_is_not(tmp_path: Path) -> None:
    async with running_field(tmp_path) as url, phone(url) as stranger, known_phone(url, tmp_path) as hers:
        found = [(await stranger.ask("GET", "/api/push")).status for _ in range(BURST + 1)]
        assert found[0] == 401 and found[-1] == 429
        assert (await stranger.ask("POST", "/api/enrol", {"code": "x", "key": stranger.public})).status == 429
        assert (await stranger.ask("GET", "/")).status == 429
        for path in PATHS:  # 503: her request was admitted, and the mesh is away
            assert (await hers.ask("GET", path)).status == 503
        # A copied cookie without the phone's key counts by the address, too.
        stranger.take_cookie(hers.cookie())
        assert (await stranger.ask("GET", "/api/push")).status == 429


async def test_the_phone_that_was_replaced_cannot_use_up_the_limit_of_hers(tmp_path: Path) -> None:
    async with running_field(tmp_path) as url, known_phone(url, tmp_path) as old, known_phone(url, tmp_path) as new:
        for path in PATHS:
            found = [(await old.ask("GET", path)).status for _ in range(BURST + 1)]
            assert found == [503] * BURST + [429]
            assert (await new.ask("GET", path)).status == 503


async def test_a_panic_is_sent_although_the_phone_asks_too_often_and_what_is_with_it_waits(tmp_path: Path) -> None:
    stored: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        stored.append(str((await request.post()).get("alarm", "position")))
        return web.json_response({"accepted": 1})

    async with (
        served("ingest", [web.post("/", answer)], "127.0.0.1", port=0, closed=unexposed().http_closed) as port,
        running_field(tmp_path, port) as url,
        known_phone(url, tmp_path) as hers,
    ):
        found = [(await hers.report(position(1, 37.6, 127.2))).status for _ in range(BURST + 1)]
        assert found == [200] * BURST + [429] and stored == ["position"] * BURST
        panic = {"id": "p", "at_ms": 5, "alarm": "panic"}
        answered = await hers.report(position(2, 37.6, 127.2), panic)
        outcomes = {result["id"]: result["outcome"] for result in answered.content["results"]}
        assert answered.status == 200 and outcomes == {"p": "stored", "r2": "later"}
        assert stored[BURST:] == ["sos"] and (await hers.report(position(3, 37.6, 127.2))).status == 429


async def test_the_apps_open_although_every_thread_of_the_process_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "ADDRESS_BURST", 100)
    over = threading.Event()
    async with running_field(tmp_path) as url, phone(url) as hers:
        waiting = [asyncio.create_task(asyncio.to_thread(over.wait)) for _ in range(40)]
        try:
            for path in ("/", "/unit/", "/static/app.js", "/service-worker.js"):
                async with hers._session.get(url + path) as answer:
                    assert answer.status == 200 and await answer.read(), path
        finally:
            over.set()
            await asyncio.gather(*waiting)


async def test_a_page_of_another_site_or_of_none_is_refused(tmp_path: Path) -> None:
    async with running_field(tmp_path) as url, known_phone(url, tmp_path) as hers:
        for origin in ("https://[", "null", "", "https://elsewhere.example", "http://"):
            refused = await hers.ask("POST", "/api/push", {}, Origin=origin)
            assert refused[:2] == (403, {"error": "other_site"}), origin

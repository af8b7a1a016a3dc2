"""Access control of her app's routes over HTTP: the token of a phone, and what requests without the phone's key can cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.common.observability.metrics import ProcessMetrics
from services.common.storage.db import open_database
from services.common.web import server
from services.field import guard as module
from services.field.__main__ import MIGRATIONS
from services.field.guard import PhoneCall, PhoneGuard
from services.field.metrics import FieldMetrics
from services.field.phones.sessions import PhoneCookies, PhoneSession
from services.field.push.store import PushAddresses
from services.field.settings import FieldSettings
from tests.support.field.known import SinglePhoneRegistry, known_phones
from tests.support.field.phone import PhoneClient, phone

KEYS = (bytes(32),)


async def nothing(_call: PhoneCall) -> web.Response:
    return web.json_response({})


@asynccontextmanager
async def hers(folder: Path) -> AsyncIterator[tuple[PhoneClient, SinglePhoneRegistry]]:
    """An enrolled phone of a field with two routes: one whose token the guard checks, and one that checks it itself."""
    collector = CollectorRegistry()
    async with open_database(folder / "field.sqlite3", MIGRATIONS) as database, known_phones() as (known, registry):
        guard = PhoneGuard(
            FieldSettings(),
            PhoneCookies(KEYS),
            known,
            addresses=PushAddresses(database),
            metrics=FieldMetrics(collector),
        )
        routes = (guard.get("/api/checked", nothing), guard.get("/api/own", nothing, checks_token=False))
        closed = ProcessMetrics(collector).http_closed
        async with (
            server.served("field", routes, "127.0.0.1", port=0, closed=closed) as port,
            phone(f"http://127.0.0.1:{port}") as client,
        ):
            session = PhoneSession("phone-1", "person-1", "token-1", client.public)
            client.take_cookie(PhoneCookies(KEYS).seal(session))
            yield client, registry


async def test_a_token_that_has_ended_opens_no_route_that_does_not_check_it_itself(tmp_path: Path) -> None:
    async with hers(tmp_path) as (client, registry):
        assert (await client.ask("GET", "/api/own")).status == 200 and registry.asked == 0
        assert (await client.ask("GET", "/api/checked")).status == 200 and registry.asked == 1
    async with hers(tmp_path) as (client, registry):
        registry.error = grpc.StatusCode.NOT_FOUND
        assert (await client.ask("GET", "/api/checked"))[:2] == (401, {"error": "ended"})
        registry.error = grpc.StatusCode.UNAVAILABLE
        assert (await client.ask("GET", "/api/checked")).status == 503


async def test_a_copied_cookie_cannot_fill_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADDRESS_PER_S", 0.001)
    monkeypatch.setattr(module, "ADDRESS_BURST", 3)
    async with hers(tmp_path) as (client, _):
        other = client.proof("GET", "/api/other", b"")
        with capture_logs() as logs:
            statuses = [(await client.ask("GET", "/api/own", **{"X-Proof": other})).status for _ in range(10)]
        assert statuses == [401] * 3 + [429] * 7
        assert [line["event"] for line in logs].count("phone_without_its_key") == 3
        assert (await client.ask("GET", "/api/own")).status == 200, "the phone itself isn't locked out"

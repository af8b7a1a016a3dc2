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
from services.field.credentials import PhoneCookies, PhoneSession
from services.field.guard import PhoneCall, PhoneGuard
from services.field.metrics import FieldMetrics
from services.field.push import PushAddresses
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
            FieldSettings(public_origins="https://app.example, https://app.example:8443"),
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


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("app.example", 200),
        ("app.example:8443", 200),
        ("localhost:1", 200),
        ("[::1]", 200),
        ("evil.example", 421),
        ("app.example.evil.example", 421),
        ("app.example:1", 421),
        ("10.0.0.1", 421),
        ("", 400),
        ("app.example/x", 400),
        ("[::1", 400),
    ],
)
async def test_the_app_is_served_under_its_own_names_alone(tmp_path: Path, host: str, status: int) -> None:
    async with hers(tmp_path) as (client, _):
        assert (await client.ask("GET", "/api/own", Host=host)).status == status


async def test_a_request_is_accepted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADDRESS_PER_S", 0.001)
    monkeypatch.setattr(module, "ADDRESS_BURST", 3)
    monkeypatch.setattr(module, "PHONE_PER_S", 0.001)
    monkeypatch.setattr(module, "PHONE_BURST", 2)
    async with hers(tmp_path) as (client, _):
        copied = {"X-Proof": client.proof("GET", "/api/own", b"")}
        assert (await client.ask("GET", "/api/own", **copied)).status == 200
        with capture_logs() as logs:
            repeated = [await client.ask("GET", "/api/own", **copied) for _ in range(5)]
        assert [answer[:2] for answer in repeated[:3]] == [(401, {"error": "repeated"})] * 3
        assert [answer.status for answer in repeated[3:]] == [429] * 2, "they count by the address that repeats them"
        assert [line["event"] for line in logs] == ["request_repeated"] * 3
        assert (await client.ask("GET", "/api/own")).status == 200, (
            "and not as requests of the phone, which signs again"
        )


async def test_a_request_that_was_signed_before_the_start_is_refused(tmp_path: Path) -> None:
    async with phone("") as before:
        copied = before.proof("GET", "/api/own", b"")
        async with hers(tmp_path) as (client, _):
            client.key = before.key
            client.take_cookie(PhoneCookies(KEYS).seal(PhoneSession("phone-1", "person-1", "token-1", client.public)))
            first = await client.ask("GET", "/api/own", **{"X-Proof": copied})
            assert first.status == 401 and first.content["error"] == "clock" and first.content["now_ms"] > 0
            assert (await client.ask("GET", "/api/own")).status == 200


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

"""Settings and stores with which a service refuses to start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer as Monitor
from pydantic import ValidationError
from structlog.testing import capture_logs

from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition
from services.common.messaging import bus as buses
from services.common.messaging import flow, streams
from services.common.messaging.bus import Bus
from services.common.settings import CommonSettings
from services.ingest.settings import IngestSettings
from tests.support.common.nats import TestServer

SECRET = "secret-of-this-test"

# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ANYWHERE = "0.0.0.0"  # noqa: S104
PHONES = {"http_tls_cert": Path("h.pem"), "http_tls_key": Path("h.key")}
FILES = {"tls_cert": Path("c.pem"), "tls_key": Path("c.key"), "tls_ca": Path("ca.pem")}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"host": ANYWHERE}, "isn't loopback: refused without TANDEM_TLS_CERT"),
        ({"host": "::"}, "isn't loopback: refused without TANDEM_TLS_CERT"),
        ({"host": "10.0.0.7"}, "isn't loopback: refused without TANDEM_TLS_CERT"),
        ({"host": ""}, "isn't loopback: refused without TANDEM_TLS_CERT"),
        ({"host": ANYWHERE, "dev_secret": SECRET, **FILES}, "refused with TANDEM_DEV_SECRET"),
        ({"host": ANYWHERE, "clock_rate": 60, **FILES}, "refused with TANDEM_CLOCK_RATE"),
        ({"tls_cert": Path("c.pem")}, "go together"),
        ({"host": ANYWHERE, "tls_cert": Path("c.pem"), "tls_ca": Path("ca.pem")}, "go together"),
    ],
)
def test_settings_that_would_open_the_mesh_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        CommonSettings(port=0, **given)


@pytest.mark.parametrize(
    "given", [{}, {"host": "::1", "dev_secret": SECRET, "clock_rate": 60}, {"host": ANYWHERE, **FILES}]
)
def test_settings_that_keep_the_mesh_closed_are_accepted(given: dict[str, Any]) -> None:
    CommonSettings(port=0, **given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"host": ANYWHERE, **FILES}, "isn't loopback: refused without TANDEM_HTTP_TLS_CERT"),
        ({"host": ANYWHERE, "http_tls_cert": Path("h.pem"), **FILES}, "go together"),
        ({"http_tls_key": Path("h.key")}, "go together"),
        ({"host": ANYWHERE, **PHONES}, "isn't loopback: refused without TANDEM_TLS_CERT"),
    ],
)
def test_settings_that_would_admit_phones_without_tls_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        IngestSettings(**given)


@pytest.mark.parametrize("given", [{}, PHONES, {"host": ANYWHERE, **FILES, **PHONES}])
def test_settings_with_phones_by_tls_or_loopback_are_accepted(given: dict[str, Any]) -> None:
    assert (IngestSettings(**given).http_tls is not None) == bool(given)


# ── checks at start ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_service_starts_on_a_synchronous_store_with_the_same_clock(nats: TestServer, bus: Bus) -> None:
    log_meta = await streams.pass_gate(bus, CommonSettings(port=0, nats_monitor_url=nats.monitor_url))
    assert (log_meta.partitions, log_meta.clock) == (1, MeshClock()) and log_meta.log_id


async def test_a_service_needs_the_monitor_url_to_check_the_store(bus: Bus) -> None:
    with pytest.raises(FailedPrecondition, match="TANDEM_NATS_MONITOR_URL"):
        await streams.pass_gate(bus, CommonSettings(port=0))


@pytest.mark.parametrize(
    "clock", [{"clock_rate": 60}, {"clock_rate": 60, "clock_anchor_ms": 5}, {"clock_anchor_ms": 5}]
)
async def test_a_service_refuses_to_start_with_another_clock_than_the_logs(
    nats: TestServer, bus: Bus, clock: dict[str, Any]
) -> None:
    with pytest.raises(FailedPrecondition, match="differ from those in LOG_META"):
        await streams.pass_gate(bus, CommonSettings(port=0, nats_monitor_url=nats.monitor_url, **clock))


@pytest.mark.parametrize("setting", ["", "sync_interval: 2m"], ids=["by default", "every 2 minutes"])
async def test_a_service_refuses_to_start_on_an_asynchronous_store(tmp_path: Path, setting: str) -> None:
    server = TestServer(tmp_path / "nats")
    config = tmp_path / "nats" / "nats.conf"
    config.write_text(config.read_text().replace("sync_interval: always", setting))
    server.start()
    try:
        async with buses.connect(server.url, "test") as bus:
            await streams.create(bus, 1, MeshClock(), max_bytes=1 << 20)
            settings = CommonSettings(port=0, nats_monitor_url=server.monitor_url)
            with pytest.raises(FailedPrecondition, match="sync_interval: always"):
                await streams.pass_gate(bus, settings)
            await streams.pass_gate(bus, settings.model_copy(update={"allow_async_store": True}))
    finally:
        server.kill()


async def test_the_check_of_the_store_waits_for_a_server_that_starts(bus: Bus) -> None:
    # It answers before its store is open, and a proxy before it answers.
    answers: list[Any] = [{"jetstream": {"config": {"sync_always": True}}}, {"jetstream": {}}, None]

    async def varz(_: web.Request) -> web.Response:
        answer = answers.pop()
        return web.json_response(answer) if answer else web.Response(status=503, text="starting")

    app = web.Application()
    app.router.add_get("/varz", varz)
    async with Monitor(app) as monitor:
        url = str(monitor.make_url("")).rstrip("/")
        await streams.pass_gate(bus, CommonSettings(port=0, nats_monitor_url=url))
    assert not answers


async def test_the_time_of_a_streams_creation_waits_for_the_server(tmp_path: Path) -> None:
    """The registry asks for that of the log at its start, and the server may be down just then."""
    server = TestServer(tmp_path / "nats")
    server.start()
    try:
        async with buses.connect(server.url, "test") as bus, asyncio.TaskGroup() as tasks:
            await streams.create(bus, 1, MeshClock(), max_bytes=1 << 20)
            created = await bus.created_at(flow.log_stream(0))
            server.kill()
            with capture_logs() as lines:
                asked = tasks.create_task(bus.created_at(flow.log_stream(0)))
                while not any(line["event"] == "stream_awaited" for line in lines):  # noqa: ASYNC110  # a log line has no event to wait for
                    await asyncio.sleep(0.05)
            assert not asked.done()
            server.start()
            assert await asked == created
    finally:
        server.kill()

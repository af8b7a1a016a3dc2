"""`python -m services.field`: the app of protected persons and the page of units, the one service that faces phones on the internet.

It is a client of the mesh with an identity of its own. It stores the keys of its cookies and of its push messages, and the phones'
addresses at their push services.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from services.common import running
from services.common.health_port import observed, watch_certificates, watch_disk
from services.common.observability.metrics import ProcessMetrics, process_registry
from services.common.privacy.secret_keys import open_keys
from services.common.service import run_service
from services.common.storage.db import awaited_database
from services.common.web import server
from services.field import mesh as meshes
from services.field.credentials import KnownPhones, PhoneCookies, UnitCookies
from services.field.guard import PhoneGuard, UnitGuard
from services.field.her_map import HerMapPages, Router, WayOutPages
from services.field.metrics import FieldMetrics
from services.field.news import NoticeNews, UnitNews
from services.field.push import TIMEOUT, PublicResolver, PushAddresses, PushClient, PushKey, PushPages
from services.field.settings import FieldSettings
from services.field.units import UnitPages
from services.field.views import AfterwardsPages, AppPages, HealthPages

MIGRATIONS = Path(__file__).parent / "migrations"
MAX_CONNECTIONS = 20_000
"""Maximum number of connections. Each open app keeps a request for notices waiting."""


async def run(settings: FieldSettings) -> None:
    """Serves the app until it is stopped, even while services of the mesh are unavailable."""
    collector = process_registry()
    process_metrics, metrics = ProcessMetrics(collector), FieldMetrics(collector)
    keys = open_keys(settings.data_dir / "cookies.key", "With a new key all phones must be enrolled again")
    cookies = PhoneCookies(keys)
    key = PushKey(settings.data_dir / "push.pem", settings.push_contact)
    watch_disk(settings.data_dir, process_metrics)
    watch_certificates(settings.certificates, process_metrics)
    connector = aiohttp.TCPConnector(resolver=PublicResolver(), limit=0, use_dns_cache=False)
    async with (
        awaited_database(settings.data_dir / "field.sqlite3", MIGRATIONS) as database,
        meshes.connect(settings) as mesh,
        meshes.connect_unit_legs(settings) as legs,
        aiohttp.ClientSession(
            connector=connector, timeout=TIMEOUT, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as push_session,
        aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as router_session,
    ):
        addresses, known = PushAddresses(database), KnownPhones(mesh)
        push = PushClient(push_session, key, settings.push_hosts)
        news = NoticeNews(mesh, addresses, push, clock=settings.clock, metrics=metrics)
        guard = PhoneGuard(settings, cookies, known, addresses=addresses, metrics=metrics)
        push_pages = PushPages(addresses, key, settings.push_hosts)
        pages = AppPages(
            guard,
            mesh,
            known=known,
            news=news,
            addresses=addresses,
            push=push_pages,
            metrics=metrics,
            clock=settings.clock,
        )
        unit_news = UnitNews(legs, addresses, push, clock=settings.clock, metrics=metrics)
        unit_pages = UnitPages(
            UnitGuard(settings, UnitCookies(keys), addresses=addresses, metrics=metrics),
            legs,
            news=unit_news,
            addresses=addresses,
            push=push_pages,
            settings=settings,
            file=pages.file,
        )
        async with (
            server.served(
                "field",
                (
                    *pages.routes(),
                    *HerMapPages(guard, mesh).routes(),
                    *WayOutPages(guard, Router(settings.osrm_url, router_session)).routes(),
                    *HealthPages(guard, mesh).routes(),
                    *AfterwardsPages(guard, mesh).routes(),
                    *unit_pages.routes(),
                ),
                settings.host,
                port=settings.port,
                closed=process_metrics.http_closed,
                tls=settings.http_tls,
                most=MAX_CONNECTIONS,
            ),
            observed(
                settings.host,
                settings.metrics_port,
                lambda: f"notices can't be followed: {news.away}" if news.away else "",
                metrics=process_metrics,
                degraded=unit_news.not_followed,
            ),
        ):
            await running.until_stopped(news.run(), unit_news.run(), asyncio.Event().wait())  # type: ignore[arg-type]


def main() -> None:
    """Reads the settings from the environment and runs field."""
    run_service("field", FieldSettings, run)


if __name__ == "__main__":
    main()

"""`python -m services.console`: the pages of desks, reviewers and operators.

The console is a client of the mesh, and stores only the keys of its sessions and the list of ended sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from services.common import running
from services.common.health_port import observed, watch_certificates
from services.common.observability.metrics import ProcessMetrics, process_registry
from services.common.privacy.secret_keys import open_keys
from services.common.service import run_service
from services.common.web import server
from services.console import mesh as meshes
from services.console.domain.people import VIEWERS, Role
from services.console.live.feed import Feed
from services.console.pages.guard import RouteGuard
from services.console.routes import console_routes
from services.console.settings import ConsoleSettings
from services.console.sign_in.provider import Accounts, Provider
from services.console.sign_in.sessions import EndedSessions

MAX_CONNECTIONS = 500


async def run(settings: ConsoleSettings) -> None:
    """Serves pages until it is stopped, even while services of the mesh are unavailable."""
    metrics = ProcessMetrics(process_registry())
    watch_certificates(settings.certificates, metrics)
    keys = open_keys(
        settings.data_dir / "session.key",
        "Or remove it: the next start makes a new key, and everybody signs in again",
    )
    ended = EndedSessions(settings.data_dir / "sessions-ended.json")
    ended.load()
    accounts = _accounts(settings, ended)
    guard = RouteGuard(settings, keys, ended, accounts=accounts)
    roles = [role for role in Role if role in VIEWERS and settings.console_role in (None, role)]
    async with meshes.connect(settings) as mesh:
        feeds = {role: Feed(mesh, role) for role in roles}
        routes = console_routes(settings, guard, mesh, feeds=feeds)
        async with (
            server.served(
                "console",
                routes,
                settings.host,
                port=settings.port,
                closed=metrics.http_closed,
                tls=settings.http_tls,
                most=MAX_CONNECTIONS,
            ),
            observed(
                settings.host,
                settings.metrics_port,
                partial(_unready, feeds),
                metrics=metrics,
                degraded=partial(_degraded, feeds),
            ),
        ):
            checks = [accounts.run()] if accounts else []
            await running.until_stopped(*(feed.run() for feed in feeds.values()), *checks, asyncio.Event().wait())  # type: ignore[arg-type]


def _accounts(settings: ConsoleSettings, ended: EndedSessions) -> Accounts | None:
    """Returns the checks of accounts; None without an identity provider."""
    if not settings.oidc_issuer:
        return None
    provider = Provider(settings.oidc_issuer, settings.oidc_client_id, settings.oidc_client_secret.get_secret_value())
    return Accounts(provider, settings.oidc_rule, settings.oidc_check_interval_s, ended=ended)


def _unready(feeds: Mapping[Role, Feed]) -> str:
    """Returns the reason why no role's page gets news, or an empty text. A single role's failure is shown on its pages."""
    reasons = [feed.unable() for feed in feeds.values()]
    return reasons[0] if reasons and all(reasons) else ""


def _degraded(feeds: Mapping[Role, Feed]) -> str:
    return "; ".join(f"{role.value}: {reason}" for role, feed in feeds.items() if (reason := feed.degraded()))


def main() -> None:
    """Reads the settings from the environment and runs the console."""
    run_service("console", ConsoleSettings, run)


if __name__ == "__main__":
    main()

"""python -m services.console: the pages of desks, reviewers and operators. A client of the mesh that keeps nothing but a key."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

import uvloop

from services.common import rpc, telemetry, web
from services.common.observe import observed
from services.console import mesh as meshes
from services.console.domain.people import LOOKERS, Role
from services.console.guard import Guard
from services.console.live import Feed
from services.console.pages import Pages
from services.console.settings import ConsoleSettings

CONNECTIONS_MOST = 500


async def run(settings: ConsoleSettings) -> None:
    """Serves pages until it is told to stop, whoever of the mesh is away."""
    guard = Guard(settings, _key(settings.data_dir / "session.key"))
    roles = [role for role in Role if role in LOOKERS and settings.console_role in (None, role)]
    async with meshes.connect(settings) as mesh:
        feeds = {role: Feed(mesh, role) for role in roles}
        routes = Pages(settings, guard, mesh, feeds).routes()
        async with (
            web.served("console", routes, settings.host, settings.port, settings.http_tls, most=CONNECTIONS_MOST),
            # It serves its pages whoever is away, and they say so.
            observed(settings.host, settings.metrics_port, lambda: ""),
        ):
            await rpc.run_until_stopped(*(feed.run() for feed in feeds.values()), asyncio.Event().wait())  # type: ignore[arg-type]


def _key(path: Path) -> bytes:
    """The key of the sessions, made at the first start: they outlive a restart."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    except FileExistsError:
        pass
    return path.read_bytes()


def main() -> None:
    """Reads the environment."""
    telemetry.configure("console")
    uvloop.run(run(ConsoleSettings()))


if __name__ == "__main__":
    main()

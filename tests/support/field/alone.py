"""A running field whose mesh is away, for what its guards decide alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from services.field.__main__ import run
from services.field.settings import FieldSettings
from tests.support.common.ports import free_port


@asynccontextmanager
async def running_field(folder: Path, ingest_port: int = 0) -> AsyncIterator[str]:
    """A field whose mesh is away, but for ingest's endpoint at a port. Yields its address."""
    port, away = free_port(), f"ipv4:127.0.0.1:{free_port()}"
    given_settings = FieldSettings(
        port=port,
        data_dir=folder,
        dev_secret="secret",
        registry=away,
        dispatch_warning=away,
        dispatch_police=away,
        dispatch_probation=away,
        ingest_phones=f"http://127.0.0.1:{ingest_port or free_port()}",
    )
    serving = asyncio.create_task(run(given_settings))
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(f"{url}/static/icon.svg"):
                    break
            assert not serving.done(), serving
            await asyncio.sleep(0.05)
    try:
        yield url
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving

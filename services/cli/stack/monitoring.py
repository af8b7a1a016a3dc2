"""What the processes of a running mesh say of themselves: their readiness, and the streams by nats-server's monitoring port."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from services.cli.failure import FAILED, CommandFailed
from services.cli.stack.mesh import MeshConnection

ANSWER_WITHIN_S = 5.0
"""Timeout of one request, seconds of wall time."""
READY = "ready"
"""Beginning of the answer of a process that does its work."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process of a mesh, as `tandem status` shows it."""

    name: str
    pid: int | None
    """Process id; None while the process is being restarted."""
    answer: str
    """What the process says of its readiness, in words."""

    @property
    def is_ready(self) -> bool:
        """Whether the process runs and does its work."""
        return self.pid is not None and self.answer.startswith(READY)


async def states_of(running: MeshConnection) -> list[ProcessState]:
    """All processes of a mesh, nats-server first, each asked for its readiness at the same time."""
    urls = {"nats": f"{running.nats.monitor_url}/healthz"}
    urls |= {name: f"{url}/readyz" for name, url in running.metrics_urls.items()}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)) as session:
        answers = await asyncio.gather(*(_readiness(session, url) for url in urls.values()))
    return [ProcessState(name, running.pids.get(name), answer) for name, answer in zip(urls, answers, strict=True)]


async def _readiness(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(url) as response:
            text = (await response.text()).strip()
            if url.endswith("/healthz"):
                return READY if response.status == 200 else text
            return text or f"answers {response.status}"
    except TimeoutError:
        return f"hangs: no answer for {ANSWER_WITHIN_S:.0f} s"
    except aiohttp.ClientError:
        return "is down"


async def read_monitor(running: MeshConnection, path: str) -> Mapping[str, Any]:
    """JSON object of nats-server's monitoring port, such as `varz`. Raises CommandFailed if it doesn't answer."""
    url = f"{running.nats.monitor_url}/{path}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)) as session,
            session.get(url) as response,
        ):
            content: Mapping[str, Any] = await response.json()
            return content
    except (aiohttp.ClientError, TimeoutError, ValueError):
        raise CommandFailed(
            f"nats-server's monitoring port doesn't answer: {running.nats.monitor_url}", FAILED
        ) from None
